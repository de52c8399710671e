// Keys of one head, as their logits are computed: tile by tile, element by element, so that
// compilers make vectors of it for any instruction set.
#ifndef TACTIC_BENCH_SYNTHETIC_TILE_H_
#define TACTIC_BENCH_SYNTHETIC_TILE_H_

#include <algorithm>
#include <cstddef>

namespace tactic::synthetic {

inline constexpr size_t kTile = 256;  // tokens

// logits[t] = x . key of token t, for the tokens of a tile. keys: [dim][kTile].
inline void ScoreTile(const float* x, const float* keys, size_t dim, float* logits) {
  std::fill_n(logits, kTile, 0.0F);
  for (size_t i = 0; i < dim; ++i, keys += kTile) {
    for (size_t t = 0; t < kTile; ++t) logits[t] += x[i] * keys[t];
  }
}

}  // namespace tactic::synthetic

#endif  // TACTIC_BENCH_SYNTHETIC_TILE_H_
