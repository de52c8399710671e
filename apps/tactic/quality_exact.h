// Exact attention in double precision: what `tactic quality` judges the library by.
//
// Shares no code with the library's kernels. Keys and values are converted without loss, every sum
// is taken in double and in an order that depends on nothing but the sizes.
#ifndef TACTIC_APPS_QUALITY_EXACT_H_
#define TACTIC_APPS_QUALITY_EXACT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "tactic/rows_view.h"
#include "tactic/shape.h"

namespace tactic::app {

// One token to attend with: [q_heads][head_dim], contiguous; it sees the first `tokens` rows.
struct ExactQuery {
  const float* q = nullptr;
  int64_t tokens = 0;
};

class ExactAttention {
 public:
  // Tokens that are worth computing together: each row is converted once for all of them.
  static constexpr int kBatch = 8;

  // `keys` and `values`: f32, f16 or bf16; row i is position i.
  ExactAttention(const LayerShape& shape, double scale, double softcap, const RowsView& keys,
                 const RowsView& values);

  // REQUIRES: at least one token visible to each query.
  void Compute(std::span<const ExactQuery> queries);

  // Of query `i` of the last Compute. The masses, [tokens], add up to 1.
  std::span<const double> Masses(size_t i, int q_head) const;
  std::span<const double> Out(size_t i, int q_head) const;  // [value_dim]

 private:
  size_t Row(size_t i, int q_head) const {
    return i * static_cast<size_t>(shape_.q_heads) + static_cast<size_t>(q_head);
  }
  void Score(int kv_head);
  void Softmax(size_t i, int q_head);
  void Average(int kv_head);

  const LayerShape shape_;
  const double scale_;
  const double softcap_;
  const RowsView keys_;
  const RowsView values_;
  std::vector<ExactQuery> queries_;
  int64_t tokens_ = 0;          // most that a query sees
  std::vector<double> masses_;  // [queries][q_heads][tokens_]; logits at first
  std::vector<double> out_;     // [queries][q_heads][value_dim]
  std::vector<float> row_;
  std::vector<double> block_;  // rows in double
  std::vector<double> query_;  // [queries * group][head_dim]
};

// The smallest number of tokens that hold each target's share of the mass, most massive first.
// `masses` add up to 1. A target of 1 takes all of them.
std::vector<int64_t> OptimalTokens(std::span<const double> masses, std::span<const double> targets);

// |a - b| / |b|, Euclidean; 0 when both are zero.
double RelativeError(std::span<const float> a, std::span<const double> b);

}  // namespace tactic::app

#endif  // TACTIC_APPS_QUALITY_EXACT_H_
