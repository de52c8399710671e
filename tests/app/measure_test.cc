#include "measure.h"

#include <gtest/gtest.h>

#include <cmath>

namespace tactic::app {
namespace {

using llama::HookOptions;
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
  Cost cost(HookOptions::For(Policy::kPaper));
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
  const Cost cost(HookOptions::For(Policy::kStock));
  EXPECT_EQ(cost.RowsFraction(), 1);
  EXPECT_EQ(cost.MassReached()->own_mean, 1);
}

TEST(Measure, MassIsAbsentUntilMeasured) {
  Cost cost(HookOptions::For(Policy::kPaper));
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

TEST(Measure, BytesAreSplit) {
  Cost cost(HookOptions::For(Policy::kTactic));
  HookStats stats;
  stats.bytes_clusters = 5;
  stats.bytes_codes = 10;
  stats.bytes_rows = 15;
  stats.bytes_read = 30;
  stats.bytes_dense = 100;
  cost.AddReads(stats);
  nlohmann::json record;
  cost.AddTo(&record);
  EXPECT_DOUBLE_EQ(record["bytes_read_fraction"], 0.3);
  EXPECT_DOUBLE_EQ(record["bytes_clusters_fraction"], 0.05);
  EXPECT_DOUBLE_EQ(record["bytes_codes_fraction"], 0.1);
  EXPECT_DOUBLE_EQ(record["bytes_rows_fraction"], 0.15);
  nlohmann::json stock;
  Cost(HookOptions::For(Policy::kStock)).AddTo(&stock);
  EXPECT_EQ(stock["bytes_rows_fraction"], 1);
  EXPECT_EQ(stock["bytes_codes_fraction"], 0);
}

TEST(Measure, BeliefIsAbsentWithoutSelectionsThatCheckThemselves) {
  const Cost cost(HookOptions::For(Policy::kPaper));
  EXPECT_FALSE(cost.Believed().has_value());
  EXPECT_EQ(cost.BeliefText(), "");
  nlohmann::json record;
  cost.AddTo(&record);
  for (const char* field : {"p_hat_mean", "p_hat_min", "extended_share", "overclaimed_share",
                            "code_error_mean", "code_error_max"}) {
    EXPECT_TRUE(record[field].is_null()) << field;
  }
}

TEST(Measure, BeliefCountsMeasuredStepsAndOthers) {
  Cost cost(HookOptions::For(Policy::kTactic));
  HookStats stats;
  stats.selections = 4;
  stats.p_hat_sum = 3.8;
  stats.p_hat_min = 0.92;
  stats.extended = 1;
  stats.coded = 2;
  stats.code_error_sum = 1;
  stats.code_error_max = 0.75;
  cost.AddReads(stats);
  nlohmann::json record;
  cost.AddTo(&record);
  EXPECT_DOUBLE_EQ(record["p_hat_mean"], 0.95);
  EXPECT_DOUBLE_EQ(record["p_hat_min"], 0.92);
  EXPECT_DOUBLE_EQ(record["extended_share"], 0.25);
  EXPECT_DOUBLE_EQ(record["code_error_mean"], 0.5);
  EXPECT_DOUBLE_EQ(record["code_error_max"], 0.75);
  EXPECT_TRUE(record["overclaimed_share"].is_null()) << "nothing was measured yet";
  EXPECT_EQ(cost.BeliefText().find("claimed"), std::string::npos);
  stats.p_hat_min = 0.7;
  stats.cases = 4;
  stats.overclaims = 1;
  cost.AddMass(stats);
  EXPECT_DOUBLE_EQ(cost.Believed()->p_hat_mean, 0.95);
  EXPECT_DOUBLE_EQ(cost.Believed()->p_hat_min, 0.7);
  EXPECT_DOUBLE_EQ(cost.Believed()->overclaimed_share.value(), 0.25);
  EXPECT_NE(cost.BeliefText().find("0.950 on average, 0.700 at least; 25.0 % of"),
            std::string::npos)
      << cost.BeliefText();
}

TEST(Measure, ParametersAreThoseOfThePolicy) {
  nlohmann::json stock, paper, tactic;
  Cost(HookOptions::For(Policy::kStock)).AddTo(&stock);
  Cost(HookOptions::For(Policy::kPaper)).AddTo(&paper);
  Cost(HookOptions::For(Policy::kTactic)).AddTo(&tactic);
  EXPECT_TRUE(stock["cluster_size"].is_null());
  EXPECT_EQ(paper["cluster_size"], 16);
  EXPECT_TRUE(paper["bits"].is_null());
  EXPECT_EQ(tactic["cluster_size"], 32);
  EXPECT_EQ(tactic["bits"], 0);
  EXPECT_EQ(tactic["index"], "clusters");
}

}  // namespace
}  // namespace tactic::app
