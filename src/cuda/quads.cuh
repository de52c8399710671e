// Rows read by a warp as floats: lane l holds quads l, l + 32, ..., of four consecutive elements.
#ifndef TACTIC_SRC_CUDA_QUADS_CUH_
#define TACTIC_SRC_CUDA_QUADS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "src/cuda/tile.cuh"

namespace tactic::cuda {

template <int kDim>
struct QuadShape {
  static constexpr int kQuads = kDim / 4;              // of a row
  static constexpr int kPerLane = (kQuads + 31) / 32;  // the last may be missing in some lanes
  static __device__ __forceinline__ int Quad(int i) {
    return static_cast<int>(threadIdx.x & 31) + 32 * i;
  }
  static __device__ __forceinline__ bool Has(int i) { return kQuads % 32 == 0 || Quad(i) < kQuads; }
};

// A row as it is stored, and as numbers: those of e4m3 are 1/kE4M3Unit of what they stand for.
template <class Row, int kDim>
struct QuadRow {
  using Shape = QuadShape<kDim>;
  using Raw = std::conditional_t<Row::kBytes == 2, uint2, uint32_t>;
  Raw raw[Shape::kPerLane];

  __device__ __forceinline__ void Load(const uint8_t* row) {
#pragma unroll
    for (int i = 0; i < Shape::kPerLane; ++i) {
      raw[i] = Raw{};
      if (!Shape::Has(i)) continue;
      const uint8_t* p = row + Shape::Quad(i) * 4 * Row::kBytes;
      if constexpr (Row::kBytes == 2)
        raw[i] = Load8(p);
      else
        raw[i] = Load4(p);
    }
  }

  __device__ __forceinline__ void Get(int i, float (&x)[4]) const {
    if constexpr (Row::kIsBF16) {
      x[0] = __uint_as_float(raw[i].x << 16);
      x[1] = __uint_as_float(raw[i].x & 0xffff0000u);
      x[2] = __uint_as_float(raw[i].y << 16);
      x[3] = __uint_as_float(raw[i].y & 0xffff0000u);
    } else {
      uint2 wide;
      if constexpr (Row::kBytes == 2)
        wide = raw[i];
      else
        wide = Widen<Row>(raw[i]);
      const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&wide.x));
      const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&wide.y));
      x[0] = low.x, x[1] = low.y, x[2] = high.x, x[3] = high.y;
      if constexpr (std::is_same_v<Row, RowE4M3>) {
        // Seven ones are NaN, which Widen does not know of. One NaN is enough to spoil the row.
        const uint32_t nan = ((raw[i] & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;
        if (nan != 0) x[0] = __uint_as_float(0x7fc00000u);
      }
    }
  }
};

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_QUADS_CUH_
