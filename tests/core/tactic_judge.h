// TacticJudge: holds everything a step of mode tactic did against the oracle, given the same codes.
//
// The selections of a group must be prefixes of its heads' orders; how long they are must follow
// from the codes up to a bin of the histogram, or from a verification; p_hat and the outputs must
// be those of the rows that were read. Differences are allowed where rounding explains them.
#ifndef TACTIC_TESTS_CORE_TACTIC_JUDGE_H_
#define TACTIC_TESTS_CORE_TACTIC_JUDGE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "gtest/gtest.h"
#include "src/cpu/kernels.h"
#include "src/reference/oracle_tactic.h"
#include "tests/core/isa_param.h"
#include "tests/core/tactic_world.h"
#include "tests/core/tolerance.h"

namespace tactic {

struct TacticTally {
  int64_t heads = 0;
  int64_t everything = 0;  // heads that read all rows
  int64_t gave_up = 0;     // groups that came to it after their last round
  int64_t extended = 0;    // heads whose selection was extended
  int64_t uncertain = 0;   // groups whose filter might go either way by rounding: not judged
  int64_t rows_read = 0;
  int64_t rows_dense = 0;
  double own_rows = 0;  // of judged heads
  double oracle_rows = 0;
  double widest_output = 0;  // largest error of an output as a share of its bound
  double widest_p_hat = 0;   // largest error of p_hat

  void Print(const char* name) const {
    std::printf(
        "[ MEASURED ] %s: %d heads, %d read everything, %d extended, %d of groups uncertain; own "
        "rows %.3f of the oracle's; output error <= %.2f of its bound, p_hat within %.1e; %.0f %% "
        "of rows read\n",
        name, static_cast<int>(heads), static_cast<int>(everything), static_cast<int>(extended),
        static_cast<int>(uncertain), oracle_rows > 0 ? own_rows / oracle_rows : 0.0, widest_output,
        widest_p_hat, 100.0 * static_cast<double>(rows_read) / static_cast<double>(rows_dense));
  }
};

class TacticJudge {
 public:
  TacticJudge(const World& world, int threads, TacticTally* tally)
      : world_(world), spec_(world.spec()), merges_(16 * threads + 16), tally_(tally) {}

  void JudgeAll() {
    int64_t row_bytes = 0;
    for (int request = 0; request < std::ssize(spec_.tokens); ++request) {
      for (int h = 0; h < spec_.shape.kv_heads; ++h) {
        JudgeGroup(request, h, &row_bytes);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
    const DecodeStats stats = world_.step().stats();
    tally_->rows_read += stats.rows_read;
    tally_->rows_dense += stats.rows_dense;
    EXPECT_GE(stats.bytes_rows, row_bytes);
    EXPECT_LE(stats.bytes_rows, row_bytes + most_read_again_);
    EXPECT_EQ(stats.bytes_read, stats.bytes_rows + stats.bytes_codes + stats.bytes_clusters);
  }

 private:
  struct Group {
    int request = 0;
    int kv_head = 0;
    oracle::Rows keys;
    oracle::Rows values;
    std::vector<int64_t> forced;
    std::vector<int64_t> selected;
    oracle::CodedIndex index;
    std::vector<oracle::TacticHead> heads;
    std::vector<std::vector<double>> logits;  // [head][position]
    std::vector<bool> kept;
    std::vector<bool> read;  // by position
    double key_error = 0;    // of an estimated key, the largest
  };

  void JudgeGroup(int request, int kv_head, int64_t* row_bytes) {
    Group g;
    g.request = request;
    g.kv_head = kv_head;
    g.keys = world_.Keys(request, kv_head);
    g.values = world_.Values(request, kv_head);
    g.index = CodedIndexOf(world_, request, kv_head, &g.forced);
    g.selected = world_.Selected(request, kv_head);
    g.read.assign(g.keys.size(), false);
    for (int64_t p : g.selected) g.read[p] = true;
    *row_bytes += std::ssize(g.selected) *
                  static_cast<int64_t>(RowBytes(spec_.key_type, spec_.shape.head_dim) +
                                       RowBytes(spec_.value_type, spec_.shape.value_dim));
    for (int64_t p : g.forced) ASSERT_TRUE(g.read[p]) << "forced row " << p;
    // A head may also come to read all rows by extending; codes were used then.
    bool everything = true;
    for (int h = 0; h < spec_.shape.group(); ++h) {
      const HeadReport& report = world_.Report(request, kv_head * spec_.shape.group() + h);
      ASSERT_EQ(report.union_rows, std::ssize(g.selected));
      everything = everything && report.own_rows == std::ssize(g.keys) && report.code_error == 0;
    }
    tally_->heads += spec_.shape.group();
    if (everything) {
      tally_->everything += spec_.shape.group();
      JudgeEverything(g);
      if (world_.Report(request, kv_head * spec_.shape.group()).rounds == 0) return;
      ++tally_->gave_up;
      most_read_again_ += std::ssize(g.selected) *
                          static_cast<int64_t>(RowBytes(spec_.key_type, spec_.shape.head_dim));
      MakeHeads(&g);
      JudgeGivenUp(g);
      return;
    }
    MakeHeads(&g);
    if (FilterIsUncertain(g)) {
      ++tally_->uncertain;
    } else {
      JudgeSelections(g);
      if (testing::Test::HasFatalFailure()) return;
      for (int h = 0; h < spec_.shape.group(); ++h) JudgeOutput(g, h);
    }
  }

  void JudgeEverything(const Group& g) {
    ASSERT_EQ(std::ssize(g.selected), std::ssize(g.keys));
    for (int h = 0; h < spec_.shape.group(); ++h) {
      const int q_head = g.kv_head * spec_.shape.group() + h;
      const HeadReport& report = world_.Report(g.request, q_head);
      EXPECT_EQ(report.own_rows, std::ssize(g.keys));
      EXPECT_EQ(report.p_hat, 1);
      EXPECT_EQ(report.code_error, 0);
      const std::span<const float> out = world_.Out(g.request, q_head);
      const tolerance::BoundedAttention want = ReadRows(g, q_head);
      for (size_t x = 0; x < out.size() && !g.selected.empty(); ++x)
        ASSERT_NEAR(out[x], want.out[x].value, want.out[x].error) << x;
    }
  }

  void MakeHeads(Group* g) const {
    for (int h = 0; h < spec_.shape.group(); ++h) {
      const int q_head = g->kv_head * spec_.shape.group() + h;
      const oracle::Row q = world_.Query(g->request, q_head);
      std::vector<double> logits;
      for (const oracle::Row& key : g->keys)
        logits.push_back(oracle::Logit(q, key, spec_.params.scale, spec_.params.softcap));
      std::vector<double> forced;
      for (int64_t p : g->forced) forced.push_back(logits[p]);
      const oracle::CodedQuery query = CodedQueryOf(world_, g->request, q_head);
      g->heads.push_back(oracle::MakeTacticHead(query, g->index, forced));
      g->logits.push_back(std::move(logits));
    }
    g->kept = oracle::ScanGroup(g->index, spec_.options, &g->heads);
    for (const oracle::TacticHead& head : g->heads) {
      for (const oracle::CodedCluster& cluster : g->index.clusters) {
        for (const oracle::Code& code : cluster.codes)
          g->key_error = std::max(g->key_error, KeyError(head, cluster, code));
      }
    }
  }

  // Roundings of an estimated key: the score, whose query is in units of a 4032nd of its largest
  // element, an integer dot product that is exact, its offset (products of up to 127 cancel), a few
  // sums of numbers as large as the reference, and the step of levels.
  double KeyError(const oracle::TacticHead& head, const oracle::CodedCluster& cluster,
                  const oracle::Code& code) const {
    double bytes = 0;
    for (double x : head.query.rotated) bytes += std::fabs(x);
    const double score = tolerance::SumAbs(head.query.q, cluster.centroid);
    const double offset = code.scale * 127 * bytes;
    double largest = 0;
    double centroid = 0;
    for (double x : head.query.q) largest = std::max(largest, std::fabs(x));
    for (double x : cluster.centroid) centroid += std::fabs(x);
    return largest / 4032 / 2 * centroid + 0.5 / cpu::kKeyLevels +
           tolerance::Gamma(spec_.shape.head_dim + 6) * score + tolerance::Gamma(6) * offset +
           tolerance::Gamma(8) *
               (2 * score + std::fabs(head.reference) + spec_.params.softcap + 20);
  }

  // Whether a cluster's mass or token is so close to a limit that rounding decides, or the search
  // for the limit, which stops within half a percent of it.
  bool FilterIsUncertain(const Group& g) const {
    for (const oracle::TacticHead& head : g.heads) {
      const double rest = (1 - spec_.options.target) * head.at_least;
      std::vector<double> masses;
      for (const oracle::ClusterEstimate& cluster : head.clusters) {
        masses.push_back(std::exp(cluster.mass - head.reference));
        const double token = std::exp(cluster.token - head.reference);
        if (std::fabs(token - spec_.options.skip_token * rest) < 1e-4 * token) return true;
      }
      std::sort(masses.begin(), masses.end());
      double sum = 0;
      size_t n = 0;
      const double budget = spec_.options.skip_share * rest;
      while (n < masses.size() && sum + masses[n] <= budget) sum += masses[n++];
      if (n < masses.size() && sum + masses[n] < budget * (1 + 1e-4)) return true;
      if (n > 0 && n < masses.size() && masses[n - 1] > 0.995 * std::min(masses[n], budget))
        return true;
      if (n > 0 && sum > budget * (1 - 1e-4)) return true;
    }
    return false;
  }

  void JudgeSelections(const Group& g) {
    std::vector<bool> least(g.keys.size(), false);
    std::vector<bool> most(g.keys.size(), false);
    for (int64_t p : g.forced) least[p] = most[p] = true;
    for (int h = 0; h < spec_.shape.group(); ++h) {
      const oracle::TacticHead& head = g.heads[h];
      const HeadReport& report = world_.Report(g.request, g.kv_head * spec_.shape.group() + h);
      const auto rows = static_cast<size_t>(report.own_rows) - g.forced.size();
      ASSERT_LE(rows, head.keys.size());
      for (size_t i = 0; i < head.keys.size() && rows > 0; ++i) {
        const double above = head.keys[i].key - head.keys[rows - 1].key;
        if (i < rows && (rows == head.keys.size() || above > 2 * g.key_error ||
                         head.keys[rows - 1].key - head.keys[rows].key > 2 * g.key_error)) {
          least[head.keys[i].position] = true;
        }
        if (i < rows || above > -2 * g.key_error) most[head.keys[i].position] = true;
      }
      JudgeLength(g, h, rows, report);
      if (testing::Test::HasFatalFailure()) return;
    }
    for (size_t p = 0; p < g.keys.size(); ++p) {
      ASSERT_TRUE(!least[p] || g.read[p]) << "row " << p << " is missing";
      ASSERT_TRUE(most[p] || !g.read[p]) << "row " << p << " is nobody's";
    }
  }

  // The group read all rows at last: some head had too little for the codes to be of use.
  void JudgeGivenUp(const Group& g) {
    const Options& options = spec_.options;
    double least = 1;
    for (int h = 0; h < spec_.shape.group(); ++h) {
      int rounds = 0;
      const size_t rows = oracle::SelectRows(g.heads[h], g.logits[h], options, &rounds);
      least = std::min(least, oracle::Verify(g.heads[h], rows, g.logits[h], options).p_hat);
    }
    // The bins of a kernel end a round elsewhere than the oracle's sorted prefix.
    EXPECT_LT(least, options.target - 0.05);
  }

  // How many rows a head selected.
  void JudgeLength(const Group& g, int h, size_t rows, const HeadReport& report) {
    const oracle::TacticHead& head = g.heads[h];
    const Options& options = spec_.options;
    const oracle::Verified v = oracle::Verify(head, rows, g.logits[h], options);
    ASSERT_NEAR(report.p_hat, v.p_hat, 1e-5 + 2 * g.key_error) << "of " << rows << " rows";
    ASSERT_FALSE(oracle::GaveUp({.p_hat = v.p_hat + 1e-5 + 2 * g.key_error}, options));
    tally_->widest_p_hat = std::max(tally_->widest_p_hat, std::fabs(report.p_hat - v.p_hat));
    int rounds = 0;
    tally_->oracle_rows +=
        static_cast<double>(oracle::SelectRows(head, g.logits[h], options, &rounds));
    tally_->own_rows += static_cast<double>(rows);
    tally_->extended += report.rounds > 0;
    ASSERT_LE(report.rounds, options.rounds);
    // What the codes ask for, in any case; a bin of few keys is read whole.
    const oracle::Verified none = oracle::Verify(head, 0, g.logits[h], options);
    const size_t first =
        oracle::Prefix(head, oracle::NeededMass(none, oracle::FirstRatio(head), options));
    const double slack = cpu::kBinLevels / cpu::kKeyLevels + 2 * g.key_error;
    const auto at_least = [&](double key) {
      return static_cast<size_t>(std::count_if(head.keys.begin(), head.keys.end(),
                                               [&](const auto& k) { return k.key >= key; }));
    };
    if (first > 0) {
      ASSERT_GE(rows, at_least(head.keys[first - 1].key + slack));
      if (report.rounds == 0) {
        ASSERT_LE(rows, at_least(head.keys[first - 1].key - slack));
      }
    } else if (report.rounds == 0) {
      ASSERT_EQ(rows, 0u);
    }
    // A selection that fell short was extended, as long as rounds and rows were left.
    if (report.rounds < options.rounds && rows < head.keys.size()) {
      ASSERT_GE(v.exact, options.target * (v.exact + v.cautious) * (1 - 1e-3))
          << "gave up with p_hat " << v.p_hat << " after " << report.rounds << " rounds";
    }
  }

  tolerance::BoundedAttention ReadRows(const Group& g, int q_head) const {
    return tolerance::Attend(world_.Query(g.request, q_head), g.keys, g.values, g.selected,
                             spec_.params.scale, spec_.params.softcap,
                             KernelLanes(spec_.shape.head_dim), merges_);
  }

  // The rows' part has the error bound of attention; a tail of relative weight w and error e adds
  // at most e w times twice the largest value.
  void JudgeOutput(const Group& g, int h) {
    const int q_head = g.kv_head * spec_.shape.group() + h;
    const oracle::TacticHead& head = g.heads[h];
    const HeadReport& report = world_.Report(g.request, q_head);
    const std::span<const float> out = world_.Out(g.request, q_head);
    const tolerance::BoundedAttention rows = ReadRows(g, q_head);
    oracle::Attention read = {{}, rows.lse.value};
    if (g.selected.empty()) read.out.assign(out.size(), 0.0);
    for (const tolerance::Bounded& x : rows.out) read.out.push_back(x.value);
    const bool tail = spec_.options.tail && report.code_error <= 1;
    oracle::TailWeights weights = oracle::Tail(head, g.index, g.kept, g.read);
    double mass = 0;
    if (!tail) weights = {};
    for (double w : weights.clusters) mass += w;
    for (double w : weights.segments) mass += w;
    const double all = mass + std::exp(read.lse - head.reference);
    const double relative = 4 * g.key_error + 1e-5 + rows.lse.error;
    const oracle::Row want = oracle::WithTail(read, head, g.index, weights);
    double largest = 0;
    for (const oracle::Row& value : g.values) {
      for (double x : value) largest = std::max(largest, std::fabs(x));
    }
    for (size_t x = 0; x < out.size(); ++x) {
      const double bound = (g.selected.empty() ? 0 : rows.out[x].error) +
                           2 * largest * (mass / all * relative + 1e-6 * (mass > 0));
      ASSERT_NEAR(out[x], want[x], bound) << "request " << g.request << " q head " << q_head
                                          << " column " << x << " tail " << mass / all;
      tally_->widest_output = std::max(tally_->widest_output, std::fabs(out[x] - want[x]) / bound);
    }
  }

  const World& world_;
  const WorldSpec& spec_;
  const int merges_;
  TacticTally* const tally_;
  int64_t most_read_again_ = 0;  // bytes of keys, by groups that gave up
};

}  // namespace tactic

#endif  // TACTIC_TESTS_CORE_TACTIC_JUDGE_H_
