#include "src/planted_layer.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <iterator>
#include <new>
#include <span>

#include "src/cpu/kernels.h"
#include "src/encode_row.h"

namespace tactic {
namespace {

constexpr int kTopics = 64;
constexpr uint32_t kPassageLeast = 32, kPassageMost = 256;  // tokens
constexpr int kWanted = 4;                                  // topics that a query looks for
constexpr float kNoise = 0.6f;  // of keys, relative to a topic's direction
// Shares of the tokens that have 90 % of the mass, in turn: log-normal, with a deviation of 1. Real
// models: 3.1 % on average at 8,000 tokens, 5.8 and 3.6 % at 16K and 32K (tokens_optimal of
// bench/results/quality_*.json), and more of shorter texts.
constexpr double kNeeded[] = {0.013, 0.029, 0.055, 0.126};
constexpr double kTargetMass = 0.9;
constexpr int kValueRows = 256;
constexpr size_t kNoiseTable = size_t{1} << 15;

// Normal, but for its tails.
double Normal(Random* random) {
  const uint64_t bits = random->Next();
  double sum = 0;
  for (int i = 0; i < 8; ++i) sum += static_cast<double>(bits >> (8 * i) & 0xFF);
  constexpr double kMean = 8 * 127.5, kDeviation = 209.0;  // sqrt(8 (256^2 - 1) / 12)
  return (sum - kMean) / kDeviation;
}

}  // namespace

PlantedLayer::PlantedLayer(const LayerShape& shape, ElementType key_type, ElementType value_type,
                           int64_t capacity, int queries)
    : shape_(shape), key_type_(key_type), value_type_(value_type), queries_(queries) {
  Random random(1);
  noise_.resize(kNoiseTable);
  for (float& x : noise_) x = static_cast<float>(Normal(&random));
  topics_.resize(static_cast<size_t>(shape.kv_heads) * kTopics * shape.head_dim);
  const float unit = 1 / std::sqrt(static_cast<float>(shape.head_dim));
  for (float& x : topics_) x = unit * static_cast<float>(Normal(&random));
  const size_t value_bytes = RowBytes(value_type, static_cast<size_t>(shape.value_dim));
  value_rows_.resize(kValueRows * value_bytes);
  for (size_t i = 0; i < kValueRows; ++i)
    EncodeRow(value_type, Noise(&random, shape.value_dim), value_rows_.data() + i * value_bytes);
  const auto rows = static_cast<size_t>(capacity) * static_cast<size_t>(shape.kv_heads);
  keys_ = Allocate(rows * RowBytes(key_type, static_cast<size_t>(shape.head_dim)));
  values_ = Allocate(rows * value_bytes);
  for (int h = 0; h < shape.kv_heads; ++h) heads_.emplace_back(random.Next());
  q_.resize(static_cast<size_t>(queries) * shape.q_heads * shape.head_dim);
}

// In huge pages where there are any, as the engine's cache is.
PlantedLayer::Memory PlantedLayer::Allocate(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  Memory memory(static_cast<uint8_t*>(std::aligned_alloc(kHugePage, bytes)));
  if (memory == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(memory.get(), bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

RowsView PlantedLayer::View(const uint8_t* data, ElementType type, int dim) const {
  const size_t bytes = RowBytes(type, static_cast<size_t>(dim));
  return {data, type, bytes * static_cast<size_t>(shape_.kv_heads), bytes};
}

float PlantedLayer::scale() const { return 1 / std::sqrt(static_cast<float>(shape_.head_dim)); }

std::span<const float> PlantedLayer::Noise(Random* random, int dim) const {
  const uint32_t places = static_cast<uint32_t>(kNoiseTable) - static_cast<uint32_t>(dim);
  return std::span(noise_).subspan(random->Below(places), static_cast<size_t>(dim));
}

void PlantedLayer::Grow(int kv_head, int64_t tokens) {
  Head& head = heads_[static_cast<size_t>(kv_head)];
  Random& random = head.random;
  const int dim = shape_.head_dim;
  const RowsView keys = this->keys(), values = this->values();
  const size_t value_bytes = values.head_stride;
  const float noise_size = kNoise / std::sqrt(static_cast<float>(dim));
  std::vector<float> key(static_cast<size_t>(dim));
  for (auto t = std::ssize(head.topic_of); t < tokens; ++t) {
    if (t >= head.passage_end) {
      head.passage_end = t + kPassageLeast + random.Below(kPassageMost - kPassageLeast);
      head.topic_of.push_back(static_cast<uint8_t>(random.Below(kTopics)));
    } else {
      head.topic_of.push_back(head.topic_of.back());
    }
    const float* topic = topics_.data() + (int64_t{kv_head} * kTopics + head.topic_of.back()) * dim;
    const std::span<const float> noise = Noise(&random, dim);
    for (int i = 0; i < dim; ++i) key[i] = topic[i] + noise_size * noise[i];
    const auto cell = static_cast<size_t>(t);
    EncodeRow(key_type_, key, const_cast<uint8_t*>(keys.Head(kv_head)) + cell * keys.row_stride);
    std::memcpy(const_cast<uint8_t*>(values.Head(kv_head)) + cell * values.row_stride,
                value_rows_.data() + random.Below(kValueRows) * value_bytes, value_bytes);
  }
  MakeQueries(kv_head);
}

void PlantedLayer::MakeQueries(int kv_head) {
  Head& head = heads_[static_cast<size_t>(kv_head)];
  const int dim = shape_.head_dim;
  for (int query = 0; query < queries_; ++query) {
    // Topics that occur, the longer ones more likely; the group's heads weigh them differently.
    const float* wanted[kWanted];
    for (const float*& topic : wanted) {
      const uint32_t token = head.random.Below(static_cast<uint32_t>(head.topic_of.size()));
      topic = topics_.data() + (int64_t{kv_head} * kTopics + head.topic_of[token]) * dim;
    }
    const double needed = kNeeded[(query + kv_head) % std::ssize(kNeeded)];
    for (int g = 0; g < shape_.group(); ++g) {
      float* q = q_.data() + (int64_t{query} * shape_.q_heads + kv_head * shape_.group() + g) * dim;
      std::fill_n(q, dim, 0.0f);
      for (const float* topic : wanted) {
        const float weight = 0.8f + 0.2f * static_cast<float>(head.random.Below(1000)) / 1000;
        for (int i = 0; i < dim; ++i) q[i] += weight * topic[i];
      }
      Sharpen(kv_head, needed, q);
    }
  }
}

void PlantedLayer::Sharpen(int kv_head, double needed, float* q) const {
  constexpr size_t kSample = 512;
  const auto tokens = heads_[static_cast<size_t>(kv_head)].topic_of.size();
  const size_t n = std::min(kSample, tokens);
  uint32_t cells[kSample];
  float logits[kSample];
  for (size_t i = 0; i < n; ++i) cells[i] = static_cast<uint32_t>(i * tokens / n);
  const RowsView keys = this->keys();
  const auto dim = static_cast<size_t>(shape_.head_dim);
  cpu::ScoreRows({q, dim, 1, scale(), 0},
                 {keys.Head(kv_head), keys.row_stride, keys.type, shape_.head_dim}, cells, n,
                 logits, n);
  std::sort(logits, logits + n, std::greater<>());
  // The share of the mass that the first `needed` have grows with sharpness.
  const auto first = static_cast<size_t>(
      std::clamp(needed * static_cast<double>(n), 1.0, static_cast<double>(n) / 2));
  const auto mass = [&](float sharpness) {
    double all = 0, own = 0;
    for (size_t i = 0; i < n; ++i) {
      all += std::exp(sharpness * (logits[i] - logits[0]));
      if (i + 1 == first) own = all;
    }
    return own / all;
  };
  constexpr int kSteps = 16;
  float low = 0, high = 2000;
  for (int i = 0; i < kSteps; ++i) {
    const float middle = (low + high) / 2;
    (mass(middle) < kTargetMass ? low : high) = middle;
  }
  for (size_t i = 0; i < dim; ++i) q[i] *= high;
}

std::vector<float> PlantedLayer::QueryNorms() const {
  const int dim = shape_.group() * shape_.head_dim;
  std::vector<float> norms(static_cast<size_t>(shape_.kv_heads));
  for (int query = 0; query < queries_; ++query) {
    for (int h = 0; h < shape_.kv_heads; ++h) {
      for (const float x : std::span(Query(query) + h * dim, static_cast<size_t>(dim)))
        norms[h] += x * x;
    }
  }
  for (float& norm : norms)
    norm *= scale() * scale() / static_cast<float>(queries_ * shape_.group());
  return norms;
}

}  // namespace tactic
