// What the cases of a policy at a target come to.
#ifndef TACTIC_APPS_QUALITY_STATS_H_
#define TACTIC_APPS_QUALITY_STATS_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "quality_replay.h"

namespace tactic::app {

// Pooled samples of one policy at one target: layers of one trace or of several. A case reached P
// when its mass is at least P - 0.001: nobody asks for the fourth digit, and float sums err in the
// fifth.
class QualityPool {
 public:
  explicit QualityPool(double target) : target_(target) {}

  // `k`: number of the target in `replay`. Pools keep a reference. Times and sizes of an index are
  // summed over the layers of a trace, and averaged over `traces`.
  void Add(const PolicyReplay& replay, size_t k);
  void SetTraces(int traces) { traces_ = traces; }

  // Names and values in the order of tables; NaN where there is none. Names with a dot are a group
  // and its member.
  using Fields = std::vector<std::pair<std::string, double>>;
  Fields Summarize() const;

 private:
  void AddMasses(Fields* fields) const;
  void AddTokens(Fields* fields) const;
  void AddReads(Fields* fields) const;
  void AddErrors(Fields* fields) const;
  void AddBelief(Fields* fields) const;
  void AddIndex(Fields* fields) const;

  // f(case) for all cases.
  template <class F>
  std::vector<double> Each(const F& f) const;

  const double target_;
  int traces_ = 1;
  struct Part {
    const PolicyReplay* replay;
    const QualitySamples* samples;
  };
  std::vector<Part> parts_;
};

// The smallest value that at least `share` of the values do not exceed (nearest rank). NaN for
// none.
double Percentile(std::vector<double> values, double share);

// Wilson's 95 % interval of a share of `n` cases, {low, high}. Cases of one step, or of
// neighbouring layers, are not independent, so the true interval is wider.
std::pair<double, double> WilsonInterval(int64_t hits, int64_t n);

// The value called `name`. REQUIRES: there is one.
double FieldOf(const QualityPool::Fields& fields, const std::string& name);

}  // namespace tactic::app

#endif  // TACTIC_APPS_QUALITY_STATS_H_
