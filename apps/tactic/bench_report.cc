#include "bench_report.h"

#include <fmt/format.h>

#include "report.h"

namespace tactic::app {
namespace {

using llama::Policy;

nlohmann::json OrNull(std::optional<double> value) {
  return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
}

// 0 stands for unknown.
template <typename T>
nlohmann::json OrNull(T value) {
  return value > 0 ? nlohmann::json(value) : nlohmann::json(nullptr);
}

std::optional<double> MedianOf(const std::vector<double>& times) {
  if (times.empty()) return std::nullopt;
  return Summarize(times).median;
}

nlohmann::json SpeedupJson(std::optional<double> baseline, double milliseconds) {
  return baseline && milliseconds > 0 ? nlohmann::json(*baseline / milliseconds)
                                      : nlohmann::json(nullptr);
}

}  // namespace

Quantiles DepthResult::Time(const Cost& cost) const {
  const Quantiles on = cost.Time();
  if (cost.policy() != Policy::kStock || fa_off_ms.empty()) return on;
  const Quantiles off = Summarize(fa_off_ms);
  return off.median < on.median ? off : on;
}

std::optional<double> DepthResult::Median(Policy policy) const {
  for (const Cost& cost : costs) {
    if (cost.policy() == policy && cost.steps() > 0) return Time(cost).median;
  }
  return std::nullopt;
}

double DepthResult::GigabytesPerSecond(const Cost& cost) const {
  return app::GigabytesPerSecond(static_cast<double>(kv_bytes) * cost.BytesFraction(),
                                 Time(cost).median);
}

void PrintBenchTable(const std::vector<DepthResult>& results, double target, bool random_fill,
                     FILE* out) {
  if (random_fill) {
    fmt::print(
        out,
        "K and V are random: attention is flat there, so only the times of stock and dense mean "
        "anything; mass is not measured.\n");
  }
  for (const DepthResult& result : results) {
    if (!result.synthetic) continue;
    const SyntheticFacts& facts = *result.synthetic;
    fmt::print(
        out,
        "K and V at {} are synthetic: 90 % of the mass are in {:.0f} tokens ({:.0f} were asked "
        "for), {:.2f} of it on the first token, {:.2f} on the newest 64\n",
        result.depth, facts.needed, facts.asked, facts.first, facts.recent);
  }
  Table table({"depth", "policy", "ms/token", "p10-p90", "vs stock", "vs dense", "rows", "bytes",
               "mass", fmt::format("reached {}", target), "GB/s"});
  for (const DepthResult& result : results) {
    const double stock = result.Median(Policy::kStock).value_or(0);
    const double dense = result.Median(Policy::kDense).value_or(0);
    for (const Cost& cost : result.costs) {
      const Quantiles time = result.Time(cost);
      const std::optional<Mass> mass = random_fill ? std::nullopt : cost.MassReached();
      const double gigabytes = result.GigabytesPerSecond(cost);
      table.AddRow(
          {fmt::format("{}", result.depth), llama::PolicyName(cost.policy()),
           fmt::format("{:.2f}", time.median), fmt::format("{:.2f}-{:.2f}", time.p10, time.p90),
           Speedup(time.median, stock), Speedup(time.median, dense), Percent(cost.RowsFraction()),
           Percent(cost.BytesFraction()), mass ? fmt::format("{:.3f}", mass->own_mean) : "-",
           mass ? Percent(mass->own_reached) : "-",
           gigabytes > 0 ? fmt::format("{:.1f}", gigabytes) : "-"});
    }
  }
  table.Print(out);
  for (const DepthResult& result : results) {
    for (const Cost& cost : result.costs) {
      const std::string belief = cost.BeliefText();
      if (belief.empty()) continue;
      fmt::print(out, "{} at {}: {}\n", llama::PolicyName(cost.policy()), result.depth, belief);
    }
  }
  for (const DepthResult& result : results) {
    for (const StepStages& stages : result.stages) PrintStages(stages, out);
  }
  for (const DepthResult& result : results) {
    for (const Cost& cost : result.costs) {
      if (cost.policy() != Policy::kStock) continue;
      const std::optional<double> off = MedianOf(result.fa_off_ms);
      fmt::print(
          out, "stock at {}: {:.2f} ms with flash attention, {} without; the faster counts\n",
          result.depth, cost.Time().median, off ? fmt::format("{:.2f} ms", *off) : "not measured");
    }
  }
}

nlohmann::json BenchRecords(const std::vector<DepthResult>& results, const nlohmann::json& common) {
  nlohmann::json records = nlohmann::json::array();
  for (const DepthResult& result : results) {
    for (const Cost& cost : result.costs) {
      nlohmann::json record = common;
      cost.AddTo(&record);
      const Quantiles time = result.Time(cost);
      record["depth"] = result.depth;
      record["ms_per_token"] = ToJson(time);
      record["tokens_per_step"] = 1;
      record["kv_bytes"] = OrNull(result.kv_bytes);
      record["gb_per_s"] = OrNull(result.GigabytesPerSecond(cost));
      record["speedup_vs_stock"] = SpeedupJson(result.Median(Policy::kStock), time.median);
      record["speedup_vs_dense"] = SpeedupJson(result.Median(Policy::kDense), time.median);
      const bool stock = cost.policy() == Policy::kStock;
      record["stock_fa_on_ms"] = OrNull(stock ? std::optional(cost.Time().median) : std::nullopt);
      record["stock_fa_off_ms"] = OrNull(stock ? MedianOf(result.fa_off_ms) : std::nullopt);
      for (const StepStages& stages : result.stages) {
        if (stages.policy == cost.policy()) record["stages"] = StagesJson(stages);
      }
      if (result.synthetic) record["synthetic"] = ToJson(*result.synthetic);
      if (common.at("fill") == "random") {
        for (const char* field : {"mass_reached_mean", "target_reached_share", "mass_union_mean",
                                  "target_reached_share_union"}) {
          record[field] = nullptr;
        }
      }
      records.push_back(std::move(record));
    }
  }
  return records;
}

}  // namespace tactic::app
