// The arithmetic behind `tactic quality`: exact attention, the smallest selection that would do,
// and what cases are summarised to.
#include "quality_stats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "quality_exact.h"

namespace tactic::app {
namespace {

TEST(QualityExact, OptimalTokensTakesTheLargestFirst) {
  const std::vector<double> masses = {0.1, 0.5, 0.05, 0.3, 0.05};
  const std::vector<double> targets = {0.4, 0.5, 0.51, 0.8, 0.9, 0.91, 0.95, 1};
  EXPECT_EQ(OptimalTokens(masses, targets), (std::vector<int64_t>{1, 1, 2, 2, 3, 4, 4, 5}));
}

TEST(QualityExact, OptimalTokensOfEqualMasses) {
  // Ten times 0.1 is less than 1, and nine times less than 0.9: roundings must not cost a token.
  EXPECT_EQ(OptimalTokens(std::vector<double>(10, 0.1), std::vector<double>{0.3, 0.9, 1}),
            (std::vector<int64_t>{3, 9, 10}));
}

TEST(QualityExact, OptimalTokensIsTheSortedPrefix) {
  std::mt19937 random(7);
  std::exponential_distribution<double> heavy(0.3);
  for (int round = 0; round < 50; ++round) {
    std::vector<double> masses(500);
    for (double& mass : masses) mass = std::exp(heavy(random));
    const double sum = std::accumulate(masses.begin(), masses.end(), 0.0);
    for (double& mass : masses) mass /= sum;
    std::vector<double> sorted = masses;
    std::sort(sorted.rbegin(), sorted.rend());
    const std::vector<double> targets = {0.2, 0.9, 0.999};
    std::vector<int64_t> expected;
    for (const double target : targets) {
      double prefix = 0;
      int64_t count = 0;
      while (prefix < target) prefix += sorted[static_cast<size_t>(count++)];
      expected.push_back(count);
    }
    EXPECT_EQ(OptimalTokens(masses, targets), expected);
  }
}

TEST(QualityExact, RelativeError) {
  EXPECT_DOUBLE_EQ(RelativeError(std::vector<float>{3, 4}, std::vector<double>{3, 0}), 4.0 / 3);
  EXPECT_EQ(RelativeError(std::vector<float>{0, 0}, std::vector<double>{0, 0}), 0);
}

TEST(QualityExact, QueriesSeeOnlyTheirTokens) {
  // Keys 0, 1, 2, ... in one dimension, values the same: attention is a known sum.
  constexpr int kTokens = 75;  // no multiple of a block
  std::vector<float> rows(kTokens * 8, 0.0F);
  for (int i = 0; i < kTokens; ++i) rows[static_cast<size_t>(i * 8)] = 0.1F * static_cast<float>(i);
  const RowsView view = {reinterpret_cast<const uint8_t*>(rows.data()), ElementType::kF32, 32, 0};
  const LayerShape shape = {2, 1, 8, 8};
  std::vector<float> q(16, 0.0F);
  q[0] = 1;
  q[8] = -2;
  ExactAttention exact(shape, 0.5, 0, view, view);
  exact.Compute(std::vector<ExactQuery>{{q.data(), 40}, {q.data(), kTokens}, {q.data(), 1}});
  const int visible[] = {40, kTokens, 1};
  for (size_t i = 0; i < 3; ++i) {
    for (int head = 0; head < 2; ++head) {
      const std::span<const double> masses = exact.Masses(i, head);
      ASSERT_EQ(std::ssize(masses), visible[i]);
      double sum = 0, out = 0;
      for (int p = 0; p < visible[i]; ++p) {
        const double x = rows[static_cast<size_t>(p * 8)];
        const double weight = std::exp((head == 0 ? 0.5 : -1) * x);
        sum += weight;
        out += weight * x;
      }
      for (int p = 0; p < visible[i]; ++p) {
        const double x = rows[static_cast<size_t>(p * 8)];
        EXPECT_NEAR(masses[static_cast<size_t>(p)], std::exp((head == 0 ? 0.5 : -1) * x) / sum,
                    1e-15);
      }
      EXPECT_NEAR(exact.Out(i, head)[0], out / sum, 1e-14);
      EXPECT_EQ(exact.Out(i, head)[1], 0);
    }
  }
}

TEST(QualityStats, PercentileIsTheNearestRank) {
  std::vector<double> values;
  for (int i = 200; i >= 1; --i) values.push_back(i);
  EXPECT_EQ(Percentile(values, 0.01), 2);
  EXPECT_EQ(Percentile(values, 0.99), 198);
  EXPECT_EQ(Percentile(values, 1), 200);
  EXPECT_EQ(Percentile({5}, 0.01), 5);
  EXPECT_TRUE(std::isnan(Percentile({}, 0.5)));
}

TEST(QualityStats, WilsonInterval) {
  // From Wilson's formula by hand: 81 of 263.
  const auto [low, high] = WilsonInterval(81, 263);
  EXPECT_NEAR(low, 0.2553, 5e-5);
  EXPECT_NEAR(high, 0.3662, 5e-5);
  EXPECT_DOUBLE_EQ(WilsonInterval(10, 10).second, 1);
  EXPECT_LT(WilsonInterval(10, 10).first, 0.75);
  EXPECT_NEAR(WilsonInterval(0, 10).first, 0, 1e-15);
  EXPECT_TRUE(std::isnan(WilsonInterval(0, 0).first));
}

// Two layers of hand-made cases at target 0.9.
TEST(QualityStats, EveryField) {
  const auto one = [](double own, double group, double error, double p_hat, int rounds,
                      int64_t rows) {
    QualityCase c;
    c.own_mass = own;
    c.union_mass = group;
    c.output_error = error;
    c.p_hat = p_hat;
    c.code_error = 0.5;
    c.own_rows = rows;
    c.union_rows = 2 * rows;
    c.optimal_rows = 10;
    c.visible_rows = 100;
    c.rounds = rounds;
    return c;
  };
  std::vector<PolicyReplay> layers(2);
  layers[0].index_bytes = 10;
  layers[0].kv_bytes = 100;
  layers[0].build_ns = 1'000'000;
  layers[0].targets = {{},
                       {{one(0.8991, 0.95, 0.1, 0.9, 0, 20), one(0.84, 0.9, 0.3, 0.91, 1, 30)},
                        {{0.5, 0.1, 0.2, 0.2}}}};
  layers[1].index_bytes = 20;
  layers[1].kv_bytes = 100;
  layers[1].build_ns = 3'000'000;
  layers[1].targets = {{},
                       {{one(0.95, 0.97, 0.2, 0.89, 2, 40), one(0.8989, 0.8989, 0.4, 0.8, 0, 10)},
                        {{0.3, 0.1, 0.1, 0.1}}}};
  QualityPool pool(0.9);
  for (const PolicyReplay& layer : layers) pool.Add(layer, 1);
  pool.SetTraces(2);
  const QualityPool::Fields fields = pool.Summarize();
  const auto at = [&](const std::string& name) { return FieldOf(fields, name); };
  EXPECT_EQ(at("cases"), 4);
  EXPECT_EQ(at("target_reached_share"), 0.5);  // 0.8991 counts, 0.8989 does not
  EXPECT_EQ(at("target_reached_share_union"), 0.75);
  EXPECT_NEAR(at("target_reached_share_95.low"), 0.15, 0.001);
  EXPECT_NEAR(at("target_reached_share_95.high"), 0.85, 0.001);
  EXPECT_NEAR(at("mass_mean"), (0.8991 + 0.84 + 0.95 + 0.8989) / 4, 1e-15);
  EXPECT_EQ(at("mass_p1"), 0.84);
  EXPECT_EQ(at("mass_min"), 0.84);
  EXPECT_NEAR(at("union_mass_mean"), (0.95 + 0.9 + 0.97 + 0.8989) / 4, 1e-15);
  EXPECT_EQ(at("union_mass_min"), 0.8989);
  EXPECT_EQ(at("tokens"), 25);
  EXPECT_EQ(at("tokens_union"), 50);
  EXPECT_EQ(at("tokens_optimal"), 10);
  EXPECT_EQ(at("tokens_visible"), 100);
  EXPECT_EQ(at("tokens_over_optimal"), 2.5);
  EXPECT_EQ(at("tokens_union_over_optimal"), 5);
  EXPECT_DOUBLE_EQ(at("bytes_read_fraction.total"), 0.4);
  EXPECT_DOUBLE_EQ(at("bytes_read_fraction.clusters"), 0.1);
  EXPECT_DOUBLE_EQ(at("bytes_read_fraction.codes"), 0.15);
  EXPECT_DOUBLE_EQ(at("bytes_read_fraction.rows"), 0.15);
  EXPECT_DOUBLE_EQ(at("output_error_mean"), 0.25);
  EXPECT_EQ(at("output_error_p99"), 0.4);
  EXPECT_DOUBLE_EQ(at("p_hat_mean"), 0.875);
  EXPECT_EQ(at("p_hat_min"), 0.8);
  EXPECT_EQ(at("p_hat_overclaims"), 1);  // 0.84 with a p_hat of 0.91
  EXPECT_EQ(at("extended_share"), 0.5);
  EXPECT_EQ(at("code_error_mean"), 0.5);
  EXPECT_DOUBLE_EQ(at("index_bytes_fraction"), 0.15);
  EXPECT_DOUBLE_EQ(at("index_build_ms"), 2);
  EXPECT_EQ(fields.size(), 29U);
}

TEST(QualityStats, WithoutBelief) {
  PolicyReplay layer;
  layer.targets.resize(1);
  layer.targets[0].cases.resize(3);
  QualityPool pool(0.9);
  pool.Add(layer, 0);
  const QualityPool::Fields fields = pool.Summarize();
  for (const char* name : {"p_hat_mean", "p_hat_min", "p_hat_overclaims", "code_error_mean"}) {
    EXPECT_TRUE(std::isnan(FieldOf(fields, name))) << name;
  }
}

}  // namespace
}  // namespace tactic::app
