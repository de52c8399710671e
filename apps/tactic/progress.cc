#include "progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace tactic::app {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kRedraw = std::chrono::milliseconds(100);
constexpr auto kLogLine = std::chrono::seconds(10);
constexpr int kBarWidth = 30;

}  // namespace

Progress::Progress(std::string label, int64_t total, bool enabled, std::string unit)
    : label_(std::move(label)),
      total_(std::max<int64_t>(total, 1)),
      enabled_(enabled),
      unit_(std::move(unit)),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_(terminal_ ? start_ - kRedraw : start_) {}

Progress::~Progress() {
  if (drawn_ && terminal_) std::fputs("\n", stderr);
}

void Progress::Update(int64_t done, int64_t skipped) {
  if (!enabled_) return;
  const auto now = Clock::now();
  const bool finished = done >= total_ && terminal_;
  if (!finished &&
      now - last_ < (terminal_ ? Clock::duration(kRedraw) : Clock::duration(kLogLine))) {
    return;
  }
  last_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = seconds > 0 ? static_cast<double>(done - skipped) / seconds : 0;
  Draw(done, rate, rate > 0 ? static_cast<double>(total_ - done) / rate : 0);
}

void Progress::Draw(int64_t done, double per_second, double seconds_left) {
  const std::string numbers = fmt::format("{}/{} {}, {:.0f} a second, {:.0f} s left at this speed",
                                          done, total_, unit_, per_second, seconds_left);
  if (terminal_) {
    const int filled = static_cast<int>(kBarWidth * std::min(done, total_) / total_);
    // \x1b[K erases the rest of a longer line that stood here.
    fmt::print(stderr, "\r{} [{:#<{}}{:.<{}}] {}\x1b[K", label_, "", filled, "", kBarWidth - filled,
               numbers);
  } else {
    fmt::print(stderr, "{}: {}\n", label_, numbers);
  }
  std::fflush(stderr);
  drawn_ = true;
}

}  // namespace tactic::app
