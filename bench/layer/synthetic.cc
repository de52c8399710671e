#include "bench/layer/synthetic.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <span>
#include <thread>

#include "bench/synthetic/text.h"
#include "src/cpu/kernels.h"
#include "src/half.h"

namespace tactic::bench {
namespace {

using synthetic::kRecent;
using synthetic::Nearness;
using synthetic::Shares;
using synthetic::Solve;

constexpr int kTopics = 6;      // that a query looks for
constexpr double kSpread = 1;   // standard deviation of the log of the tokens that queries need
constexpr double kNoise = 0.6;  // of keys, relative to a topic's direction

using Vector = std::vector<double>;

double Dot(const Vector& a, const Vector& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

// A random direction, orthogonal to `to`.
Vector Direction(size_t dim, std::mt19937_64& random, std::span<const Vector> to) {
  std::normal_distribution<double> normal;
  Vector v(dim);
  for (double& x : v) x = normal(random);
  for (const Vector& u : to) {
    const double along = Dot(u, v);
    for (size_t i = 0; i < dim; ++i) v[i] -= along * u[i];
  }
  const double norm = std::sqrt(Dot(v, v));
  for (double& x : v) x /= norm;
  return v;
}

// Directions of what is no topic.
enum Special { kSink, kNew, kSingle, kSpecials };

// The fewest of `sorted` (descending) that have `share` of the sum of exp(sharpness * x).
double Fewest(const std::vector<float>& sorted, double sharpness, double share) {
  double all = 0;
  for (const float x : sorted) all += std::exp(sharpness * (x - sorted[0]));
  double sum = 0;
  size_t n = 0;
  while (n < sorted.size() && sum < share * all)
    sum += std::exp(sharpness * (sorted[n++] - sorted[0]));
  return static_cast<double>(n);
}

}  // namespace

// One KV head: its keys, values and queries.
class SyntheticHead {
 public:
  SyntheticHead(SyntheticLayer& layer, int kv_head, uint64_t seed)
      : layer_(layer),
        kv_head_(kv_head),
        dim_(static_cast<size_t>(layer.shape_.head_dim)),
        random_(seed * 1000003 + static_cast<uint64_t>(kv_head)),
        noise_(size_t{1} << 18) {
    std::normal_distribution<double> normal;
    for (float& x : noise_) x = static_cast<float>(normal(random_));
    for (int i = 0; i < kSpecials; ++i) specials_.push_back(Direction(dim_, random_, specials_));
  }

  void FillRows() {
    const synthetic::Passages passages(layer_.tokens_, random_);
    for (size_t topic = 0; topic < passages.topics; ++topic) {
      topics_.push_back(Direction(dim_, random_, specials_));
      means_.push_back(Direction(static_cast<size_t>(layer_.shape_.value_dim), random_, {}));
    }
    for (const synthetic::Passage& passage : passages.all) {
      for (int64_t token = passage.begin; token < passage.end; ++token)
        FillRow(token, passage.topic);
    }
    singles_ = synthetic::HeavyTokens(layer_.tokens_, random_);
    for (const int64_t token : singles_) Add(token, kSingle, 1);
    Add(0, kSink, 1);
    for (int64_t age = 0; age < kRecent; ++age) Add(layer_.tokens_ - 1 - age, kNew, Nearness(age));
  }

  // Directions of all queries, without what is no topic.
  void FillQueries() {
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform(0.8, 1.0);
    for (int query = 0; query < layer_.queries_; ++query) {
      std::vector<size_t> wanted(kTopics);
      for (size_t& topic : wanted) topic = random_() % topics_.size();
      for (int g = 0; g < layer_.shape_.group(); ++g) {
        float* q = Q(query, g);
        Vector sum(dim_);
        for (const size_t topic : wanted) {
          const double weight = uniform(random_);
          for (size_t i = 0; i < dim_; ++i) sum[i] += weight * topics_[topic][i];
        }
        for (size_t i = 0; i < dim_; ++i) q[i] = static_cast<float>(sum[i] / layer_.scale());
        shares_.push_back(synthetic::RandomShares(random_));
      }
    }
  }

  std::vector<float> Logits(int query, int g) const {
    std::vector<uint32_t> cells(static_cast<size_t>(layer_.tokens_));
    std::iota(cells.begin(), cells.end(), 0u);
    std::vector<float> logits(cells.size());
    const RowsView keys = layer_.keys();
    cpu::ScoreRows({Q(query, g), dim_, 1, layer_.scale(), 0},
                   {keys.Head(kv_head_), keys.row_stride, keys.type, layer_.shape_.head_dim},
                   cells.data(), cells.size(), logits.data(), cells.size());
    return logits;
  }

  // The sharpness of a query with which the mean of the fewest tokens, over the group, is `needed`.
  double Sharpness(int query, double needed) const {
    std::vector<std::vector<float>> sorted;
    for (int g = 0; g < layer_.shape_.group(); ++g) {
      sorted.push_back(Logits(query, g));
      std::sort(sorted.back().begin(), sorted.back().end(), std::greater<>());
    }
    const auto fewer = [&](double sharpness) {
      double sum = 0;
      for (int g = 0; g < layer_.shape_.group(); ++g) {
        sum += Fewest(sorted[static_cast<size_t>(g)], sharpness,
                      synthetic::ShareOfTopics(SharesOf(query, g), synthetic::kNeededMass));
      }
      return -sum / layer_.shape_.group();
    };
    return Solve(fewer, -needed, 100);
  }

  // Queries that need that many tokens on average, with everything else in its share.
  void Sharpen(double needed) {
    std::normal_distribution<double> normal(-kSpread * kSpread / 2, kSpread);
    for (int query = 0; query < layer_.queries_; ++query) {
      const double wanted = needed * std::exp(normal(random_));
      const double sharpness =
          Sharpness(query, std::clamp(wanted, 4.0, static_cast<double>(layer_.tokens_) / 4));
      for (int g = 0; g < layer_.shape_.group(); ++g) {
        float* q = Q(query, g);
        for (size_t i = 0; i < dim_; ++i) q[i] = static_cast<float>(q[i] * sharpness);
        const std::vector<float> logits = Logits(query, g);
        const double most = *std::max_element(logits.begin(), logits.end());
        double all = 0;
        for (const float x : logits) all += std::exp(x - most);
        const Shares& shares = SharesOf(query, g);
        const double total = all / shares.Topics();
        const auto strength = [&](double share, std::span<const int64_t> at, const auto& by) {
          const auto mass = [&](double x) {
            double sum = 0;
            for (const int64_t t : at)
              sum += std::exp(logits[static_cast<size_t>(t)] - most + x * by(t));
            return sum;
          };
          return Solve(mass, share * total, 60);
        };
        const int64_t sink[] = {0};
        std::vector<int64_t> recent(kRecent);
        std::iota(recent.begin(), recent.end(), layer_.tokens_ - kRecent);
        const auto one = [](int64_t) { return 1.0; };
        const double along[kSpecials] = {
            strength(shares.sink, sink, one),
            strength(shares.recent, recent,
                     [&](int64_t t) { return Nearness(layer_.tokens_ - 1 - t); }),
            strength(shares.single, singles_, one)};
        for (int s = 0; s < kSpecials; ++s) {
          for (size_t i = 0; i < dim_; ++i)
            q[i] += static_cast<float>(along[s] * specials_[static_cast<size_t>(s)][i] /
                                       layer_.scale());
        }
      }
    }
  }

 private:
  const Shares& SharesOf(int query, int g) const {
    return shares_[static_cast<size_t>(query * layer_.shape_.group() + g)];
  }
  float* Q(int query, int g) const {
    const auto& shape = layer_.shape_;
    const int head = kv_head_ * shape.group() + g;
    return layer_.q_.data() + (int64_t{query} * shape.q_heads + head) * shape.head_dim;
  }
  uint16_t* Row(HugeHalves& rows, int64_t token, size_t dim) const {
    return rows.data() + static_cast<size_t>(token * layer_.shape_.kv_heads + kv_head_) * dim;
  }
  const float* Noise(size_t n) { return noise_.data() + random_() % (noise_.size() - n); }

  void FillRow(int64_t token, size_t topic) {
    const float* noise = Noise(dim_);
    double along[kSpecials];  // of the noise: taken out, so that shares come out as wanted
    for (size_t s = 0; s < kSpecials; ++s)
      along[s] = std::inner_product(noise, noise + dim_, specials_[s].begin(), 0.0);
    const double size = kNoise / std::sqrt(static_cast<double>(dim_));
    uint16_t* key = Row(layer_.keys_, token, dim_);
    for (size_t i = 0; i < dim_; ++i) {
      double x = noise[i];
      for (size_t s = 0; s < kSpecials; ++s) x -= along[s] * specials_[s][i];
      key[i] = FloatToHalf(static_cast<float>(topics_[topic][i] + size * x));
    }
    const auto value_dim = static_cast<size_t>(layer_.shape_.value_dim);
    noise = Noise(value_dim);
    uint16_t* value = Row(layer_.values_, token, value_dim);
    for (size_t i = 0; i < value_dim; ++i) {
      value[i] = FloatToHalf(static_cast<float>(means_[topic][i]) +
                             noise[i] / std::sqrt(static_cast<float>(value_dim)));
    }
  }

  void Add(int64_t token, Special special, double size) {
    uint16_t* key = Row(layer_.keys_, token, dim_);
    for (size_t i = 0; i < dim_; ++i)
      key[i] = FloatToHalf(HalfToFloat(key[i]) + static_cast<float>(size * specials_[special][i]));
  }

  SyntheticLayer& layer_;
  int kv_head_;
  size_t dim_;
  std::mt19937_64 random_;
  std::vector<float> noise_;  // rows of it begin anywhere
  std::vector<Vector> specials_;
  std::vector<Vector> topics_, means_;
  std::vector<int64_t> singles_;
  std::vector<Shares> shares_;  // [query][g]
};

SyntheticLayer::SyntheticLayer(const LayerShape& shape, int64_t tokens, int64_t needed, int queries,
                               uint64_t seed)
    : shape_(shape),
      tokens_(tokens),
      queries_(queries),
      keys_(static_cast<size_t>(tokens * shape.kv_heads * shape.head_dim)),
      values_(static_cast<size_t>(tokens * shape.kv_heads * shape.value_dim)),
      q_(static_cast<size_t>(queries * shape.q_heads * shape.head_dim)) {
  std::vector<SyntheticHead> heads;
  for (int h = 0; h < shape.kv_heads; ++h) heads.emplace_back(*this, h, seed);
  const auto for_all = [&](const auto& f) {
    std::vector<std::thread> threads;
    threads.reserve(heads.size());
    for (SyntheticHead& head : heads) threads.emplace_back([&] { f(head); });
    for (std::thread& thread : threads) thread.join();
  };
  for_all([&](SyntheticHead& head) {
    head.FillRows();
    head.FillQueries();
    head.Sharpen(static_cast<double>(needed));
  });
}

float SyntheticLayer::scale() const { return 1 / std::sqrt(static_cast<float>(shape_.head_dim)); }

RowsView SyntheticLayer::View(const HugeHalves& rows, int dim) const {
  const size_t bytes = sizeof(uint16_t) * static_cast<size_t>(dim);
  return {reinterpret_cast<const uint8_t*>(rows.data()), ElementType::kF16,
          bytes * static_cast<size_t>(shape_.kv_heads), bytes};
}

synthetic::MassFacts FactsOf(const SyntheticLayer& layer, int query, int q_head) {
  const LayerShape& shape = layer.shape();
  const auto n = static_cast<size_t>(layer.tokens());
  const float* q = layer.Query(query) + int64_t{q_head} * shape.head_dim;
  const RowsView keys = layer.keys();
  std::vector<double> x(n);
  for (size_t t = 0; t < n; ++t) {
    const auto* key =
        reinterpret_cast<const uint16_t*>(keys.Head(q_head / shape.group()) + t * keys.row_stride);
    double dot = 0;
    for (int i = 0; i < shape.head_dim; ++i) dot += double{q[i]} * HalfToFloat(key[i]);
    x[t] = dot * layer.scale();
  }
  return synthetic::FactsOf(x);
}

}  // namespace tactic::bench
