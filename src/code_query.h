// A query as centroids are scored and the codes of keys are scanned with.
#ifndef TACTIC_SRC_CODE_QUERY_H_
#define TACTIC_SRC_CODE_QUERY_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "src/codes.h"
#include "src/cpu/kernels.h"
#include "tactic/shape.h"

namespace tactic {

// Rotates scale * q[0, dim) and packs it, as signed bytes, into packed[0, CodeQueryDim(dim) / 4).
// *norm = |scale * q|^2. half_variance, reference and floor of the result are left to the caller.
inline cpu::CodeQuery PackQuery(const float* q, int dim, float scale, int32_t* packed,
                                float* norm) {
  float scaled[LayerShape::kMaxDim] = {};
  float rotated[LayerShape::kMaxDim];
  *norm = 0;
  for (int x = 0; x < dim; ++x) {
    scaled[x] = q[x] * scale;
    *norm += scaled[x] * scaled[x];
  }
  Rotate(scaled, dim, rotated);
  float most = 0;
  for (int x = 0; x < dim; ++x) most = std::max(most, std::fabs(rotated[x]));
  const float unit = most / 127;
  auto* bytes = reinterpret_cast<int8_t*>(packed);
  int32_t sum = 0;
  for (int x = 0; x < CodeQueryDim(dim); ++x) {
    const bool zero = x >= dim || unit == 0;
    bytes[x] = zero ? int8_t{0} : static_cast<int8_t>(std::lround(rotated[x] / unit));
    sum += bytes[x];
  }
  return {packed, unit, -kLevelZero * unit * static_cast<float>(sum), 0, 0, 1};
}

// Splits scale * q[0, dim) into the two parts with which centroids are scored; parts[0, dim / 4)
// and parts[dim / 4, dim / 2) take them. A query that is not finite scores NaN everywhere.
inline cpu::CentroidQuery SplitQuery(const float* q, int dim, float scale, int32_t* parts) {
  float most = 0;
  bool finite = true;
  for (int x = 0; x < dim; ++x) {
    finite = finite && std::isfinite(q[x] * scale);
    most = std::max(most, std::fabs(q[x] * scale));
  }
  constexpr int kLargest = cpu::kHighPart * cpu::kSmallByte;
  const float unit = finite ? most / kLargest : std::numeric_limits<float>::quiet_NaN();
  auto* high = reinterpret_cast<int8_t*>(parts);
  auto* low = reinterpret_cast<int8_t*>(parts + dim / 4);
  int32_t sum = 0;
  for (int x = 0; x < dim; ++x) {
    const float units = unit > 0 ? q[x] * scale / unit : 0.0f;
    const auto whole = static_cast<int32_t>(units + std::copysign(0.5f, units));
    const int32_t of_high =
        (whole + kLargest + cpu::kHighPart / 2) / cpu::kHighPart - cpu::kSmallByte;  // nearest
    high[x] = static_cast<int8_t>(of_high);
    low[x] = static_cast<int8_t>(whole - cpu::kHighPart * of_high);
    sum += whole;
  }
  return {parts, parts + dim / 4, unit, sum};
}

}  // namespace tactic

#endif  // TACTIC_SRC_CODE_QUERY_H_
