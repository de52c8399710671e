// Sums by query head over a block.
#ifndef TACTIC_SRC_CUDA_SUM_HEADS_CUH_
#define TACTIC_SRC_CUDA_SUM_HEADS_CUH_

#include "src/cuda/step.cuh"

namespace tactic::cuda {

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

#endif  // TACTIC_SRC_CUDA_SUM_HEADS_CUH_
