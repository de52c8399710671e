// Where f32 may read another prefix than the oracle, and why: the interval of prefixes that
// rounding explains.
//
// The budget is the smallest k with f(k) >= 0, f(x) = F + M(x) - P (F + M(n)): F the forced mass, M
// the mass curve. f32 changes what f is made of by known relative errors: e for every sampled
// exponential (tolerance.h), e_F for the forced mass; the arithmetic on them is in double on both
// sides. The fitted coefficients depend on the window means y1, y2 (with mean inverse ranks i1 >
// i2) piecewise linearly and continuously, so their error is at most that of the steepest piece:
//   both positive  |da| <= e (y1 + y2) / (i1 - i2),  |db| <= e y2 + i2 |da|
//   a = 0          |db| <= e (y1 + y2) / 2
//   b = 0          |da| <= e y1 / i1
// So k lies between the first x with f(x) + df(x) >= 0 and the first x with f(x) - df(x) >= 0.
//
// That holds for one order of clusters. Clusters whose scores differ by less than their rounding
// may change places; that matters only where such a run of clusters holds a rank at which the head,
// a window or the prefix begins or ends. Then the order is called uncertain there.
#ifndef TACTIC_TESTS_CORE_BUDGET_BOUND_H_
#define TACTIC_TESTS_CORE_BUDGET_BOUND_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "src/budget_paper.h"
#include "src/reference/oracle.h"
#include "tests/core/tolerance.h"

namespace tactic {

// Runs of ranks [begin, end) whose clusters may stand in another order.
class UncertainRuns {
 public:
  UncertainRuns(const oracle::Row& q, const std::vector<oracle::Cluster>& clusters, double scale) {
    struct Scored {
      double score;
      int64_t size;
    };
    std::vector<Scored> scored;
    double error = 0;
    for (const oracle::Cluster& cluster : clusters) {
      const tolerance::Bounded dot = tolerance::Dot(q, cluster.centroid, 2);  // two chains
      scored.push_back({dot.value * scale, std::ssize(cluster.members)});
      error = std::max(error, dot.error * scale + tolerance::kUnit * std::fabs(dot.value * scale));
    }
    std::stable_sort(scored.begin(), scored.end(),
                     [](const Scored& a, const Scored& b) { return a.score > b.score; });
    int64_t rank = 0;
    for (size_t i = 0; i < scored.size();) {
      const int64_t begin = rank;
      size_t last = i;
      rank += scored[i].size;
      while (last + 1 < scored.size() && scored[last].score - scored[last + 1].score <= 2 * error) {
        rank += scored[++last].size;
      }
      if (last > i) runs_.push_back({begin, rank});
      i = last + 1;
    }
  }

  // Whether the set of the first `rank` ranks is uncertain.
  bool Splits(int64_t rank) const {
    return std::any_of(runs_.begin(), runs_.end(),
                       [&](const Run& run) { return run.begin < rank && rank < run.end; });
  }
  bool SplitsAnyOf(const CurvePlan& plan) const {
    return Splits(plan.head) || Splits(plan.near.first) ||
           Splits(plan.near.first + plan.near.width) || Splits(plan.far.first) ||
           Splits(plan.far.first + plan.far.width);
  }

 private:
  struct Run {
    int64_t begin;
    int64_t end;
  };
  std::vector<Run> runs_;
};

struct BudgetInterval {
  int64_t low = 0;
  int64_t high = 0;
};

// For budgets that are fitted: target < 1 and at least 32 ranks. `merges`: of forced states.
inline BudgetInterval ExplainedBudgets(const oracle::Row& q, const oracle::Rows& keys,
                                       const std::vector<int64_t>& order,
                                       const std::vector<int64_t>& forced, const Options& options,
                                       double scale, double softcap, int lanes, int merges) {
  const auto n = static_cast<int64_t>(order.size());
  const CurvePlan plan = CurvePlan::Make(n, options.head_share, options.near_window,
                                         options.far_window, options.window_share);
  const auto logit = [&](int64_t p) { return tolerance::Logit(q, keys[p], scale, softcap, lanes); };
  std::vector<tolerance::Bounded> head, near, far, fixed;
  for (int64_t i = 0; i < plan.head; ++i) head.push_back(logit(order[i]));
  for (int64_t i = 0; i < plan.near.width; ++i) {
    near.push_back(logit(order[plan.near.first + i]));
    far.push_back(logit(order[plan.far.first + i]));
  }
  for (int64_t p : forced) fixed.push_back(logit(p));
  double max = -oracle::kInf;
  double min = oracle::kInf;
  for (const auto* part : {&head, &near, &far, &fixed}) {
    for (const tolerance::Bounded& x : *part) {
      max = std::max(max, x.value);
      min = std::min(min, x.value);
    }
  }
  double sample_error = 0;
  const auto sum = [&](const std::vector<tolerance::Bounded>& part, double* error) {
    double total = 0;
    for (const tolerance::Bounded& x : part) {
      total += std::exp(x.value - max);
      *error = std::max(*error, tolerance::Weight(x, max));
    }
    return total;
  };
  const double head_mass = sum(head, &sample_error);
  const auto width = static_cast<double>(plan.near.width);
  const double y1 = sum(near, &sample_error) / width;
  const double y2 = sum(far, &sample_error) / width;
  double forced_error = 0;
  const double forced_mass = sum(fixed, &forced_error);
  const double rescalings = std::ceil(static_cast<double>(forced.size()) / 64) + 2 * merges;
  forced_error +=
      tolerance::Gamma(static_cast<double>(forced.size()) + 4 * rescalings + 2 + 2 * (max - min));

  const double i1 = plan.near.MeanInverse();
  const double i2 = plan.far.MeanInverse();
  const double e = sample_error;
  double a = 0, b = (y1 + y2) / 2, a_error = 0, b_error = e * (y1 + y2) / 2;
  if (i1 > i2) {
    a = std::max(0.0, (y1 - y2) / (i1 - i2));
    if (a > 0) b = y2 - a * i2;
    if (b < 0) {
      b = 0;
      a = y1 / i1;
    }
    a_error = std::max(e * (y1 + y2) / (i1 - i2), e * y1 / i1);
    b_error = std::max(b_error, e * y2 + i2 * e * (y1 + y2) / (i1 - i2));
  }

  std::vector<double> prefix(plan.head + 1, 0.0);
  for (int64_t i = 0; i < plan.head; ++i) prefix[i + 1] = prefix[i] + std::exp(head[i].value - max);
  const auto h = static_cast<double>(plan.head);
  const double log_all = std::log(static_cast<double>(n) / h);
  const double rest = static_cast<double>(n) - h;
  const double total = forced_mass + head_mass + a * log_all + b * rest;
  const double p = options.target;
  const auto f = [&](int64_t x, double* error) {
    const bool fitted = x > plan.head;
    const double logs = fitted ? std::log(static_cast<double>(x) / h) : 0;
    const double ranks = fitted ? static_cast<double>(x) - h : 0;
    const double mass = fitted ? head_mass + a * logs + b * ranks : prefix[x];
    *error = (1 - p) * forced_error * forced_mass + e * (mass + p * head_mass) +
             a_error * std::fabs(logs - p * log_all) + b_error * std::fabs(ranks - p * rest) +
             1e-12 * total;  // the double arithmetic of both sides
    return forced_mass + mass - p * total;
  };
  BudgetInterval interval{n, n};
  for (int64_t x = 0; x <= n; ++x) {
    double error = 0;
    const double value = f(x, &error);
    if (value + error >= 0) interval.low = std::min(interval.low, x);
    if (value - error >= 0) {
      interval.high = x;
      break;
    }
  }
  return interval;
}

}  // namespace tactic

#endif  // TACTIC_TESTS_CORE_BUDGET_BOUND_H_
