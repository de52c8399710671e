// Encoding of one row: in bytes with a step, or as the code of a key (codes.h). A warp has the row,
// as quads.cuh says.
#ifndef TACTIC_SRC_CUDA_ENCODE_KEY_CUH_
#define TACTIC_SRC_CUDA_ENCODE_KEY_CUH_

#include <cuda_fp16.h>

#include <cstdint>

#include "src/codes.h"
#include "src/cuda/build.h"
#include "src/cuda/byte_float.cuh"
#include "src/cuda/quads.cuh"
#include "src/cuda/tile.cuh"

namespace tactic::cuda {

__device__ __forceinline__ bool IsFinite(float x) {
  constexpr uint32_t kInfinity = 0x7f800000u;
  return (__float_as_uint(x) & kInfinity) != kInfinity;
}

// The step of bytes for a row whose largest magnitude is `most`, in f16 and rounded up so that none
// exceeds 127. Infinite: it does not fit.
__device__ __forceinline__ __half StepFor(float most) {
  constexpr float kLargestByte = 127;
  const __half step = __float2half_rn(most / kLargestByte);
  if (__half2float(step) * kLargestByte >= most) return step;
  return __ushort_as_half(__half_as_ushort(step) + 1);
}
__device__ __forceinline__ int ByteOf(float x, float step) {
  return step > 0 ? static_cast<int>(roundf(x / step)) : 0;
}

// Signed Hadamard rotation of what the lanes hold of a row.
template <int kDim>
struct Rotation {
  using Shape = QuadShape<kDim>;
  // 96 is a block of 64 elements, lanes 0 to 15, and one of 32, of which the last step is left out.
  static constexpr bool kTwoBlocks = kDim == 96;
  static_assert(kTwoBlocks || (kDim & (kDim - 1)) == 0);
  static constexpr int kLaneSteps = kDim >= 128 ? 32 : 16;

  float factor[Shape::kPerLane][4];  // sign and normalisation

  __device__ __forceinline__ explicit Rotation(const uint32_t (&signs)[8]) {
#pragma unroll
    for (int i = 0; i < Shape::kPerLane; ++i) {
      const int quad = Shape::Quad(i);
      const uint32_t flips = Shape::Has(i) ? signs[quad / 8] >> (4 * (quad % 8)) : 0u;
      const float size = kTwoBlocks ? (quad < 16 ? 64.0f : 32.0f) : static_cast<float>(kDim);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        factor[i][j] = ((flips >> j & 1) != 0 ? -1.0f : 1.0f) / sqrtf(size);
    }
  }

  __device__ __forceinline__ void Apply(float (&y)[Shape::kPerLane][4]) const {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < Shape::kPerLane; ++i) {
      const float a = y[i][0] * factor[i][0];
      const float b = y[i][1] * factor[i][1];
      const float c = y[i][2] * factor[i][2];
      const float d = y[i][3] * factor[i][3];
      y[i][0] = (a + b) + (c + d);
      y[i][1] = (a - b) + (c - d);
      y[i][2] = (a + b) - (c + d);
      y[i][3] = (a - b) - (c - d);
#pragma unroll
      for (int k = 1; k < kLaneSteps; k <<= 1) {
        const bool skip = kTwoBlocks && k == 8 && lane >= 16;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float other = __shfl_xor_sync(kAllLanes, y[i][j], k);
          const float next = (lane & k) != 0 ? other - y[i][j] : y[i][j] + other;
          if (!skip) y[i][j] = next;
        }
      }
    }
    if constexpr (Shape::kPerLane == 2) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float a = y[0][j];
        y[0][j] = a + y[1][j];
        y[1][j] = a - y[1][j];
      }
    }
  }
};

// Chooses the levels of a rotated residual of squared length `square`, and writes them as the code
// of key `key` of a block. Returns <y, levels>, of this lane's elements.
template <int kDim>
__device__ __forceinline__ float Code(const BuildBook& book, int bits,
                                      const float (&y)[QuadShape<kDim>::kPerLane][4], float square,
                                      bool write, uint8_t* block, int key) {
  using Shape = QuadShape<kDim>;
  const float rms = sqrtf(square / kDim);
  const int half = 1 << (bits - 1);
  float along = 0;
#pragma unroll
  for (int i = 0; i < Shape::kPerLane; ++i) {
    float level[4];
    int magnitude[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      level[j] = book.lowest;
      magnitude[j] = 0;
    }
    for (int b = 0; b < book.boundaries; ++b) {
      const float edge = book.boundary[b] * rms;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (fabsf(y[i][j]) > edge) {
          level[j] += book.rise[b];
          ++magnitude[j];
        }
      }
    }
    uint32_t magnitudes = 0;  // a byte each
    uint32_t counts = 0;
    uint32_t signs = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool negative = y[i][j] < 0;
      if (Shape::Has(i)) along += fabsf(y[i][j]) * level[j];
      const uint32_t count = negative ? half - 1 - magnitude[j] : half + magnitude[j];
      magnitudes |= static_cast<uint32_t>(magnitude[j]) << (8 * j);
      counts |= count << (8 * j);
      signs |= (negative ? 1u : 0u) << (8 * j);
    }
    // Quads that share a word are neighbours.
    const int quad = Shape::Quad(i);
    const bool has = write && Shape::Has(i);
    const auto put = [&](int row, uint32_t word) {
      *reinterpret_cast<uint32_t*>(block + row * kCodeRow + 4 * key) = word;
    };
    if (bits == 4) {
      uint32_t word = counts << (4 * (quad % 2));
      word |= __shfl_xor_sync(kAllLanes, word, 1);
      if (has && quad % 2 == 0) put(quad / 2, word);
    } else {
      uint32_t word = (bits == 2 ? counts : magnitudes) << (2 * (quad % 4));
      word |= __shfl_xor_sync(kAllLanes, word, 1);
      word |= __shfl_xor_sync(kAllLanes, word, 2);
      if (has && quad % 4 == 0) put(quad / 4, word);
      if (bits == 3) {
        uint32_t negative = signs << (quad % 8);
        negative |= __shfl_xor_sync(kAllLanes, negative, 1);
        negative |= __shfl_xor_sync(kAllLanes, negative, 2);
        negative |= __shfl_xor_sync(kAllLanes, negative, 4);
        constexpr int kMagnitudeRows = static_cast<int>(CodeRows(kDim, kSmallestBits));
        if (has && quad % 8 == 0) put(kMagnitudeRows + quad / 8, negative);
      }
    }
  }
  return along;
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_ENCODE_KEY_CUH_
