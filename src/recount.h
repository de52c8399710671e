// The threshold of a query head from its bins, which keep no keys below a floor: when that turns
// out to be too high, the keys are counted again with a lower one.
#ifndef TACTIC_SRC_RECOUNT_H_
#define TACTIC_SRC_RECOUNT_H_

#include <algorithm>

#include "src/coded_units.h"
#include "src/threshold.h"

namespace tactic {

// Counts the keys of query head `g` of a group again, of all parts into the bins of the first.
inline void Recount(Step& step, int request, int kv_head, int g, uint32_t floor) {
  const RequestPlan& r = step.requests[request];
  const int q_head = kv_head * step.group() + g;
  HeadOf(step, request, q_head).floor = floor;
  cpu::MassBins& bins = step.coded.bins[PartSlot(step, request, kv_head, 0, g)];
  bins = cpu::MassBins();
  for (int part = 0; part < r.parts; ++part) {
    cpu::AddToBins(Keys(step, r, q_head),
                   Blocks(step, r, kv_head) + PartKeys(step, r, part).begin / kCodeBlock,
                   BlockCount(step, request, kv_head, part), floor, &bins);
  }
}

// The key from which on keys have estimated mass `need`; kEveryKey when all have less.
inline Threshold ThresholdFor(Step& step, int request, int kv_head, int g, double need) {
  const cpu::MassBins& bins = step.coded.bins[PartSlot(step, request, kv_head, 0, g)];
  const CodedHead& head = HeadOf(step, request, kv_head * step.group() + g);
  Threshold threshold = FindThreshold(bins, head.floor, need);
  constexpr auto kLower = static_cast<uint32_t>(6 * cpu::kKeyLevels);
  while (threshold.key == kEveryKey && head.floor > kEveryKey) {
    Recount(step, request, kv_head, g, std::max(kEveryKey + kLower, head.floor) - kLower);
    threshold = FindThreshold(bins, head.floor, need);
  }
  return threshold;
}

}  // namespace tactic

#endif  // TACTIC_SRC_RECOUNT_H_
