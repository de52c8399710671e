// How far f32 kernels may be from the double oracle, derived from their arithmetic.
//
// Standard error analysis (Higham, "Accuracy and Stability of Numerical Algorithms", ch. 3): with
// unit roundoff u = 2^-24, k roundings in a row change a result by at most the factor
// 1 +- gamma(k), gamma(k) = k u / (1 - k u).
//
//   dot       `lanes` chains of dim / lanes multiply-adds, then a tree of log2(lanes) additions. A
//             target without fused multiply-add rounds the product too: one more.
//             |error| <= gamma(dim / lanes + log2(lanes) + 1) * sum |q_i k_i|
//             Rows decode exactly: f16 and bf16 widen, and an f16 scale (11 bits) times a signed
//             byte fits the 24 bits of f32.
//   logit     dot * scale: one rounding. With a softcap: scale / softcap and the product round once
//             each; tanh has slope <= 1 and 4 ulp = 8 u; the last product rounds once.
//   weight    exp(logit - max): the difference rounds once, which exp turns into the relative error
//             u |logit - max|; exp itself has 4 ulp = 8 u. Below 2^-126 the error is absolute.
//             An error e of the logit becomes the factor exp(e). The maximum's own error is common
//             to all weights and cancels.
//   rescaling when the maximum rises from a to b: exp(a - b) rounds a - b, has 1 ulp = 2 u, and is
//             multiplied: 3 u + u |a - b|. The differences add up to at most the logits' range.
//   sums      n weights (times values) and one more term per merged state: gamma(n + merges + 2).
//   division  1 / sum and the product: 2 u.
#ifndef TACTIC_TESTS_CORE_TOLERANCE_H_
#define TACTIC_TESTS_CORE_TOLERANCE_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "src/reference/oracle.h"

namespace tactic::tolerance {

inline constexpr double kUnit = 0x1p-24;
inline constexpr double kExpUnits = 8;  // of exp and tanh: 4 ulp
inline constexpr double kSmallestNormal = 0x1p-126;
inline constexpr double kSmallestNumber = 0x1p-149;  // what one product may lose to underflow

inline double Gamma(double roundings) { return roundings * kUnit / (1 - roundings * kUnit); }

// An exact value and how far a kernel's may be from it.
struct Bounded {
  double value = 0;
  double error = 0;
};

// Sum of |a_i b_i|.
inline double SumAbs(const oracle::Row& a, const oracle::Row& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::fabs(a[i] * b[i]);
  return sum;
}

// Dot product in `chains` chains (a power of two).
inline Bounded Dot(const oracle::Row& a, const oracle::Row& b, int chains) {
  const auto dim = static_cast<double>(a.size());
  const double roundings = dim / chains + std::bit_width(static_cast<unsigned>(chains));
  return {oracle::Dot(a, b), Gamma(roundings) * SumAbs(a, b) + dim * kSmallestNumber};
}

// Attention logit of a query and a key.
inline Bounded Logit(const oracle::Row& q, const oracle::Row& k, double scale, double softcap,
                     int lanes) {
  const Bounded dot = Dot(q, k, lanes);
  const double value = oracle::Logit(q, k, scale, softcap);
  if (softcap == 0) {
    return {value, scale * dot.error * (1 + kUnit) + kUnit * std::fabs(value) + kSmallestNumber};
  }
  const double argument_error =
      (scale * dot.error + Gamma(2) * scale * std::fabs(dot.value)) / softcap * (1 + Gamma(2));
  return {value, softcap * argument_error * (1 + Gamma(kExpUnits + 1)) +
                     Gamma(kExpUnits + 1) * std::fabs(value) + softcap * kSmallestNumber};
}

// Relative error of exp(logit - max) in f32; the absolute kSmallestNormal comes on top.
inline double Weight(const Bounded& logit, double max) {
  return std::expm1(logit.error + kUnit * (max - logit.value + logit.error)) *
             (1 + Gamma(kExpUnits)) +
         Gamma(kExpUnits);
}

struct BoundedAttention {
  std::vector<Bounded> out;
  Bounded lse;
};

// Attention over `rows` (oracle::Attend), computed in blocks of 64 rows and `merges` merges.
inline BoundedAttention Attend(const oracle::Row& q, const oracle::Rows& keys,
                               const oracle::Rows& values, const std::vector<int64_t>& rows,
                               double scale, double softcap, int lanes, int merges) {
  constexpr double kBlock = 64;
  BoundedAttention result;
  result.lse.value = -oracle::kInf;
  if (rows.empty()) return result;
  std::vector<Bounded> logits;
  double max = -oracle::kInf;
  double min = oracle::kInf;
  for (int64_t p : rows) {
    logits.push_back(Logit(q, keys[p], scale, softcap, lanes));
    max = std::max(max, logits.back().value);
    min = std::min(min, logits.back().value);
  }
  const auto n = static_cast<double>(rows.size());
  const double rescalings = std::ceil(n / kBlock) + 2 * merges;
  const double common = Gamma(n + rescalings + 2 + 3 * rescalings + 2 * (max - min));
  const size_t dim = values[rows[0]].size();
  double sum = 0;
  double sum_error = 0;
  std::vector<double> columns(dim, 0.0);
  std::vector<double> column_errors(dim, 0.0);
  for (size_t i = 0; i < rows.size(); ++i) {
    const double weight = std::exp(logits[i].value - max);
    const double relative = (1 + Weight(logits[i], max)) * (1 + common) - 1;
    const double error = weight * relative + kSmallestNormal;
    sum += weight;
    sum_error += error;
    for (size_t x = 0; x < dim; ++x) {
      const double value = values[rows[i]][x];
      columns[x] += weight * value;
      column_errors[x] += error * std::fabs(value);
    }
  }
  for (size_t x = 0; x < dim; ++x) {
    const double out = columns[x] / sum;
    const double error = (column_errors[x] + std::fabs(out) * sum_error) / (sum - sum_error);
    result.out.push_back({out, error * (1 + Gamma(2)) + Gamma(2) * std::fabs(out)});
  }
  // The state's maximum is exact for its own logits; the sum's error is what shows in the
  // logarithm.
  double max_error = 0;
  for (const Bounded& logit : logits) max_error = std::max(max_error, logit.error);
  result.lse = {max + std::log(sum), max_error + sum_error / (sum - sum_error)};
  return result;
}

}  // namespace tactic::tolerance

#endif  // TACTIC_TESTS_CORE_TOLERANCE_H_
