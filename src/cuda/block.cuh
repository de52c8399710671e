// The block that every stage runs in, and sums over its warps and threads: all of them take part.
#ifndef TACTIC_SRC_CUDA_BLOCK_CUH_
#define TACTIC_SRC_CUDA_BLOCK_CUH_

#include <cstdint>

#include "src/cuda/tile.cuh"

namespace tactic::cuda {

inline constexpr int kBlockThreads = 256;
inline constexpr int kBlockWarps = kBlockThreads / 32;

// The same number, of which the compiler knows nothing before: else it works out what follows from
// it ahead of the loops in front, and holds it in registers that these need.
__device__ __forceinline__ int OnlyHere(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// The warp's place among the block's where number `turn` modulo theirs comes first.
__device__ __forceinline__ int WarpInTurn(int turn) {
  static_assert((kBlockWarps & (kBlockWarps - 1)) == 0);
  return (static_cast<int>(threadIdx.x >> 5) - turn) & (kBlockWarps - 1);
}

template <class T>
__device__ __forceinline__ T WarpSum(T x) {
#pragma unroll
  for (int k = 16; k > 0; k >>= 1) x += __shfl_xor_sync(kAllLanes, x, k);
  return x;
}
// Of kCount values at once, a power of two: lane l gets the sum of value l % kCount. A halving of
// the values with every exchange costs a third of kCount sums.
// kLanes: over so many neighbours, each of them apart.
template <int kLanes = 32, class T, int kCount>
__device__ __forceinline__ T WarpSums(T (&x)[kCount]) {
  static_assert(kCount <= kLanes);
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int n = kCount / 2; n > 0; n >>= 1) {
    const bool upper = (lane & n) != 0;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const T other = __shfl_xor_sync(kAllLanes, upper ? x[i] : x[i + n], n);
      x[i] = (upper ? x[i + n] : x[i]) + other;
    }
  }
#pragma unroll
  for (int k = kCount; k < kLanes; k <<= 1) x[0] += __shfl_xor_sync(kAllLanes, x[0], k);
  return x[0];
}

// Inclusive, over lanes.
template <class T>
__device__ __forceinline__ T WarpScan(T x, int lane) {
#pragma unroll
  for (int k = 1; k < 32; k <<= 1) {
    const T y = __shfl_up_sync(kAllLanes, x, k);
    if (lane >= k) x += y;
  }
  return x;
}

// Exclusive, over the block's threads; *total is of all. `scratch`: kBlockWarps of them.
template <class T>
__device__ __forceinline__ T BlockScan(T x, T* scratch, T* total) {
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const T inclusive = WarpScan(x, lane);
  __syncthreads();
  if (lane == 31) scratch[warp] = inclusive;
  __syncthreads();
  T before = 0;
  T all = 0;
#pragma unroll
  for (int w = 0; w < kBlockWarps; ++w) {
    before += w < warp ? scratch[w] : T{0};
    all += scratch[w];
  }
  *total = all;
  return before + inclusive - x;
}

// A sum over count numbers that lie `stride` apart, in an order that depends on nothing else. Its
// first loads are under way before anybody waits for them: make all sums that are wanted, then ask.
class StridedSum {
 public:
  __device__ __forceinline__ StridedSum(const float* of, int count, int stride)
      : of_(of), count_(count), stride_(stride) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int at = static_cast<int>(threadIdx.x & 31) + 32 * i;
      held_[i] = at < count ? __ldcg(of + static_cast<int64_t>(at) * stride) : 0;
    }
  }
  // All lanes of the warp.
  __device__ __forceinline__ float Get() const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) sum += held_[i];
    for (int i = static_cast<int>(threadIdx.x & 31) + 32 * kHeld; i < count_; i += 32)
      sum += __ldcg(of_ + static_cast<int64_t>(i) * stride_);
    return WarpSum(sum);
  }

 private:
  static constexpr int kHeld = 2;
  const float* of_;
  int count_;
  int stride_;
  float held_[kHeld];
};

__device__ __forceinline__ float SumOver(const float* of, int count, int stride) {
  return StridedSum(of, count, stride).Get();
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_BLOCK_CUH_
