#include "quality_stats.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace tactic::app {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
constexpr double kReachedTolerance = 0.001;
// A selection that is believed to have reached P and is short of it by more than this was claimed
// wrongly.
constexpr double kOverclaim = 0.05;

double Sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

double Ratio(double part, double whole) { return whole > 0 ? part / whole : kNone; }

double Mean(const std::vector<double>& values) {
  return Ratio(Sum(values), static_cast<double>(values.size()));
}

double Least(const std::vector<double>& values) {
  return values.empty() ? kNone : *std::min_element(values.begin(), values.end());
}

int64_t CountIf(const std::vector<double>& values, double least) {
  return std::count_if(values.begin(), values.end(), [&](double x) { return x >= least; });
}

}  // namespace

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return kNone;
  const auto n = static_cast<double>(values.size());
  const auto rank = static_cast<ptrdiff_t>(std::clamp(std::ceil(share * n), 1.0, n)) - 1;
  std::nth_element(values.begin(), values.begin() + rank, values.end());
  return values[static_cast<size_t>(rank)];
}

std::pair<double, double> WilsonInterval(int64_t hits, int64_t n) {
  if (n == 0) return {kNone, kNone};
  constexpr double kZ = 1.959963984540054;  // of the normal distribution, 97.5 %
  const auto count = static_cast<double>(n);
  const double p = static_cast<double>(hits) / count;
  const double scale = 1 + kZ * kZ / count;
  const double middle = (p + kZ * kZ / (2 * count)) / scale;
  const double half = kZ * std::sqrt(p * (1 - p) / count + kZ * kZ / (4 * count * count)) / scale;
  return {std::max(0.0, middle - half), std::min(1.0, middle + half)};
}

double FieldOf(const QualityPool::Fields& fields, const std::string& name) {
  return std::find_if(fields.begin(), fields.end(), [&](const auto& f) { return f.first == name; })
      ->second;
}

void QualityPool::Add(const PolicyReplay& replay, size_t k) {
  parts_.push_back({&replay, &replay.targets[k]});
}

template <class F>
std::vector<double> QualityPool::Each(const F& f) const {
  std::vector<double> values;
  for (const Part& part : parts_) {
    for (const QualityCase& one : part.samples->cases) {
      values.push_back(static_cast<double>(f(one)));
    }
  }
  return values;
}

QualityPool::Fields QualityPool::Summarize() const {
  Fields fields;
  AddMasses(&fields);
  AddTokens(&fields);
  AddReads(&fields);
  AddErrors(&fields);
  AddBelief(&fields);
  AddIndex(&fields);
  return fields;
}

void QualityPool::AddMasses(Fields* fields) const {
  const auto own = Each([](const QualityCase& c) { return c.own_mass; });
  const auto group = Each([](const QualityCase& c) { return c.union_mass; });
  const auto cases = static_cast<int64_t>(own.size());
  const int64_t reached = CountIf(own, target_ - kReachedTolerance);
  const int64_t reached_union = CountIf(group, target_ - kReachedTolerance);
  const auto [low, high] = WilsonInterval(reached, cases);
  const auto share = [&](int64_t hits) {
    return Ratio(static_cast<double>(hits), static_cast<double>(cases));
  };
  fields->insert(fields->end(), {{"cases", static_cast<double>(cases)},
                                 {"target_reached_share", share(reached)},
                                 {"target_reached_share_95.low", low},
                                 {"target_reached_share_95.high", high},
                                 {"target_reached_share_union", share(reached_union)},
                                 {"mass_mean", Mean(own)},
                                 {"mass_p1", Percentile(own, 0.01)},
                                 {"mass_min", Least(own)},
                                 {"union_mass_mean", Mean(group)},
                                 {"union_mass_min", Least(group)}});
}

void QualityPool::AddTokens(Fields* fields) const {
  const auto own = Each([](const QualityCase& c) { return c.own_rows; });
  const auto group = Each([](const QualityCase& c) { return c.union_rows; });
  const auto optimal = Each([](const QualityCase& c) { return c.optimal_rows; });
  const auto visible = Each([](const QualityCase& c) { return c.visible_rows; });
  fields->insert(fields->end(), {{"tokens", Mean(own)},
                                 {"tokens_union", Mean(group)},
                                 {"tokens_optimal", Mean(optimal)},
                                 {"tokens_visible", Mean(visible)},
                                 {"tokens_over_optimal", Ratio(Sum(own), Sum(optimal))},
                                 {"tokens_union_over_optimal", Ratio(Sum(group), Sum(optimal))}});
}

void QualityPool::AddReads(Fields* fields) const {
  QualityReads sum;
  double steps = 0;
  for (const Part& part : parts_) {
    for (const QualityReads& reads : part.samples->reads) {
      sum.total += reads.total;
      sum.clusters += reads.clusters;
      sum.codes += reads.codes;
      sum.rows += reads.rows;
      steps += 1;
    }
  }
  fields->insert(fields->end(), {{"bytes_read_fraction.total", Ratio(sum.total, steps)},
                                 {"bytes_read_fraction.clusters", Ratio(sum.clusters, steps)},
                                 {"bytes_read_fraction.codes", Ratio(sum.codes, steps)},
                                 {"bytes_read_fraction.rows", Ratio(sum.rows, steps)}});
}

void QualityPool::AddErrors(Fields* fields) const {
  const auto errors = Each([](const QualityCase& c) { return c.output_error; });
  fields->insert(fields->end(), {{"output_error_mean", Mean(errors)},
                                 {"output_error_p99", Percentile(errors, 0.99)}});
}

void QualityPool::AddBelief(Fields* fields) const {
  std::vector<double> beliefs;
  int64_t overclaims = 0;
  for (const Part& part : parts_) {
    for (const QualityCase& one : part.samples->cases) {
      if (one.p_hat < 0) continue;
      beliefs.push_back(one.p_hat);
      overclaims += one.p_hat >= target_ && one.own_mass < target_ - kOverclaim;
    }
  }
  const auto extended = Each([](const QualityCase& c) { return c.rounds > 0; });
  const auto code_errors = Each([](const QualityCase& c) { return c.code_error; });
  fields->insert(fields->end(),
                 {{"p_hat_mean", Mean(beliefs)},
                  {"p_hat_min", Least(beliefs)},
                  {"p_hat_overclaims", beliefs.empty() ? kNone : static_cast<double>(overclaims)},
                  {"extended_share", Mean(extended)},
                  {"code_error_mean", beliefs.empty() ? kNone : Mean(code_errors)}});
}

void QualityPool::AddIndex(Fields* fields) const {
  double index_bytes = 0, kv_bytes = 0, nanoseconds = 0;
  for (const Part& part : parts_) {
    index_bytes += static_cast<double>(part.replay->index_bytes);
    kv_bytes += static_cast<double>(part.replay->kv_bytes);
    nanoseconds += static_cast<double>(part.replay->build_ns);
  }
  fields->insert(fields->end(), {{"index_bytes_fraction", Ratio(index_bytes, kv_bytes)},
                                 {"index_build_ms", nanoseconds / 1e6 / traces_}});
}

}  // namespace tactic::app
