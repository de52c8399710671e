// How much estimated mass a query head has to read, and the key from which on it is read.
#ifndef TACTIC_SRC_THRESHOLD_H_
#define TACTIC_SRC_THRESHOLD_H_

#include <algorithm>
#include <cmath>

#include "src/coded.h"
#include "src/selection_rule.h"
#include "tactic/options.h"

namespace tactic {

// Estimated mass of the keys that were not read, when those that were have `estimated`.
inline double UnreadKeys(const CodedHead& head, double estimated) {
  return std::max(kResolution * head.total, head.total - estimated);
}

// What a head may miss, on the safe side.
inline double Unread(const Options& options, const CodedHead& head, double estimated) {
  return options.unread_margin * UnreadKeys(head, estimated) +
         options.skipped_margin * head.skipped;
}

// What the first choice's keys are expected to keep of what their codes, with that error, promise.
inline double FirstRatio(double code_error) {
  return std::max<double>(kLeastRatio, std::exp(-kCaution * code_error * code_error));
}

// Whether exact mass `exact` is the target's share when `unread` is missing.
inline bool Reached(const Options& options, double exact, double unread) {
  return exact >= options.target * (exact + unread);
}

// The estimated mass x that must be read on top of `exact` for the target, when reading it adds
// ratio * x: the solution of S + ratio x = P (S + ratio x + unread - margin x).
inline double EstimatedMassFor(const Options& options, double exact, double unread, double ratio) {
  const double p = options.target;
  return (p * (exact + unread) - exact) / (ratio * (1 - p) + p * options.unread_margin);
}

struct Threshold {
  uint32_t key = kNoKey;   // this and all above
  double rows = 0;         // about so many
  uint32_t edge = kNoKey;  // the lower end of the bin that `key` is in
};

// The key above which the bins hold `need`. Within a bin keys are taken to be spread evenly: what
// that misses is found when the choice is verified. Of a bin with few keys all are taken: one of
// them may be most of what there is.
inline Threshold FindThreshold(const cpu::MassBins& bins, uint32_t floor, double need) {
  if (!(need > 0)) return {};
  double mass = 0;
  double rows = 0;
  for (int b = cpu::kMassBins - 1; b >= 0; --b) {
    if (mass + bins.mass[b] < need) {
      mass += bins.mass[b];
      rows += bins.count[b];
      continue;
    }
    // The last bin has no upper end.
    constexpr uint32_t kFewKeys = 8;
    const bool all = b + 1 == cpu::kMassBins || bins.count[b] <= kFewKeys;
    const double share = all ? 1 : (need - mass) / bins.mass[b];
    const uint32_t edge = floor + static_cast<uint32_t>(b) * cpu::kBinLevels;
    const auto within = static_cast<uint32_t>((1 - share) * cpu::kBinLevels);
    return {edge + within, rows + share * bins.count[b], edge};
  }
  return {kEveryKey, rows, kEveryKey};
}

}  // namespace tactic

#endif  // TACTIC_SRC_THRESHOLD_H_
