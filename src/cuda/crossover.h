// From how many tokens on a mode is faster than reading everything.
#ifndef TACTIC_SRC_CUDA_CROSSOVER_H_
#define TACTIC_SRC_CUDA_CROSSOVER_H_

#include <cmath>
#include <cstdint>

#include "tactic/options.h"

namespace tactic::cuda {

// For a batch of so many units (sequences times KV heads). Measured on an H200 with bf16 caches in
// pages of 16 (bench/results/cuda_h200.json): groups of 3 with 3, 24 and 96 narrow units, groups of
// 4 with 8, 64 and 256, at lengths from 7K to 1M, between which times are taken to grow evenly;
// rows of 128 elements in 3 and 24 units from narrow ones, by half. Rounded to the side of reading
// everything, by which a short sequence loses little.
//
// What a selection costs hardly depends on the length, while reading everything takes as long as
// the memory needs: on other devices the lengths grow with `bandwidth`, bytes per second by the
// memory's clock and bus; 0: not known.
inline int64_t DenseBelow(Mode mode, int head_dim, int units, double bandwidth) {
  if (mode == Mode::kDense) return 0;
  struct Row {
    int most_units;
    int paper, tactic;                // head_dim above 64
    int narrow_paper, narrow_tactic;  // up to 64
  };
  constexpr Row kRows[] = {
      {4, 122880, 425984, 245760, 851968}, {12, 49152, 81920, 114688, 311296},
      {32, 18432, 45056, 36864, 90112},    {128, 10240, 14336, 18432, 38912},
      {1 << 30, 7168, 7168, 10240, 16384},
  };
  const Row* row = kRows;
  while (units > row->most_units) ++row;
  const int here = head_dim <= 64 ? (mode == Mode::kPaper ? row->narrow_paper : row->narrow_tactic)
                                  : (mode == Mode::kPaper ? row->paper : row->tactic);
  constexpr double kMeasured = 4.814e12;  // HBM3e: 3201 MHz, double data rate, 6016 bits
  return bandwidth > 0 ? std::llround(here * bandwidth / kMeasured) : here;
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_CROSSOVER_H_
