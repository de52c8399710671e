#include "measure.h"

#include <gtest/gtest.h>

#include <cmath>

namespace tactic::app {
namespace {

using llama::HookStats;
using llama::Policy;

TEST(Measure, Quantiles) {
  std::vector<double> values;
  for (int i = 100; i >= 0; --i) values.push_back(i);
  const Quantiles quantiles = Summarize(values);
  EXPECT_EQ(quantiles.p10, 10);
  EXPECT_EQ(quantiles.median, 50);
  EXPECT_EQ(quantiles.p90, 90);
  EXPECT_TRUE(std::isnan(Summarize({}).median));
  EXPECT_TRUE(ToJson(Summarize({})).is_null());
}

TEST(Measure, FractionsAreOfTotals) {
  Cost cost(Policy::kPaper);
  HookStats stats;
  stats.tokens = 1;
  stats.rows_read = 10;
  stats.rows_dense = 100;
  stats.bytes_read = 30;
  stats.bytes_dense = 100;
  cost.AddReads(stats);
  stats.rows_read = 50;
  cost.AddReads(stats);
  EXPECT_DOUBLE_EQ(cost.RowsFraction(), 0.3);
  EXPECT_DOUBLE_EQ(cost.BytesFraction(), 0.3);
  EXPECT_DOUBLE_EQ(cost.RowsPerStep(), 30);
}

TEST(Measure, StockReadsEverything) {
  const Cost cost(Policy::kStock);
  EXPECT_EQ(cost.RowsFraction(), 1);
  EXPECT_EQ(cost.MassReached()->own_mean, 1);
}

TEST(Measure, MassIsAbsentUntilMeasured) {
  Cost cost(Policy::kPaper);
  EXPECT_FALSE(cost.MassReached().has_value());
  nlohmann::json record;
  cost.AddTo(&record);
  EXPECT_TRUE(record["mass_reached_mean"].is_null());
  HookStats stats;
  stats.cases = 4;
  stats.own_mass_sum = 3.6;
  stats.own_reached = 3;
  stats.union_mass_sum = 3.8;
  stats.union_reached = 4;
  cost.AddMass(stats);
  EXPECT_DOUBLE_EQ(cost.MassReached()->own_mean, 0.9);
  EXPECT_DOUBLE_EQ(cost.MassReached()->own_reached, 0.75);
  EXPECT_DOUBLE_EQ(cost.MassReached()->union_reached, 1);
}

}  // namespace
}  // namespace tactic::app
