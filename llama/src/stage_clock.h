// StageClock: the time that threads spend in the stages of one layer.
#ifndef TACTIC_LLAMA_SRC_STAGE_CLOCK_H_
#define TACTIC_LLAMA_SRC_STAGE_CLOCK_H_

#include <array>
#include <atomic>
#include <chrono>

#include "tactic_llama/stages.h"

namespace tactic::llama {

class StageClock {
 public:
  void Add(Stage stage, int64_t ns) {
    ns_[static_cast<size_t>(stage)].fetch_add(ns, std::memory_order_relaxed);
  }
  // What was added since the last call.
  LayerTimes Take(int layer) {
    LayerTimes times;
    times.layer = layer;
    for (size_t i = 0; i < ns_.size(); ++i) times.ns[i] = ns_[i].exchange(0);
    return times;
  }

 private:
  std::array<std::atomic<int64_t>, kStages> ns_ = {};
};

// Adds its life to a clock; without one it costs a comparison.
class StageTimer {
 public:
  StageTimer(StageClock* clock, Stage stage) : clock_(clock), stage_(stage) {
    if (clock_ != nullptr) start_ = Now();
  }
  ~StageTimer() {
    if (clock_ != nullptr) {
      clock_->Add(stage_, std::chrono::nanoseconds(Now() - start_).count());
    }
  }
  StageTimer(const StageTimer&) = delete;
  StageTimer& operator=(const StageTimer&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  static Clock::time_point Now() { return Clock::now(); }

  StageClock* clock_;
  Stage stage_;
  Clock::time_point start_;
};

}  // namespace tactic::llama

#endif  // TACTIC_LLAMA_SRC_STAGE_CLOCK_H_
