// Rows: the keys or values of one layer in any element type, laid out as an engine might, and what
// they decode to in double.
//
// Every byte starts as 0xFF: a NaN in each element type, so that a row nobody wrote shows where it
// is read. The allocation ends with the last row, so that a sanitizer sees reads past it.
#ifndef TACTIC_TESTS_CORE_ROWS_H_
#define TACTIC_TESTS_CORE_ROWS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "src/encode_row.h"
#include "src/half.h"
#include "src/reference/oracle.h"
#include "tactic/rows_view.h"

namespace tactic {

inline constexpr ElementType kAllTypes[] = {ElementType::kF32, ElementType::kF16,
                                            ElementType::kBF16, ElementType::kQ8_0,
                                            ElementType::kQ4_0};

// Whether rows of `dim` elements can be stored as `type`.
inline bool Legal(ElementType type, int dim) {
  return (type != ElementType::kQ8_0 && type != ElementType::kQ4_0) || dim % kQuantBlock == 0;
}

template <class T>
T Take(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

// By the definition of the formats (tactic/rows_view.h).
inline double DecodeElement(ElementType type, const uint8_t* row, int i) {
  const uint8_t* block = row + i / kQuantBlock * RowBytes(type, kQuantBlock);
  const int within = i % kQuantBlock;
  switch (type) {
    case ElementType::kF32:
      return Take<float>(row + 4 * i);
    case ElementType::kF16:
      return HalfToFloat(Take<uint16_t>(row + 2 * i));
    case ElementType::kBF16:
      return Bf16ToFloat(Take<uint16_t>(row + 2 * i));
    case ElementType::kQ8_0:
      return static_cast<double>(HalfToFloat(Take<uint16_t>(block))) *
             Take<int8_t>(block + 2 + within);
    case ElementType::kQ4_0: {
      const uint8_t byte = block[2 + within % 16];
      return static_cast<double>(HalfToFloat(Take<uint16_t>(block))) *
             ((within < 16 ? byte & 15 : byte >> 4) - 8);
    }
  }
  return 0;
}

enum class Layout { kCellMajor, kHeadMajor };

class Rows {
 public:
  // `gap` unused bytes follow the rows of every cell (kCellMajor) or head (kHeadMajor).
  Rows(ElementType type, int dim, int heads, int cells, size_t gap = 0,
       Layout layout = Layout::kCellMajor)
      : type_(type), dim_(dim) {
    const size_t row = RowBytes(type, static_cast<size_t>(dim));
    const bool by_cell = layout == Layout::kCellMajor;
    head_stride_ = by_cell ? row : static_cast<size_t>(cells) * row + gap;
    row_stride_ = by_cell ? static_cast<size_t>(heads) * row + gap : row;
    const size_t end = Offset(cells - 1, heads - 1) + row;
    bytes_.assign(cells > 0 ? end : 1, 0xFF);
  }

  void Set(int64_t cell, int head, std::span<const float> row) {
    EncodeRow(type_, row, bytes_.data() + Offset(cell, head));
  }
  oracle::Row Get(int64_t cell, int head) const {
    oracle::Row row;
    for (int i = 0; i < dim_; ++i) {
      row.push_back(DecodeElement(type_, bytes_.data() + Offset(cell, head), i));
    }
    return row;
  }

  RowsView View() const { return {bytes_.data(), type_, row_stride_, head_stride_}; }
  ElementType type() const { return type_; }
  int dim() const { return dim_; }

 private:
  size_t Offset(int64_t cell, int head) const {
    return static_cast<size_t>(cell) * row_stride_ + static_cast<size_t>(head) * head_stride_;
  }

  ElementType type_;
  int dim_;
  size_t row_stride_;
  size_t head_stride_;
  std::vector<uint8_t> bytes_;
};

inline std::vector<float> RandomRow(int dim, std::mt19937& random, float spread = 1) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> row;
  for (int i = 0; i < dim; ++i) row.push_back(normal(random));
  return row;
}

inline oracle::Row ToDouble(std::span<const float> row) { return {row.begin(), row.end()}; }

}  // namespace tactic

#endif  // TACTIC_TESTS_CORE_ROWS_H_
