// From how many tokens on a mode is faster than reading everything.
#ifndef TACTIC_SRC_CUDA_CROSSOVER_H_
#define TACTIC_SRC_CUDA_CROSSOVER_H_

#include "tactic/options.h"

namespace tactic::cuda {

// For a batch of so many units (sequences times KV heads). Measured on an H100 with bf16 caches in
// pages of 16 and groups of 3 and 4 (bench/results/cuda_h100.json), between the lengths that were
// measured on the side of reading everything: what a short sequence loses by it is little, what a
// selection costs does not depend on the length.
inline int DenseBelow(Mode mode, int head_dim, int units) {
  if (mode == Mode::kDense) return 0;
  struct Row {
    int most_units;
    int paper, tactic;                // head_dim above 64
    int narrow_paper, narrow_tactic;  // up to 64
  };
  constexpr Row kRows[] = {
      {24, 98304, 73728, 196608, 393216},
      {96, 16384, 12288, 28672, 32768},
      {1 << 30, 8192, 7168, 16384, 12288},
  };
  const Row* row = kRows;
  while (units > row->most_units) ++row;
  if (head_dim <= 64) return mode == Mode::kPaper ? row->narrow_paper : row->narrow_tactic;
  return mode == Mode::kPaper ? row->paper : row->tactic;
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_CROSSOVER_H_
