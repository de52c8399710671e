// A group's queries in two parts of bytes, for products with bytes on tensor cores (m16n8k32): an
// element is its head's unit times (kHighPart * high + low). So centroids need not be widened, and
// the products are integers, off by what rounding an element to 1/16256 of the largest costs.
#ifndef TACTIC_SRC_CUDA_BYTE_QUERY_CUH_
#define TACTIC_SRC_CUDA_BYTE_QUERY_CUH_

#include "src/cuda/lane_share.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {

__device__ __forceinline__ void MultiplySignedBytes(int (&c)[4], uint32_t a0, uint32_t a1,
                                                    uint32_t a2, uint32_t a3, uint32_t b0,
                                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The elements of queries that a lane makes bytes of: those that it has of keys (KeyTile).
template <int kDim, int kHeadTiles, bool kFour>
struct QueryElements {
  float of[kHeadTiles][kDim / 4];  // 0: the group has no such head

  // Of unit `number`. One warp.
  __device__ __forceinline__ QueryElements(const Step& step, int number) {
    // Each way by itself, so that all of its loads are under way before anybody waits for one.
    if (step.q_type == Element::kF32)
      Read<float4>(step, number);
    else
      Read<uint2>(step, number);
  }

 private:
  // Four elements as they are loaded, as floats.
  static __device__ __forceinline__ float4 Open(const Step&, const float4& four) { return four; }
  static __device__ __forceinline__ float4 Open(const Step& step, const uint2& four) {
    const float2 a = OpenPair(four.x, step.q_type);
    const float2 b = OpenPair(four.y, step.q_type);
    return {a.x, a.y, b.x, b.y};
  }
  template <class Four>
  __device__ __forceinline__ void Read(const Step& step, int number) {
    const int column = static_cast<int>(threadIdx.x & 31) >> 2;
    const int t = threadIdx.x & 3;
    const auto* all = static_cast<const Four*>(step.q) + int64_t{number} * step.group * (kDim / 4);
    Four raw[kHeadTiles][kDim / 16];
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      const int head = kFour ? column & 3 : n * kTileHeads + column;
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        const int at = KeyTile<RowI8, kDim>::ElementOf(i / 2, t) / 4 + i % 2;
        raw[n][i] = head < step.group ? all[head * (kDim / 4) + at] : Four{};
      }
    }
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        const float4 four = Open(step, raw[n][i]);
        of[n][4 * i] = four.x;
        of[n][4 * i + 1] = four.y;
        of[n][4 * i + 2] = four.z;
        of[n][4 * i + 3] = four.w;
      }
    }
  }
};

// Of a group of at most four heads (kFour), high parts are four columns of a tile of heads and low
// parts the other four; of others each part has tiles of its own.
template <int kDim, int kHeadTiles, bool kFour>
struct ByteQuery {
  using Share = LaneShare<kHeadTiles, kFour>;
  static constexpr int kHighPart = 128;
  static constexpr int kLargest = 127 * kHighPart;
  static constexpr int kParts = kFour ? 1 : 2;
  uint32_t b[kHeadTiles][kParts][kDim / 16];
  float unit[kHeadTiles][2];  // of the lane's heads by LaneShare

  // One warp. What is not finite is lost.
  __device__ __forceinline__ explicit ByteQuery(
      const QueryElements<kDim, kHeadTiles, kFour>& elements) {
    const int lane = threadIdx.x & 31;
    const int column = lane >> 2;
    const int t = lane & 3;
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      const float (&x)[kDim / 4] = elements.of[n];
      float most = 0;
#pragma unroll
      for (int i = 0; i < kDim / 4; ++i) most = fmaxf(most, fabsf(x[i]));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      const float inverse = most > 0 ? kLargest / most : 0.0f;
#pragma unroll
      for (int w = 0; w < kDim / 16; ++w) {
        uint32_t high = 0;
        uint32_t low = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int number = __float2int_rn(x[4 * w + i] * inverse);
          const int upper = (number + kHighPart / 2) >> 7;
          high |= static_cast<uint32_t>(upper & 0xff) << 8 * i;
          low |= static_cast<uint32_t>((number - upper * kHighPart) & 0xff) << 8 * i;
        }
        if constexpr (kFour) {
          b[n][0][w] = column < 4 ? high : low;
        } else {
          b[n][0][w] = high;
          b[n][1][w] = low;
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int of = (kFour ? Share::Head(0, h) : 2 * t + h) * 4;
        unit[n][h] = __shfl_sync(kAllLanes, most / kLargest, of);
      }
    }
  }

  // Products with the bytes of a tile of keys, shared out as by LaneShare::Deal.
  __device__ __forceinline__ void Score(const KeyTile<RowI8, kDim>& keys,
                                        float (&s)[kHeadTiles][4]) const {
    const bool upper = (threadIdx.x & 2) != 0;
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      int parts[kParts][4] = {};
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) {
        const uint2 low = keys.raw[2 * j];
        const uint2 high = keys.raw[2 * j + 1];
#pragma unroll
        for (int p = 0; p < kParts; ++p)
          MultiplySignedBytes(parts[p], low.x, high.x, low.y, high.y, b[n][p][2 * j],
                              b[n][p][2 * j + 1]);
      }
      if constexpr (kFour) {
        // Lane t has the high parts of keys r and r + 8, lane t + 2 the low ones of the same heads:
        // each gets what it lacks of its key.
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int other = __shfl_xor_sync(kAllLanes, upper ? parts[0][h] : parts[0][2 + h], 2);
          const int mine = upper ? parts[0][2 + h] : parts[0][h];
          s[n][h] = unit[n][h] *
                    static_cast<float>(upper ? kHighPart * other + mine : kHighPart * mine + other);
          s[n][2 + h] = 0;
        }
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          s[n][k] = unit[n][k % 2] * static_cast<float>(kHighPart * parts[0][k] + parts[1][k]);
      }
    }
  }
};

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_BYTE_QUERY_CUH_
