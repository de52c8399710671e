#include "measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "defaults.h"
#include "machine.h"
#include "tactic/isa.h"

namespace tactic::app {
namespace {

double Ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

// The parameters that a policy decodes with; null where it has no use for one.
nlohmann::json Parameters(const llama::HookOptions& options) {
  const Options& o = options.tactic;
  const bool selects = Selects(options.policy), tactic = options.policy == llama::Policy::kTactic;
  nlohmann::json json;
  const auto field = [&](const char* name, bool used, const nlohmann::json& value) {
    json[name] = used ? value : nlohmann::json(nullptr);
  };
  field("cluster_size", selects, o.cluster_size);
  field("kmeans_iterations", selects, o.kmeans_iterations);
  field("segment_size", selects, o.segment_size);
  field("sinks", selects, o.sinks);
  field("recent", selects, o.recent);
  field("dense_below", selects, o.dense_below);
  field("index", tactic, IndexKindName(o.index));
  field("bits", tactic, o.bits);  // 0: auto
  field("bits_error", tactic, o.bits_error);
  field("skip_share", tactic, o.skip_share);
  field("skip_token", tactic, o.skip_token);
  field("unread_margin", tactic, o.unread_margin);
  field("skipped_margin", tactic, o.skipped_margin);
  field("rounds", tactic, o.rounds);
  field("tail", tactic, o.tail);
  field("dense_share", tactic, o.dense_share);
  return json;
}

}  // namespace

nlohmann::json SessionFields(const Session& session) {
  const SessionOptions& options = session.options();
  return {
      {"model", session.model().path()},
      {"lora", session.model().lora_path()},
      {"rope_freq_base", options.rope_freq_base},
      {"threads", options.threads},
      {"kv_type_k", ggml_type_name(options.type_k)},
      {"kv_type_v", ggml_type_name(options.type_v)},
      {"cpu", CpuName()},
      {"isa", IsaName()},
      {"llama_version", LlamaBuild()},
  };
}

bool Selects(llama::Policy policy) {
  return policy == llama::Policy::kPaper || policy == llama::Policy::kTactic;
}

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
  bytes_clusters_ += stats.bytes_clusters;
  bytes_codes_ += stats.bytes_codes;
  bytes_dense_ += stats.bytes_dense;
  fallbacks_ += stats.fallbacks;
  AddBelief(stats);
  AddIndex(stats);
}

void Cost::AddMass(const llama::HookStats& stats) {
  cases_ += stats.cases;
  own_mass_sum_ += stats.own_mass_sum;
  own_reached_ += stats.own_reached;
  union_mass_sum_ += stats.union_mass_sum;
  union_reached_ += stats.union_reached;
  overclaims_ += stats.overclaims;
  AddBelief(stats);
}

void Cost::AddBelief(const llama::HookStats& stats) {
  selections_ += stats.selections;
  extended_ += stats.extended;
  coded_ += stats.coded;
  p_hat_sum_ += stats.p_hat_sum;
  p_hat_min_ = std::min(p_hat_min_, stats.p_hat_min);
  code_error_sum_ += stats.code_error_sum;
  code_error_max_ = std::max(code_error_max_, stats.code_error_max);
}

void Cost::AddIndex(const llama::HookStats& stats) {
  if (!Selects(policy())) return;  // what was built was built for another policy
  index_bytes_ = std::max(index_bytes_, stats.index_bytes);
  index_build_ns_ = std::max(index_build_ns_, stats.index_build_ns);
}

double Cost::RowsFraction() const {
  return rows_dense_ > 0 ? static_cast<double>(rows_read_) / static_cast<double>(rows_dense_) : 1;
}

double Cost::BytesFraction() const { return bytes_dense_ > 0 ? ShareOfDense(bytes_read_) : 1; }

double Cost::ShareOfDense(int64_t bytes) const {
  return Ratio(static_cast<double>(bytes), static_cast<double>(bytes_dense_));
}

double Cost::BytesPerStep() const {
  return Ratio(static_cast<double>(bytes_read_), static_cast<double>(tokens_));
}

double Cost::RowsPerStep() const {
  return Ratio(static_cast<double>(rows_read_), static_cast<double>(tokens_));
}

std::optional<Mass> Cost::MassReached() const {
  if (!Selects(policy())) return Mass{1, 1, 1, 1, 0};
  if (cases_ == 0) return std::nullopt;
  const auto cases = static_cast<double>(cases_);
  return Mass{own_mass_sum_ / cases, static_cast<double>(own_reached_) / cases,
              union_mass_sum_ / cases, static_cast<double>(union_reached_) / cases, cases_};
}

std::optional<Belief> Cost::Believed() const {
  if (selections_ == 0) return std::nullopt;
  const auto selections = static_cast<double>(selections_);
  Belief belief{.p_hat_mean = p_hat_sum_ / selections,
                .p_hat_min = p_hat_min_,
                .extended_share = static_cast<double>(extended_) / selections,
                .overclaimed_share = std::nullopt,
                .code_error_mean = Ratio(code_error_sum_, static_cast<double>(coded_)),
                .code_error_max = code_error_max_};
  if (cases_ > 0) {
    belief.overclaimed_share = static_cast<double>(overclaims_) / static_cast<double>(cases_);
  }
  return belief;
}

std::string Cost::BeliefText() const {
  const std::optional<Belief> belief = Believed();
  if (!belief) return "";
  std::string text = fmt::format(
      "p_hat, the mass a selection believes it read: {:.3f} on average, {:.3f} at least; {} of the "
      "selections were extended",
      belief->p_hat_mean, belief->p_hat_min, Percent(belief->extended_share));
  if (belief->overclaimed_share) {
    text += fmt::format("; {} of the cases claimed the target and missed it by more than 0.05",
                        Percent(*belief->overclaimed_share));
  }
  return text;
}

void Cost::AddTo(nlohmann::json* record) const {
  nlohmann::json& out = *record;
  out["policy"] = llama::PolicyName(policy());
  out.update(Parameters(options_));
  out["ms_per_token"] = ToJson(Time());
  out["steps_timed"] = steps();
  out["rows_read_fraction"] = RowsFraction();
  out["bytes_read_fraction"] = BytesFraction();
  out["bytes_clusters_fraction"] = ShareOfDense(bytes_clusters_);
  out["bytes_codes_fraction"] = ShareOfDense(bytes_codes_);
  out["bytes_rows_fraction"] = BytesFraction() - ShareOfDense(bytes_clusters_ + bytes_codes_);
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
  const std::optional<Belief> believed = Believed();
  const Belief belief = believed.value_or(Belief{});
  const auto belief_field = [&](const char* name, std::optional<double> value) {
    out[name] = believed && value ? nlohmann::json(*value) : nlohmann::json(nullptr);
  };
  belief_field("p_hat_mean", belief.p_hat_mean);
  belief_field("p_hat_min", belief.p_hat_min);
  belief_field("extended_share", belief.extended_share);
  belief_field("overclaimed_share", belief.overclaimed_share);
  belief_field("code_error_mean", belief.code_error_mean);
  belief_field("code_error_max", belief.code_error_max);
}

std::string Speedup(double milliseconds, double baseline_milliseconds) {
  if (!(milliseconds > 0) || !(baseline_milliseconds > 0)) return "-";
  return fmt::format("{:.2f}x", baseline_milliseconds / milliseconds);
}

double GigabytesPerSecond(double bytes, double milliseconds) {
  return milliseconds > 0 ? bytes / (milliseconds * 1e6) : 0;
}

std::string Percent(double fraction) { return fmt::format("{:.1f} %", 100 * fraction); }

}  // namespace tactic::app
