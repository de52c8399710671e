// Tokens that matter in clusters that do not: keys whose topic no query looks for, but with a
// direction of their own that some share. A cluster's spread says nothing about them, only how much
// longer a residual is than the others. No selection may lose them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <span>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "src/half.h"
#include "tactic/decode.h"
#include "tactic/sequence_index.h"

namespace tactic {
namespace {

constexpr int kTokens = 8192;
constexpr int kHeads = 4;
constexpr int kTopics = 64;
constexpr int kPassage = 64;          // tokens on one topic
constexpr float kNoise = 0.6f;        // of a key, relative to its topic's direction
constexpr float kSharpness = 9;       // logit of a topic's tokens, above the others'
constexpr double kHeavyShare = 0.25;  // of the mass of everything else

using Vector = std::vector<float>;

class HeavyTokens {
 public:
  HeavyTokens(int dim, int every, uint64_t seed)
      : dim_(dim), every_(every), random_(seed), cells_(kTokens) {
    std::iota(cells_.begin(), cells_.end(), 0u);
    own_ = Direction();
    for (int i = 0; i < kTopics; ++i) topics_.push_back(Direction());
    const Vector* topic = nullptr;
    for (int token = 0; token < kTokens; ++token) {
      if (token % kPassage == 0) topic = &topics_[random_() % kTopics];
      for (int x = 0; x < dim_; ++x) {
        const float noise = kNoise * normal_(random_) / std::sqrt(static_cast<float>(dim_));
        const float own = IsHeavy(token) ? own_[x] : 0;
        keys_.push_back(FloatToHalf((*topic)[x] + noise + own));
      }
    }
  }

  // Three topics, and as much of the heavy tokens' direction as gives them their share.
  Vector Query() {
    Vector q(dim_);
    for (int i = 0; i < 3; ++i) {
      const Vector& topic = topics_[random_() % kTopics];
      for (int x = 0; x < dim_; ++x) q[x] += kSharpness * topic[x];
    }
    double all = 0;
    double heavy = 0;
    for (int token = 0; token < kTokens; ++token) {
      double logit = 0;
      for (int x = 0; x < dim_; ++x) logit += q[x] * HalfToFloat(keys_[token * dim_ + x]);
      (IsHeavy(token) ? heavy : all) += std::exp(logit);
    }
    const auto along = static_cast<float>(std::log(kHeavyShare * all / heavy));
    for (int x = 0; x < dim_; ++x) q[x] += along * own_[x];
    return q;
  }

  RowsView Keys() const {
    const size_t bytes = sizeof(uint16_t) * static_cast<size_t>(dim_);
    return {reinterpret_cast<const uint8_t*>(keys_.data()), ElementType::kF16, bytes, bytes};
  }
  std::span<const uint32_t> cells() const { return cells_; }

 private:
  Vector Direction() {
    Vector v(dim_);
    double norm = 0;
    for (float& x : v) x = normal_(random_);
    for (float x : v) norm += double{x} * x;
    for (float& x : v) x /= static_cast<float>(std::sqrt(norm));
    return v;
  }

  bool IsHeavy(int token) const { return token % every_ == every_ / 2; }

  int dim_;
  int every_;
  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
  std::vector<uint32_t> cells_;
  Vector own_;
  std::vector<Vector> topics_;
  std::vector<uint16_t> keys_;
};

// head_dim, and one of how many tokens is heavy.
using Param = std::tuple<int, int>;
class HeavyTokensTest : public testing::TestWithParam<Param> {};

TEST_P(HeavyTokensTest, AreFoundInClustersThatAreNotLookedFor) {
  const auto [dim, every] = GetParam();
  const LayerShape shape = {kHeads, 1, dim, dim};
  const Options options;
  int cases = 0;
  double least = 1;
  double bytes = 0;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    HeavyTokens text(dim, every, seed);
    SequenceIndex index(shape, options);
    index.Append(kTokens);
    const int units = index.PlanBuild();
    for (int u = 0; u < units; ++u) index.BuildUnit(u, text.Keys(), text.Keys(), text.cells());
    DecodeStep step;
    for (int query = 0; query < 4; ++query) {
      Vector q;
      for (int h = 0; h < kHeads; ++h) {
        const Vector of_head = text.Query();
        q.insert(q.end(), of_head.begin(), of_head.end());
      }
      Vector out(q.size());
      const auto stride = static_cast<size_t>(dim);
      const DecodeRequest request = {q.data(),     stride, text.Keys(), text.Keys(),
                                     text.cells(), &index, out.data(),  stride};
      const Status status = step.Plan(shape, options, {1, 0, true}, {&request, 1}, 1);
      ASSERT_TRUE(status.ok()) << status.message();
      step.Run();
      for (const HeadReport& report : step.head_reports()) {
        ++cases;
        least = std::min(least, report.own_mass);
        EXPECT_GE(report.own_mass, options.target - 0.01) << seed << ' ' << query;
      }
      const DecodeStats stats = step.stats();
      bytes += static_cast<double>(stats.bytes_read) / static_cast<double>(stats.bytes_dense);
    }
  }
  bytes *= kHeads / static_cast<double>(cases);
  std::printf("[ MEASURED ] heavy tokens: %d cases, least mass %.3f, %.1f %% of bytes\n", cases,
              least, 100 * bytes);
  EXPECT_LT(bytes, 0.4);
}

INSTANTIATE_TEST_SUITE_P(Shapes, HeavyTokensTest,
                         testing::Combine(testing::Values(64, 128, 256),
                                          testing::Values(100, 1000)));

}  // namespace
}  // namespace tactic
