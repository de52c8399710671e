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
  __device__ __forceinline__ void Load(const Step& step, const Unit& unit_of) {
    const int lane = threadIdx.x & 31;
    const int column = lane >> 2;
    const int t = lane & 3;
    const int64_t first = int64_t{unit_of.number} * step.group * kDim;
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      const int head = kFour ? column & 3 : n * kTileHeads + column;
      float x[kDim / 4];
      float most = 0;
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) {
        // The elements that a lane has of keys (KeyTile).
        ReadEight(step, first + head * kDim + 32 * j + 8 * t, head < step.group, x + 8 * j);
#pragma unroll
        for (int i = 0; i < 8; ++i) most = fmaxf(most, fabsf(x[8 * j + i]));
      }
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

 private:
  static __device__ __forceinline__ void ReadEight(const Step& step, int64_t at, bool there,
                                                   float* x) {
    if (!there) {
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = 0;
      return;
    }
    if (step.q_type == Element::kF32) {
      const auto* from = reinterpret_cast<const float4*>(static_cast<const float*>(step.q) + at);
      const float4 a = from[0];
      const float4 c = from[1];
      x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
      x[4] = c.x, x[5] = c.y, x[6] = c.z, x[7] = c.w;
      return;
    }
    const uint4 piece = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(step.q) + at);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float2 pair = OpenPair(Word(piece, w), step.q_type);
      x[2 * w] = pair.x;
      x[2 * w + 1] = pair.y;
    }
  }
};

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_BYTE_QUERY_CUH_
