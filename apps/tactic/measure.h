// Measure: what decode steps took and what they read, as `run`, `bench` and `demo` report it.
#ifndef TACTIC_APPS_MEASURE_H_
#define TACTIC_APPS_MEASURE_H_

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "session.h"
#include "tactic_llama/hook.h"

namespace tactic::app {

// Order statistics of a set of times, in milliseconds. NaN for an empty set.
struct Quantiles {
  double median;
  double p10;
  double p90;
};
Quantiles Summarize(std::vector<double> values);

// {"median", "p10", "p90"}, null for an empty set.
nlohmann::json ToJson(const Quantiles& quantiles);

// Measured attention mass: averages over (layer, query head, step).
struct Mass {
  double own_mean = 0;     // of the head's own selection
  double own_reached = 0;  // share of cases whose own selection reached the target
  double union_mean = 0;   // of what the heads that share K and V read together
  double union_reached = 0;
  int64_t cases = 0;
};

// What the selections of policy tactic know of themselves, without any measurement. Averages over
// (layer, query head, step).
struct Belief {
  double p_hat_mean = 0;      // mass that a selection is believed to hold
  double p_hat_min = 0;       // of the worst selection
  double extended_share = 0;  // of selections that fell short of the target at first
  // Share of the measured cases that claimed the target and missed it by more than 0.05; absent
  // when nothing was measured.
  std::optional<double> overclaimed_share;
  double code_error_mean = 0;  // predicted error of a code's logit, over selections that used codes
  double code_error_max = 0;
};

// What every record of a session says of it: model, threads, cache types, instruction set,
// llama.cpp.
nlohmann::json SessionFields(const Session& session);

// Whether a policy reads a part of the cache and leaves the rest.
bool Selects(llama::Policy policy);

// What a policy's decode steps cost. Filled from several TakeStats, so totals are kept.
class Cost {
 public:
  explicit Cost(const llama::HookOptions& options) : options_(options) {}

  void AddTime(double milliseconds) { milliseconds_.push_back(milliseconds); }
  // Statistics of steps that count for reading.
  void AddReads(const llama::HookStats& stats);
  // Statistics of steps with MeasureMass on.
  void AddMass(const llama::HookStats& stats);
  // The largest index and the longest building that was seen.
  void AddIndex(const llama::HookStats& stats);

  const llama::HookOptions& options() const { return options_; }
  llama::Policy policy() const { return options_.policy; }
  size_t steps() const { return milliseconds_.size(); }
  Quantiles Time() const { return Summarize(milliseconds_); }
  // Share of what dense attention reads. 1 for stock and dense, which read everything.
  double RowsFraction() const;
  double BytesFraction() const;
  // Bytes of K, V and index that a step read; 0 when unknown (stock).
  double BytesPerStep() const;
  double RowsPerStep() const;
  int64_t fallbacks() const { return fallbacks_; }
  int64_t index_bytes() const { return index_bytes_; }
  double index_build_ms() const { return static_cast<double>(index_build_ns_) / 1e6; }
  // Exactly 1 for stock and dense by definition; absent when nothing was measured.
  std::optional<Mass> MassReached() const;
  // Absent for policies that do not check themselves.
  std::optional<Belief> Believed() const;
  // Believed() as a sentence without its end; empty when that is absent.
  std::string BeliefText() const;

  // Adds the fields that bench records, demo policies and runs share.
  void AddTo(nlohmann::json* record) const;

 private:
  void AddBelief(const llama::HookStats& stats);
  double ShareOfDense(int64_t bytes) const;

  llama::HookOptions options_;
  std::vector<double> milliseconds_;
  int64_t tokens_ = 0;
  int64_t rows_read_ = 0, rows_dense_ = 0, bytes_read_ = 0, bytes_dense_ = 0;
  int64_t bytes_clusters_ = 0, bytes_codes_ = 0;
  int64_t fallbacks_ = 0;
  int64_t index_bytes_ = 0, index_build_ns_ = 0;
  int64_t cases_ = 0, own_reached_ = 0, union_reached_ = 0;
  double own_mass_sum_ = 0, union_mass_sum_ = 0;
  int64_t selections_ = 0, extended_ = 0, overclaims_ = 0, coded_ = 0;
  double p_hat_sum_ = 0, p_hat_min_ = 1, code_error_sum_ = 0, code_error_max_ = 0;
};

// "3.4x", or "-" when either time is missing.
std::string Speedup(double milliseconds, double baseline_milliseconds);
// 1e9 bytes a second; 0 when the time is missing.
double GigabytesPerSecond(double bytes, double milliseconds);
// "12.3 %"
std::string Percent(double fraction);

}  // namespace tactic::app

#endif  // TACTIC_APPS_MEASURE_H_
