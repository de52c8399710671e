// Logits of listed rows: what a block does with the rows of a segment that it chose.
#ifndef TACTIC_SRC_CUDA_SCORE_ROWS_CUH_
#define TACTIC_SRC_CUDA_SCORE_ROWS_CUH_

#include "src/cuda/step.cuh"

namespace tactic::cuda {

// For tiles of 16 of rows position(i), i in [0, count): done(tile, s), s[n][k] the logit of row
// 16 tile + r + k / 2 * 8 for head LaneHead(n, k % 2), whether there are such or not. All warps of
// the block share the tiles.
template <class Row, int kDim, int kHeadTiles, class Position, class Done>
__device__ __forceinline__ void ScoreTiles(const Step& step, const Unit& unit,
                                           const QueryTile<kDim, kHeadTiles>& q, int count,
                                           const Position& position, const Done& done) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  for (int tile = threadIdx.x >> 5; tile * kTileRows < count; tile += kBlockWarps) {
    // Most warps have one tile: looking ahead would only take registers, and thereby other blocks.
    KeyTile<Row, kDim> keys;
    keys.Load(KeyRow<Row>(step, unit, position(min(tile * kTileRows + r, count - 1))),
              KeyRow<Row>(step, unit, position(min(tile * kTileRows + r + 8, count - 1))), lane);
    float s[kHeadTiles][4];
    keys.Score(q, s);
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) s[n][k] = Capped(s[n][k] * step.key_unit, step.softcap);
    }
    done(tile, s);
  }
}

// Of such a tile, for the rows and heads there are: found(i, n, h, logit) of row i and head
// LaneHead(n, h).
template <int kHeadTiles, class Found>
__device__ __forceinline__ void ForEachLogit(const Step& step, int count, int tile,
                                             const float (&s)[kHeadTiles][4], const Found& found) {
  const int r = static_cast<int>(threadIdx.x & 31) >> 2;
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int i = tile * kTileRows + r + k / 2 * 8;
      if (LaneHead(n, k % 2) < step.group && i < count) found(i, n, k % 2, s[n][k]);
    }
  }
}

// Both: every logit goes to to[i * group + head], and to found.
template <class Row, int kDim, int kHeadTiles, class Position, class Found>
__device__ __forceinline__ void ScoreRows(const Step& step, const Unit& unit,
                                          const QueryTile<kDim, kHeadTiles>& q, int count,
                                          float* to, const Position& position, const Found& found) {
  ScoreTiles<Row>(step, unit, q, count, position, [&](int tile, const float (&s)[kHeadTiles][4]) {
    ForEachLogit(step, count, tile, s, [&](int i, int n, int h, float logit) {
      to[i * step.group + LaneHead(n, h)] = logit;
      found(i, n, h, logit);
    });
  });
}

// Adds what lanes hold for their heads up over the block: sum of head g to to[g]. `by_warp` is
// shared memory.
template <int kHeadTiles>
__device__ __forceinline__ void SumHeads(const float (&mass)[kHeadTiles][2], int group,
                                         float (*by_warp)[kMaxGroup], float* to) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = mass[n][h];
#pragma unroll
      for (int k = 4; k < 32; k <<= 1) sum += __shfl_xor_sync(kAllLanes, sum, k);
      if (lane < 4) by_warp[threadIdx.x >> 5][n * kTileHeads + 2 * lane + h] = sum;
    }
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < group) {
    float sum = 0;
    for (int w = 0; w < kBlockWarps; ++w) sum += by_warp[w][threadIdx.x];
    to[threadIdx.x] = sum;
  }
  __syncthreads();
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_SCORE_ROWS_CUH_
