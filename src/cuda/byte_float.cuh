// The byte floats of codes.h on the device.
#ifndef TACTIC_SRC_CUDA_BYTE_FLOAT_CUH_
#define TACTIC_SRC_CUDA_BYTE_FLOAT_CUH_

#include <cstdint>

#include "src/codes.h"

namespace tactic::cuda {

// ByteToFloat, of the lowest byte of a word.
__device__ __forceinline__ float FromByteFloat(uint32_t word) {
  return __uint_as_float((word & 0xffu) << 20) * kByteFloatUnit;
}

// FloatToByte.
__device__ __forceinline__ uint8_t ToByteFloat(float value) {
  constexpr float kSmallest = 0x1p-23f;
  if (!(value >= kSmallest)) return 0;
  if (value >= kLargestByteFloat) return 255;
  const uint32_t bits = __float_as_uint(value * (1 / kByteFloatUnit));
  return static_cast<uint8_t>(min(255u, (bits + (1u << 19)) >> 20));
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_BYTE_FLOAT_CUH_
