// From how many tokens on a mode is faster than reading everything.
#ifndef TACTIC_SRC_CUDA_CROSSOVER_H_
#define TACTIC_SRC_CUDA_CROSSOVER_H_

#include <cmath>
#include <cstdint>

#include "tactic/options.h"

namespace tactic::cuda {

// For a batch of so many units (sequences times KV heads). Measured on an H100 with bf16 caches in
// pages of 16 and groups of 3 and 4, of 3 (narrow), 8, 24 (narrow), 64, 96 (narrow) and 256 units
// at ten lengths from 7K to 127K, or estimated from their slopes; between lengths on the side of
// reading everything: what a short sequence loses by it is little, what a selection costs hardly
// depends on the length.
//
// Reading everything takes as long as the memory needs for it, a selection hardly does: elsewhere
// the lengths grow with `bandwidth`, bytes per second by the device's clock and bus; 0: not known.
inline int64_t DenseBelow(Mode mode, int head_dim, int units, double bandwidth) {
  if (mode == Mode::kDense) return 0;
  struct Row {
    int most_units;
    int paper, tactic;                // head_dim above 64
    int narrow_paper, narrow_tactic;  // up to 64
  };
  constexpr Row kRows[] = {
      {4, 131072, 196608, 212992, 393216}, {12, 47104, 73728, 94208, 155648},
      {32, 24576, 28672, 34816, 65536},    {128, 11264, 12288, 16384, 28672},
      {1 << 30, 7168, 7168, 10240, 11264},
  };
  const Row* row = kRows;
  while (units > row->most_units) ++row;
  const int here = head_dim <= 64 ? (mode == Mode::kPaper ? row->narrow_paper : row->narrow_tactic)
                                  : (mode == Mode::kPaper ? row->paper : row->tactic);
  constexpr double kMeasured = 4.9e12;
  return bandwidth > 0 ? std::llround(here * bandwidth / kMeasured) : here;
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_CROSSOVER_H_
