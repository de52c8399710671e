// The head that is hardest to approximate (data/README.md): what its selections hold, whether they
// miss a token that carries most of the mass, and whether p_hat claims more than was reached.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "src/half.h"
#include "tactic/decode.h"
#include "tactic/sequence_index.h"
#include "tests/core/npz.h"

namespace tactic {
namespace {

constexpr int kPrompt = 10090;
constexpr int kSteps = 72;
constexpr int kHeads = 3;
constexpr int kDim = 64;
constexpr int kObserved = 64;
constexpr float kScale = 0.125f;

class HardCase : public testing::Test {
 protected:
  void SetUp() override {
    const Npz npz(TACTIC_DATA_DIR "/hard_case_copy_head.npz");
    keys_ = npz.Get<uint16_t>("K", "'<f2'", "(10162, 64)");
    values_ = npz.Get<uint16_t>("V", "'<f2'", "(10162, 64)");
    q_ = npz.Get<float>("q", "'<f4'", "(3, 72, 64)");
    observed_ = npz.Get<float>("q_observed", "'<f4'", "(3, 64, 64)");
    ASSERT_FALSE(keys_.empty() || values_.empty() || q_.empty() || observed_.empty());
    cells_.resize(kPrompt + kSteps);
    std::iota(cells_.begin(), cells_.end(), 0u);
    largest_.assign(kHeads * kSteps, 0.0);
    for (int h = 0; h < kHeads; ++h) {
      for (int t = 0; t < kSteps; ++t) largest_[h * kSteps + t] = LargestShare(h, t);
    }
  }

  // The largest share of the mass that one token has.
  double LargestShare(int head, int step) const {
    const float* q = Query(head, step);
    std::vector<double> logits;
    for (int p = 0; p < kPrompt + step + 1; ++p) {
      double dot = 0;
      for (int x = 0; x < kDim; ++x) dot += q[x] * HalfToFloat(keys_[p * kDim + x]);
      logits.push_back(dot * kScale);
    }
    const double max = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (double logit : logits) sum += std::exp(logit - max);
    return 1 / sum;
  }

  const float* Query(int head, int step) const {
    return q_.data() + (static_cast<size_t>(head) * kSteps + step) * kDim;
  }
  RowsView View(const std::vector<uint16_t>& rows) const {
    return {reinterpret_cast<const uint8_t*>(rows.data()), ElementType::kF16, 2 * kDim, 2 * kDim};
  }

  struct Outcome {
    double least_own = 1;
    double least_union = 1;
    int missed = 0;      // tokens with more than half of the mass that the head did not select
    int reached = 0;     // selections that hold the target
    int overclaims = 0;  // p_hat reaches the target, the mass is less by more than 0.05
    double rows = 0;     // union rows as a share of all
    double bytes = 0;
    int bits = 0;
  };

  // One index that grows with the answer, and every target at every step.
  std::vector<Outcome> Run(int bits, const std::vector<double>& targets) {
    const LayerShape shape = {kHeads, 1, kDim, kDim};
    Options options;
    options.bits = bits;
    options.segment_size = 1024;
    SequenceIndex index(shape, options);
    float norm = 0;
    for (float q : observed_) norm += q * q * kScale * kScale / (kHeads * kObserved);
    index.SetQueryNorms({&norm, 1});
    index.Append(kPrompt);
    std::vector<Outcome> outcomes(targets.size());
    DecodeStep step;
    for (int t = 0; t < kSteps; ++t) {
      index.Append(1);
      const int units = index.PlanBuild();
      for (int u = 0; u < units; ++u) index.BuildUnit(u, View(keys_), View(values_), cells_);
      std::vector<float> q;
      for (int h = 0; h < kHeads; ++h) q.insert(q.end(), Query(h, t), Query(h, t) + kDim);
      std::vector<float> out(kHeads * kDim);
      DecodeRequest request;
      request.q = q.data();
      request.q_stride = kDim;
      request.keys = View(keys_);
      request.values = View(values_);
      request.cells = std::span(cells_).first(kPrompt + t + 1);
      request.index = &index;
      request.out = out.data();
      request.out_stride = kDim;
      for (size_t i = 0; i < targets.size(); ++i) {
        options.target = targets[i];
        const Status status = step.Plan(shape, options, {kScale, 0, true}, {&request, 1}, 1);
        EXPECT_TRUE(status.ok()) << status.message();
        if (!status.ok()) return outcomes;
        step.Run();
        Count(step, t, targets[i], &outcomes[i]);
      }
    }
    return outcomes;
  }

  void Count(const DecodeStep& step, int t, double target, Outcome* outcome) const {
    for (int h = 0; h < kHeads; ++h) {
      const HeadReport& report = step.head_reports()[h];
      const double largest = largest_[h * kSteps + t];
      outcome->least_own = std::min(outcome->least_own, report.own_mass);
      outcome->least_union = std::min(outcome->least_union, report.union_mass);
      outcome->reached += report.own_mass >= target - 1e-6;
      // Without that token at most the others' mass is left.
      outcome->missed += largest > 0.5 && report.own_mass <= 1 - largest + 1e-3;
      outcome->overclaims += report.p_hat >= target && report.own_mass < target - 0.05;
    }
    const DecodeStats stats = step.stats();
    outcome->rows += static_cast<double>(stats.rows_read) / stats.rows_dense / kSteps;
    outcome->bytes += static_cast<double>(stats.bytes_read) / stats.bytes_dense / kSteps;
  }

  std::vector<uint16_t> keys_;
  std::vector<uint16_t> values_;
  std::vector<float> q_;
  std::vector<float> observed_;
  std::vector<uint32_t> cells_;
  std::vector<double> largest_;  // [head][step]
};

// Fewer bits than the rule picks are here to show what they cost; the rule is held to more.
TEST_F(HardCase, SelectionsHoldWhatTheyClaim) {
  const std::vector<double> targets = {0.8, 0.9, 0.95};
  for (int bits : {0, 2, 3, 4}) {
    const std::vector<Outcome> outcomes = Run(bits, targets);
    for (size_t i = 0; i < targets.size(); ++i) {
      const Outcome& o = outcomes[i];
      std::printf(
          "[ MEASURED ] copy head, bits %d, P %.2f: %d of %d reach it, smallest own mass %.3f, "
          "union %.3f, %d tokens of half the mass missed, %d overclaims; %.1f %% of rows, %.1f %% "
          "of bytes\n",
          bits, targets[i], o.reached, kHeads * kSteps, o.least_own, o.least_union, o.missed,
          o.overclaims, 100 * o.rows, 100 * o.bytes);
      EXPECT_LE(o.overclaims, 3) << bits;
      EXPECT_LE(o.missed, bits == 0 ? 0 : 1) << bits;
      EXPECT_GE(o.reached, kHeads * kSteps * 97 / 100) << bits;
      // One of the 216 puts a quarter of its mass on a token whose code is off by several
      // deviations.
      if (bits == 0) {
        EXPECT_GE(o.least_own, 0.7);
        EXPECT_GE(o.least_union, 0.7);
      }
    }
  }
}

}  // namespace
}  // namespace tactic
