// Writes a row in any element type (rows_view.h); scalar, for data that is made up.
#ifndef TACTIC_SRC_ENCODE_ROW_H_
#define TACTIC_SRC_ENCODE_ROW_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>

#include "src/half.h"
#include "tactic/rows_view.h"

namespace tactic {

template <class T>
void Put(uint8_t* at, T value) {
  std::memcpy(at, &value, sizeof(value));
}

// One block of kQuantBlock elements.
inline void EncodeBlock(ElementType type, const float* in, uint8_t* out) {
  float largest = 0;
  for (int i = 0; i < kQuantBlock; ++i) largest = std::max(largest, std::fabs(in[i]));
  const int levels = type == ElementType::kQ8_0 ? 127 : 7;
  const uint16_t scale_bits = FloatToHalf(largest / static_cast<float>(levels));
  const float scale = HalfToFloat(scale_bits);
  int q[kQuantBlock];
  for (int i = 0; i < kQuantBlock; ++i) {
    const float level = scale == 0 ? 0.0f : std::round(in[i] / scale);
    q[i] = static_cast<int>(std::clamp(level, -levels - 1.0f, static_cast<float>(levels)));
  }
  Put(out, scale_bits);
  if (type == ElementType::kQ8_0) {
    for (int i = 0; i < kQuantBlock; ++i) Put(out + 2 + i, static_cast<int8_t>(q[i]));
  } else {
    for (int i = 0; i < 16; ++i) {
      Put(out + 2 + i, static_cast<uint8_t>((q[i] + 8) | (q[i + 16] + 8) << 4));
    }
  }
}

// REQUIRES: in.size() is a multiple of kQuantBlock for the quantised types.
inline void EncodeRow(ElementType type, std::span<const float> in, uint8_t* out) {
  if (type == ElementType::kQ8_0 || type == ElementType::kQ4_0) {
    const size_t bytes = RowBytes(type, kQuantBlock);
    for (size_t b = 0; b * kQuantBlock < in.size(); ++b) {
      EncodeBlock(type, in.data() + b * kQuantBlock, out + b * bytes);
    }
    return;
  }
  for (size_t i = 0; i < in.size(); ++i) {
    if (type == ElementType::kF32) Put(out + 4 * i, in[i]);
    if (type == ElementType::kF16) Put(out + 2 * i, FloatToHalf(in[i]));
    if (type == ElementType::kBF16) Put(out + 2 * i, FloatToBf16(in[i]));
  }
}

}  // namespace tactic

#endif  // TACTIC_SRC_ENCODE_ROW_H_
