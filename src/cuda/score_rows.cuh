// Logits of listed rows: what a block does with the rows of a segment that it chose.
#ifndef TACTIC_SRC_CUDA_SCORE_ROWS_CUH_
#define TACTIC_SRC_CUDA_SCORE_ROWS_CUH_

#include "src/cuda/step.cuh"

namespace tactic::cuda {

// For i in [0, count): to[i * group + g] = logit of row position(i) for head g; and found(i, n, h,
// logit) for the heads n * 8 + 2 t + h of this lane. All warps of the block share the rows.
template <class Row, int kDim, int kHeadTiles, class Position, class Found>
__device__ __forceinline__ void ScoreRows(const Step& step, const Unit& unit,
                                          const QueryTile<kDim, kHeadTiles>& q, int count,
                                          float* to, const Position& position, const Found& found) {
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
      for (int k = 0; k < 4; ++k) {
        const int head = LaneHead(n, k & 1);
        const int i = tile * kTileRows + r + (k >> 1) * 8;
        if (head >= step.group || i >= count) continue;
        const float logit = Capped(s[n][k] * step.key_unit, step.softcap);
        to[i * step.group + head] = logit;
        found(i, n, k & 1, logit);
      }
    }
  }
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
