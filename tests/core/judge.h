// Judge: holds everything a decode step did against the oracle, given the same clusters.
//
// Budgets, selections and counts must be equal; where they are not, rounding must explain it
// (budget_bound.h), and a Tally counts how often. Outputs must lie within the bound of their
// arithmetic for the rows that were read.
#ifndef TACTIC_TESTS_CORE_JUDGE_H_
#define TACTIC_TESTS_CORE_JUDGE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "gtest/gtest.h"
#include "src/budget_paper.h"
#include "src/reference/oracle.h"
#include "tests/core/budget_bound.h"
#include "tests/core/isa_param.h"
#include "tests/core/tolerance.h"
#include "tests/core/world.h"

namespace tactic {

// "May differ" counts where rounding could explain a difference, "differs" where there was one.
struct Tally {
  int64_t heads = 0;             // query heads with a fitted budget
  int64_t mass_may_differ = 0;   // the mass at the target is within rounding of it
  int64_t order_may_differ = 0;  // clusters' scores too close, where the head or a window ends
  int64_t budget_differs = 0;
  int64_t groups = 0;           // KV heads with a selection
  int64_t rows_may_differ = 0;  // clusters' scores too close, where a prefix ends
  int64_t rows_differ = 0;
  int64_t rows_read = 0;
  int64_t rows_dense = 0;
  double widest_output = 0;  // largest error of an output as a share of its bound

  void Print(const char* name) const {
    std::printf(
        "[ MEASURED ] %s: of %d budgets %d differ (rounding may: mass %d, order %d); "
        "of %d selections %d differ (may: %d); output error <= %.2f of its bound; %.0f %% of rows "
        "read\n",
        name, static_cast<int>(heads), static_cast<int>(budget_differs),
        static_cast<int>(mass_may_differ), static_cast<int>(order_may_differ),
        static_cast<int>(groups), static_cast<int>(rows_differ), static_cast<int>(rows_may_differ),
        widest_output, 100.0 * static_cast<double>(rows_read) / static_cast<double>(rows_dense));
  }
};

class Judge {
 public:
  Judge(const World& world, int threads, Tally* tally)
      : world_(world), spec_(world.spec()), merges_(8 * threads), tally_(tally) {}

  void JudgeAll() {
    DecodeStats want;
    for (int request = 0; request < std::ssize(spec_.tokens); ++request) {
      for (int h = 0; h < spec_.shape.kv_heads; ++h) {
        JudgeGroup(request, h, &want);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
    const DecodeStats got = world_.step().stats();
    tally_->rows_read += got.rows_read;
    tally_->rows_dense += got.rows_dense;
    EXPECT_EQ(got.rows_read, want.rows_read);
    EXPECT_EQ(got.rows_dense, want.rows_dense);
    EXPECT_EQ(got.bytes_read, want.bytes_read);
    EXPECT_EQ(got.bytes_dense, want.bytes_dense);
  }

 private:
  // One query head of the group under judgement.
  struct Head {
    int number;
    oracle::Row q;
    std::vector<int64_t> order;
    int64_t ranks;  // that it read
  };

  void JudgeGroup(int request, int kv_head, DecodeStats* want) {
    const oracle::Rows keys = world_.Keys(request, kv_head);
    const oracle::Rows values = world_.Values(request, kv_head);
    std::vector<int64_t> forced;
    const std::vector<oracle::Cluster> clusters = world_.ClustersOf(request, kv_head, &forced);
    const std::vector<int64_t> selected = world_.Selected(request, kv_head);
    const auto visible = static_cast<int64_t>(keys.size());

    std::vector<std::vector<int64_t>> least;  // rows that must be read, per head
    std::vector<std::vector<int64_t>> most;   // rows that may be
    std::vector<std::vector<int64_t>> exact;  // rows that the oracle's order gives
    bool certain = true;
    int64_t samples = 0;
    for (int g = 0; g < spec_.shape.group(); ++g) {
      const int q_head = kv_head * spec_.shape.group() + g;
      Head head{q_head, world_.Query(request, q_head), {}, 0};
      head.order = oracle::Order(head.q, clusters);
      const HeadReport& report = world_.Report(request, q_head);
      head.ranks = report.own_rows - std::ssize(forced);
      ASSERT_EQ(report.union_rows, std::ssize(selected));
      ASSERT_GE(head.ranks, 0);
      ASSERT_LE(head.ranks, std::ssize(head.order));
      const UncertainRuns runs(head.q, clusters, spec_.params.scale);
      JudgeBudget(head, keys, forced, runs, &samples);
      const bool splits = runs.Splits(head.ranks);
      certain = certain && !splits;
      int64_t low = head.ranks;
      int64_t high = head.ranks;
      while (splits && runs.Splits(low)) --low;
      while (splits && runs.Splits(high)) ++high;
      least.push_back(oracle::HeadRows(head.order, low, forced));
      most.push_back(oracle::HeadRows(head.order, high, forced));
      exact.push_back(oracle::HeadRows(head.order, head.ranks, forced));
      JudgeOutput(request, head, keys, values, selected);
      if (spec_.params.measure_mass) JudgeMass(request, head, keys, forced, selected, splits);
      if (testing::Test::HasFatalFailure()) return;
    }
    ++tally_->groups;
    if (certain) {
      ASSERT_EQ(selected, oracle::Union(exact)) << "request " << request << " KV head " << kv_head;
    } else {
      const std::vector<int64_t> lower = oracle::Union(least);
      const std::vector<int64_t> upper = oracle::Union(most);
      ASSERT_TRUE(std::includes(selected.begin(), selected.end(), lower.begin(), lower.end()));
      ASSERT_TRUE(std::includes(upper.begin(), upper.end(), selected.begin(), selected.end()));
      ++tally_->rows_may_differ;
      tally_->rows_differ += selected != oracle::Union(exact);
    }
    CountBytes(visible, std::ssize(selected), std::ssize(clusters), samples, want);
  }

  void JudgeBudget(const Head& head, const oracle::Rows& keys, const std::vector<int64_t>& forced,
                   const UncertainRuns& runs, int64_t* samples) {
    const double scale = spec_.params.scale;
    const double softcap = spec_.params.softcap;
    const auto n = static_cast<int64_t>(head.order.size());
    if (spec_.options.target >= 1 || n < 4 * CurvePlan::kSmallestWindow) {
      ASSERT_EQ(head.ranks, n);
      return;
    }
    const CurvePlan plan = CurvePlan::Make(n, spec_.options.head_share, spec_.options.near_window,
                                           spec_.options.far_window, spec_.options.window_share);
    *samples += plan.Samples();
    ++tally_->heads;
    const oracle::Budget want =
        oracle::PaperBudget(head.q, keys, head.order, forced, spec_.options, scale, softcap);
    const BudgetInterval may =
        ExplainedBudgets(head.q, keys, head.order, forced, spec_.options, scale, softcap,
                         KernelLanes(spec_.shape.head_dim), merges_);
    ASSERT_LE(may.low, want.ranks);
    ASSERT_GE(may.high, want.ranks);
    tally_->budget_differs += head.ranks != want.ranks;
    if (runs.SplitsAnyOf(plan) || (head.ranks < plan.head && runs.Splits(head.ranks))) {
      ++tally_->order_may_differ;
      return;
    }
    tally_->mass_may_differ += may.low != may.high;
    ASSERT_GE(head.ranks, may.low) << "q head " << head.number << " of " << n << " ranks";
    ASSERT_LE(head.ranks, may.high) << "q head " << head.number << " of " << n << " ranks";
  }

  void JudgeOutput(int request, const Head& head, const oracle::Rows& keys,
                   const oracle::Rows& values, const std::vector<int64_t>& selected) {
    const std::span<const float> out = world_.Out(request, head.number);
    if (selected.empty()) {
      for (float x : out) ASSERT_EQ(x, 0) << "no row, no output";
      return;
    }
    const tolerance::BoundedAttention want =
        tolerance::Attend(head.q, keys, values, selected, spec_.params.scale, spec_.params.softcap,
                          KernelLanes(spec_.shape.head_dim), merges_);
    for (size_t x = 0; x < out.size(); ++x) {
      ASSERT_NEAR(out[x], want.out[x].value, want.out[x].error)
          << "request " << request << " q head " << head.number << " column " << x;
      tally_->widest_output = std::max(tally_->widest_output,
                                       std::fabs(out[x] - want.out[x].value) / want.out[x].error);
    }
  }

  // Masses are ratios of sums of weights, of which every one has the bounded relative error.
  void JudgeMass(int request, const Head& head, const oracle::Rows& keys,
                 const std::vector<int64_t>& forced, const std::vector<int64_t>& selected,
                 bool splits) {
    double max = -oracle::kInf;
    std::vector<tolerance::Bounded> logits;
    for (const oracle::Row& key : keys) {
      logits.push_back(tolerance::Logit(head.q, key, spec_.params.scale, spec_.params.softcap,
                                        KernelLanes(spec_.shape.head_dim)));
      max = std::max(max, logits.back().value);
    }
    double error = 0;
    double total = 0;
    for (const tolerance::Bounded& logit : logits) {
      total += std::exp(logit.value - max);
      error = std::max(error, tolerance::Weight(logit, max));
    }
    error += tolerance::Gamma(static_cast<double>(keys.size()) + 2 * merges_);
    const auto mass = [&](const std::vector<int64_t>& rows) {
      double sum = 0;
      for (int64_t p : rows) sum += std::exp(logits[p].value - max);
      return sum / total;
    };
    const HeadReport& report = world_.Report(request, head.number);
    ASSERT_NEAR(report.union_mass, mass(selected), 2 * error);
    if (splits) return;
    ASSERT_NEAR(report.own_mass, mass(oracle::HeadRows(head.order, head.ranks, forced)), 2 * error);
    ASSERT_LE(report.own_mass, report.union_mass + 2 * error);
  }

  void CountBytes(int64_t visible, int64_t selected, int64_t clusters, int64_t samples,
                  DecodeStats* want) const {
    const auto key =
        static_cast<int64_t>(RowBytes(spec_.key_type, static_cast<size_t>(spec_.shape.head_dim)));
    const auto value = static_cast<int64_t>(
        RowBytes(spec_.value_type, static_cast<size_t>(spec_.shape.value_dim)));
    want->rows_read += selected;
    want->rows_dense += visible;
    want->bytes_dense += visible * (key + value);
    want->bytes_read +=
        selected * (key + value) + 2 * clusters * spec_.shape.head_dim + samples * key;
  }

  const World& world_;
  const WorldSpec& spec_;
  const int merges_;  // of partial states: two for each of a thread's four chunks
  Tally* const tally_;
};

}  // namespace tactic

#endif  // TACTIC_TESTS_CORE_JUDGE_H_
