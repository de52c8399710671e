// How the products of 16 keys and the heads of a group, as tensor cores leave them, are shared out
// over the lanes of a warp.
#ifndef TACTIC_SRC_CUDA_LANE_SHARE_CUH_
#define TACTIC_SRC_CUDA_LANE_SHARE_CUH_

#include "src/cuda/tile.cuh"

namespace tactic::cuda {

// Lane 4 r + t has keys r and r + 8 for heads 2 t and 2 t + 1: of a group of at most four heads
// (kFour), lanes with t >= 2 have nothing. They take key r + 8 of the lane two below.
template <int kHeadTiles, bool kFour>
struct LaneShare {
  static_assert(!kFour || kHeadTiles == 1);
  static constexpr int kKeys = kFour ? 1 : 2;  // of a lane
  static __device__ __forceinline__ int Lane() { return static_cast<int>(threadIdx.x & 31); }
  // Whether key k of the lane's is r + 8.
  static __device__ __forceinline__ bool IsHigh(int k) {
    return kFour ? (Lane() & 2) != 0 : k == 1;
  }
  // Its place in the tile.
  static __device__ __forceinline__ int Key(int k) { return (Lane() >> 2) + (IsHigh(k) ? 8 : 0); }
  // Head number `h`, 0 or 1, of the lane's in tile n of heads.
  static __device__ __forceinline__ int Head(int n, int h) {
    return kFour ? 2 * (Lane() & 1) + h : LaneHead(n, h);
  }
  // After it, product 2 k + h of a tile is that of key k and head h.
  template <class T>
  static __device__ __forceinline__ void Deal(T (&products)[kHeadTiles][4]) {
    if constexpr (kFour) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const T from = __shfl_up_sync(kAllLanes, products[0][2 + h], 2);
        if (IsHigh(0)) products[0][h] = from;
      }
    }
  }
  // What lanes have summed up by heads, as before Deal: the keys' sums of lanes that share a head
  // meet in the one whose head it is by LaneHead.
  static __device__ __forceinline__ void Collect(float (&sums)[kHeadTiles][2]) {
    if constexpr (kFour) {
#pragma unroll
      for (int h = 0; h < 2; ++h) sums[0][h] += __shfl_xor_sync(kAllLanes, sums[0][h], 2);
    }
  }
};

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_LANE_SHARE_CUH_
