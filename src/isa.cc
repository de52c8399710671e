#include "tactic/isa.h"

#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "hwy/highway.h"

namespace tactic {
namespace {

struct Isa {
  std::string name;  // Highway's in lower case; both of its targets without SIMD are "scalar"
  int64_t target;
};

// What this build has kernels for (src/CMakeLists.txt disables the same targets everywhere), best
// first: Highway numbers its targets so.
const std::vector<Isa>& Built() {
  static const std::vector<Isa> built = [] {
    std::vector<Isa> isas;
    for (int bit = 0; bit < 63; ++bit) {
      const int64_t target = int64_t{1} << bit;
      if ((HWY_TARGETS & target) == 0) continue;
      std::string name = hwy::TargetName(target);
      for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      const bool scalar = target == HWY_EMU128 || target == HWY_SCALAR;
      isas.push_back({scalar ? "scalar" : name, target});
    }
    return isas;
  }();
  return built;
}

// Targets that this build compiled and this CPU runs.
int64_t Usable() {
  static const int64_t usable = hwy::SupportedTargets() & HWY_TARGETS;
  return usable;
}

Status Choose(std::string_view name) {
  std::string known;
  for (const Isa& isa : Built()) {
    if (name == isa.name) {
      if ((Usable() & isa.target) == 0) {
        return Status::Unsupported("instruction set \"" + std::string(name) +
                                   "\" is not supported by this CPU");
      }
      hwy::SetSupportedTargetsForTest(isa.target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      return Status::Ok();
    }
    known += (known.empty() ? "" : ", ") + isa.name;
  }
  return Status::InvalidArgument("instruction set is \"" + std::string(name) +
                                 "\"; expected one of " + known);
}

}  // namespace

std::vector<std::string> SupportedIsas() {
  std::vector<std::string> names;
  for (const Isa& isa : Built()) {
    if ((Usable() & isa.target) != 0) names.push_back(isa.name);
  }
  return names;
}

const char* IsaName() {
  (void)IsaStatus();
  const int64_t best = hwy::SupportedTargets() & HWY_TARGETS;
  for (const Isa& isa : Built()) {
    if ((best & isa.target) != 0) return isa.name.c_str();
  }
  return "scalar";
}

Status SetIsa(std::string_view name) {
  (void)IsaStatus();
  return Choose(name);
}

Status IsaStatus() {
  static const Status status = [] {
    const char* forced = std::getenv("TACTIC_FORCE_ISA");
    (void)Usable();
    if (forced == nullptr || *forced == '\0') return Status::Ok();
    Status chosen = Choose(forced);
    if (chosen.ok()) return chosen;
    return Status(chosen.code(), "TACTIC_FORCE_ISA: " + chosen.message());
  }();
  return status;
}

}  // namespace tactic
