#include "measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace tactic::app {
namespace {

bool ReadsEverything(llama::Policy policy) {
  return policy == llama::Policy::kStock || policy == llama::Policy::kDense;
}

double Ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

}  // namespace

Quantiles Summarize(std::vector<double> values) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  if (values.empty()) return {kNone, kNone, kNone};
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return values[static_cast<size_t>(std::lround(share * static_cast<double>(values.size() - 1)))];
  };
  return {at(0.5), at(0.1), at(0.9)};
}

nlohmann::json ToJson(const Quantiles& quantiles) {
  if (std::isnan(quantiles.median)) return nullptr;
  return {{"median", quantiles.median}, {"p10", quantiles.p10}, {"p90", quantiles.p90}};
}

void Cost::AddReads(const llama::HookStats& stats) {
  tokens_ += stats.tokens;
  rows_read_ += stats.rows_read;
  rows_dense_ += stats.rows_dense;
  bytes_read_ += stats.bytes_read;
  bytes_dense_ += stats.bytes_dense;
  fallbacks_ += stats.fallbacks;
  AddIndex(stats);
}

void Cost::AddMass(const llama::HookStats& stats) {
  cases_ += stats.cases;
  own_mass_sum_ += stats.own_mass_sum;
  own_reached_ += stats.own_reached;
  union_mass_sum_ += stats.union_mass_sum;
  union_reached_ += stats.union_reached;
}

void Cost::AddIndex(const llama::HookStats& stats) {
  if (ReadsEverything(policy_)) return;  // an index that exists was built for another policy
  index_bytes_ = std::max(index_bytes_, stats.index_bytes);
  index_build_ns_ = std::max(index_build_ns_, stats.index_build_ns);
}

double Cost::RowsFraction() const {
  return rows_dense_ > 0 ? static_cast<double>(rows_read_) / static_cast<double>(rows_dense_) : 1;
}

double Cost::BytesFraction() const {
  return bytes_dense_ > 0 ? static_cast<double>(bytes_read_) / static_cast<double>(bytes_dense_)
                          : 1;
}

double Cost::BytesPerStep() const {
  return Ratio(static_cast<double>(bytes_read_), static_cast<double>(tokens_));
}

double Cost::RowsPerStep() const {
  return Ratio(static_cast<double>(rows_read_), static_cast<double>(tokens_));
}

std::optional<Mass> Cost::MassReached() const {
  if (ReadsEverything(policy_)) return Mass{1, 1, 1, 1, 0};
  if (cases_ == 0) return std::nullopt;
  const auto cases = static_cast<double>(cases_);
  return Mass{own_mass_sum_ / cases, static_cast<double>(own_reached_) / cases,
              union_mass_sum_ / cases, static_cast<double>(union_reached_) / cases, cases_};
}

void Cost::AddTo(nlohmann::json* record) const {
  nlohmann::json& out = *record;
  out["policy"] = llama::PolicyName(policy_);
  out["ms_per_token"] = ToJson(Time());
  out["steps_timed"] = steps();
  out["rows_read_fraction"] = RowsFraction();
  out["bytes_read_fraction"] = BytesFraction();
  out["fallbacks"] = fallbacks_;
  out["index_bytes"] = index_bytes_;
  out["index_build_ms"] = index_build_ms();
  const std::optional<Mass> measured = MassReached();
  const Mass mass = measured.value_or(Mass{});
  const auto field = [&](const char* name, double value) {
    out[name] = measured ? nlohmann::json(value) : nlohmann::json(nullptr);
  };
  field("mass_reached_mean", mass.own_mean);
  field("target_reached_share", mass.own_reached);
  field("mass_union_mean", mass.union_mean);
  field("target_reached_share_union", mass.union_reached);
  out["mass_cases"] = cases_;
}

std::string Speedup(double milliseconds, double baseline_milliseconds) {
  if (!(milliseconds > 0) || !(baseline_milliseconds > 0)) return "-";
  return fmt::format("{:.2f}x", baseline_milliseconds / milliseconds);
}

std::string Percent(double fraction) { return fmt::format("{:.1f} %", 100 * fraction); }

}  // namespace tactic::app
