// RowsView: where an engine keeps the keys (or values) of one layer.
//
// The library reads rows in place and never copies a cache. A row is one token's key or value of
// one KV head: `n` elements that are contiguous in memory. A cell is the engine's physical row
// number. Does not own the memory.
#ifndef TACTIC_ROWS_VIEW_H_
#define TACTIC_ROWS_VIEW_H_

#include <cstddef>
#include <cstdint>

namespace tactic {

// Storage formats. The quantised ones are ggml's blocks of 32 elements: an f16 scale d, then
//   q8_0: 32 signed bytes q, value d * q
//   q4_0: 16 bytes, element i in the low nibble of byte i, element i + 16 in its high nibble, value
//   d * (nibble - 8)
enum class ElementType : uint8_t { kF32 = 0, kF16 = 1, kBF16 = 2, kQ8_0 = 3, kQ4_0 = 4 };
inline constexpr int kElementTypes = 5;

inline constexpr int kQuantBlock = 32;  // elements of a quantised block
inline constexpr size_t kQ8BlockBytes = 34;
inline constexpr size_t kQ4BlockBytes = 18;

// "f32", "f16", "bf16", "q8_0", "q4_0".
const char* ElementTypeName(ElementType type);

// Bytes of `n` contiguous elements. REQUIRES: n is a multiple of kQuantBlock for the quantised
// types.
constexpr size_t RowBytes(ElementType type, size_t n) {
  switch (type) {
    case ElementType::kF32:
      return 4 * n;
    case ElementType::kF16:
    case ElementType::kBF16:
      return 2 * n;
    case ElementType::kQ8_0:
      return n / kQuantBlock * kQ8BlockBytes;
    case ElementType::kQ4_0:
      return n / kQuantBlock * kQ4BlockBytes;
  }
  return 0;
}

struct RowsView {
  const uint8_t* data = nullptr;
  ElementType type = ElementType::kF16;
  size_t row_stride = 0;   // bytes from a cell to the next
  size_t head_stride = 0;  // bytes from a KV head to the next within a cell

  // First element of KV head `head`, cell 0; rows follow at row_stride.
  const uint8_t* Head(int head) const { return data + static_cast<size_t>(head) * head_stride; }
};

}  // namespace tactic

#endif  // TACTIC_ROWS_VIEW_H_
