#include "memory.h"

#include <fmt/format.h>

#include <array>
#include <fstream>

namespace tactic::app {

int64_t AvailableMemory() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (meminfo >> key >> kib) {
    std::getline(meminfo, unit);
    if (key == "MemAvailable:") return kib * 1024;
  }
  return 0;
}

Status CheckMemory(int64_t bytes, const std::string& what) {
  const int64_t available = AvailableMemory();
  if (available == 0 || bytes <= available) return Status::Ok();
  return Status::ResourceExhausted(fmt::format("{} needs {}, but only {} of memory is available",
                                               what, FormatBytes(static_cast<double>(bytes)),
                                               FormatBytes(static_cast<double>(available))));
}

std::string FormatBytes(double bytes) {
  constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < kUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, kUnits[unit]);
}

}  // namespace tactic::app
