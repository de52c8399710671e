// From how many tokens on a mode is faster than reading everything.
#ifndef TACTIC_SRC_CUDA_CROSSOVER_H_
#define TACTIC_SRC_CUDA_CROSSOVER_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "tactic/options.h"

namespace tactic::cuda {

// For a batch of so many units (sequences times KV heads). Measured on an H200 with bf16 caches in
// pages of 16 (bench/results/cuda_h200.json): groups of 4 with 8, 64 and 256 units, at lengths from
// 7K to 1M, between which times are taken to grow evenly; rounded up by 5 % or more, since a short
// sequence loses little by being read. Between these numbers of units the length falls as a power
// of them, below the fewest as their inverse, which 3 units of groups of 3 bear out (narrow rows,
// mode tactic: 639K by this, 593K measured).
//
// What a selection costs hardly depends on the length, while reading everything takes as long as
// the memory needs: on other devices the lengths grow with `bandwidth`, bytes per second by the
// memory's clock and bus; 0: not known.
inline int64_t DenseBelow(Mode mode, int head_dim, int units, double bandwidth) {
  if (mode == Mode::kDense) return 0;
  constexpr int kCount = 3;
  constexpr double kUnits[kCount] = {8, 64, 256};
  // Of modes paper and tactic: rows of more than 64 elements, and others.
  constexpr double kTokens[2][2][kCount] = {{{43008, 9216, 7168}, {79872, 13312, 7168}},
                                            {{93184, 16384, 9216}, {239616, 35840, 13312}}};
  const double* tokens = kTokens[head_dim <= 64 ? 1 : 0][mode == Mode::kPaper ? 0 : 1];
  int from = 0;
  while (from + 2 < kCount && units >= kUnits[from + 1]) ++from;
  const double falls = units < kUnits[0] ? 1
                                         : std::log(tokens[from] / tokens[from + 1]) /
                                               std::log(kUnits[from + 1] / kUnits[from]);
  const double most = std::min<double>(units, kUnits[kCount - 1]);
  const double here = tokens[from] * std::pow(kUnits[from] / most, falls);
  constexpr double kMeasured = 4.814e12;  // HBM3e: 3201 MHz, double data rate, 6016 bits
  return std::llround(bandwidth > 0 ? here * bandwidth / kMeasured : here);
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_CROSSOVER_H_
