#include "quality_exact.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "ggml.h"

namespace tactic::app {
namespace {

// Rows that are converted at once; with 64 dimensions they stay in a first-level cache.
constexpr int64_t kBlock = 32;
// Keys whose logits grow together: few enough for the registers of any CPU.
constexpr int64_t kTile = 8;
static_assert(kBlock % kTile == 0);

// A sum of doubles that was meant to be P exactly may fall short of it by its roundings.
constexpr double kRounding = 1e-12;

void LoadRow(const uint8_t* data, ElementType type, int64_t n, float* row) {
  switch (type) {
    case ElementType::kF16:
      return ggml_fp16_to_fp32_row(reinterpret_cast<const ggml_fp16_t*>(data), row, n);
    case ElementType::kBF16:
      return ggml_bf16_to_fp32_row(reinterpret_cast<const ggml_bf16_t*>(data), row, n);
    default:
      std::memcpy(row, data, static_cast<size_t>(n) * sizeof(float));
  }
}

const uint8_t* RowAt(const RowsView& rows, int head, int64_t position) {
  return rows.Head(head) + static_cast<size_t>(position) * rows.row_stride;
}

// dots[b] = q . key b, of kTile keys that lie kBlock apart in every dimension. The plain loops over
// a constant number of keys are what compilers turn into vector code on every architecture.
void DotTile(const double* q, const double* keys, int dim, double* dots) {
  double sums[kTile] = {};
  for (int d = 0; d < dim; ++d) {
    for (int64_t b = 0; b < kTile; ++b) sums[b] += q[d] * keys[d * kBlock + b];
  }
  std::copy_n(sums, kTile, dots);
}

}  // namespace

ExactAttention::ExactAttention(const LayerShape& shape, double scale, double softcap,
                               const RowsView& keys, const RowsView& values)
    : shape_(shape), scale_(scale), softcap_(softcap), keys_(keys), values_(values) {
  const auto largest = static_cast<size_t>(std::max(shape.head_dim, shape.value_dim));
  row_.resize(largest);
  block_.resize(largest * kBlock);
}

void ExactAttention::Compute(std::span<const ExactQuery> queries) {
  queries_.assign(queries.begin(), queries.end());
  tokens_ = 0;
  for (const ExactQuery& query : queries) tokens_ = std::max(tokens_, query.tokens);
  const size_t rows = queries.size() * static_cast<size_t>(shape_.q_heads);
  masses_.resize(rows * static_cast<size_t>(tokens_));
  out_.assign(rows * static_cast<size_t>(shape_.value_dim), 0.0);
  for (int h = 0; h < shape_.kv_heads; ++h) Score(h);
  for (size_t i = 0; i < queries.size(); ++i) {
    for (int h = 0; h < shape_.q_heads; ++h) Softmax(i, h);
  }
  for (int h = 0; h < shape_.kv_heads; ++h) Average(h);
}

void ExactAttention::Score(int kv_head) {
  const int dim = shape_.head_dim;
  query_.clear();
  for (const ExactQuery& query : queries_) {
    const float* first = query.q + static_cast<ptrdiff_t>(kv_head) * shape_.group() * dim;
    query_.insert(query_.end(), first, first + static_cast<ptrdiff_t>(shape_.group()) * dim);
  }
  for (int64_t begin = 0; begin < tokens_; begin += kBlock) {
    const int64_t count = std::min(kBlock, tokens_ - begin);
    for (int64_t b = 0; b < count; ++b) {
      LoadRow(RowAt(keys_, kv_head, begin + b), keys_.type, dim, row_.data());
      for (int d = 0; d < dim; ++d) block_[static_cast<size_t>(d * kBlock + b)] = row_[d];
    }
    const double* q = query_.data();
    for (size_t i = 0; i < queries_.size(); ++i) {
      for (int g = 0; g < shape_.group(); ++g, q += dim) {
        double dots[kBlock];
        for (int64_t b = 0; b < count; b += kTile) DotTile(q, block_.data() + b, dim, dots + b);
        double* logits = masses_.data() + Row(i, kv_head * shape_.group() + g) * tokens_ + begin;
        for (int64_t b = 0; b < count; ++b) logits[b] = dots[b] * scale_;
      }
    }
  }
}

void ExactAttention::Softmax(size_t i, int q_head) {
  double* logits = masses_.data() + Row(i, q_head) * static_cast<size_t>(tokens_);
  const int64_t n = queries_[i].tokens;
  if (softcap_ > 0) {
    for (int64_t p = 0; p < n; ++p) logits[p] = softcap_ * std::tanh(logits[p] / softcap_);
  }
  const double max = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int64_t p = 0; p < n; ++p) {
    logits[p] = std::exp(logits[p] - max);
    sum += logits[p];
  }
  for (int64_t p = 0; p < n; ++p) logits[p] /= sum;
  std::fill(logits + n, logits + tokens_, 0.0);  // not visible
}

void ExactAttention::Average(int kv_head) {
  const int dim = shape_.value_dim;
  for (int64_t begin = 0; begin < tokens_; begin += kBlock) {
    const int64_t count = std::min(kBlock, tokens_ - begin);
    for (int64_t b = 0; b < count; ++b) {
      LoadRow(RowAt(values_, kv_head, begin + b), values_.type, dim, row_.data());
      std::copy_n(row_.data(), dim, block_.data() + b * dim);
    }
    for (size_t i = 0; i < queries_.size(); ++i) {
      for (int g = 0; g < shape_.group(); ++g) {
        const size_t row = Row(i, kv_head * shape_.group() + g);
        const double* masses = masses_.data() + row * static_cast<size_t>(tokens_) + begin;
        double* out = out_.data() + row * static_cast<size_t>(dim);
        for (int64_t b = 0; b < count; ++b) {
          const double* value = block_.data() + b * dim;
          for (int d = 0; d < dim; ++d) out[d] += masses[b] * value[d];
        }
      }
    }
  }
}

std::span<const double> ExactAttention::Masses(size_t i, int q_head) const {
  return {masses_.data() + Row(i, q_head) * static_cast<size_t>(tokens_),
          static_cast<size_t>(queries_[i].tokens)};
}

std::span<const double> ExactAttention::Out(size_t i, int q_head) const {
  const auto dim = static_cast<size_t>(shape_.value_dim);
  return {out_.data() + Row(i, q_head) * dim, dim};
}

std::vector<int64_t> OptimalTokens(std::span<const double> masses,
                                   std::span<const double> targets) {
  const double most = *std::max_element(targets.begin(), targets.end());
  // Tokens below this mass are no more than masses.size() and hold less than 1 - P together: the
  // largest target is reached without them, and few have to be sorted.
  const double least = (1 - most) / static_cast<double>(masses.size());
  std::vector<double> sorted;
  std::copy_if(masses.begin(), masses.end(), std::back_inserter(sorted),
               [&](double mass) { return mass >= least; });
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  std::vector<int64_t> counts;
  for (const double target : targets) {
    double sum = 0;
    size_t count = 0;
    while (count < sorted.size() && sum < target - kRounding) sum += sorted[count++];
    counts.push_back(static_cast<int64_t>(target >= 1 ? masses.size() : count));
  }
  return counts;
}

double RelativeError(std::span<const float> a, std::span<const double> b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return difference == 0 ? 0 : std::sqrt(difference / norm);
}

}  // namespace tactic::app
