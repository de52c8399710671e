#include "bench_stages.h"

#include <fmt/format.h>

#include "measure.h"
#include "report.h"

namespace tactic::app {
namespace {

using llama::kStageNames;
using llama::kStages;
using llama::Stage;

// A decode step has no prompt.
std::vector<Stage> DecodeStages() {
  std::vector<Stage> stages;
  for (int i = 0; i < kStages; ++i) {
    if (static_cast<Stage>(i) != Stage::kPrompt) stages.push_back(static_cast<Stage>(i));
  }
  return stages;
}

const char* Name(Stage stage) { return kStageNames[static_cast<size_t>(stage)]; }

double LayerMilliseconds(const StepStages& of, const llama::LayerTimes& layer, Stage stage) {
  return static_cast<double>(layer.ns[static_cast<size_t>(stage)]) / 1e6 / of.threads / of.steps;
}

std::string Positive(double value, const char* format) {
  return value > 0 ? fmt::format(fmt::runtime(format), value) : "-";
}

}  // namespace

double StepStages::Milliseconds(Stage stage) const {
  double sum = 0;
  for (const llama::LayerTimes& layer : layers) sum += LayerMilliseconds(*this, layer, stage);
  return sum;
}

void StepStages::AddReads(const llama::HookStats& stats) {
  bytes_clusters += stats.bytes_clusters;
  bytes_codes += stats.bytes_codes;
  bytes_rows += stats.bytes_rows;
}

double StepStages::Bytes(Stage stage) const {
  const auto per_step = [this](int64_t bytes) { return static_cast<double>(bytes) / steps; };
  if (policy == llama::Policy::kDense) return stage == Stage::kRank ? per_step(bytes_rows) : 0;
  switch (stage) {
    case Stage::kRank:
      return per_step(bytes_clusters);
    case Stage::kBudget:
      return per_step(bytes_codes);
    case Stage::kSelect:
    case Stage::kAttend:
      return per_step(bytes_rows) / 2;
    default:
      return 0;
  }
}

void PrintStages(const StepStages& stages, FILE* out) {
  std::vector<std::string> header = {"layer"};
  for (const Stage stage : DecodeStages()) header.emplace_back(Name(stage));
  header.emplace_back("all");
  Table table(header);
  for (const llama::LayerTimes& layer : stages.layers) {
    std::vector<std::string> row = {fmt::format("{}", layer.layer)};
    double all = 0;
    for (const Stage stage : DecodeStages()) {
      const double time = LayerMilliseconds(stages, layer, stage);
      row.push_back(fmt::format("{:.3f}", time));
      all += time;
    }
    row.push_back(fmt::format("{:.3f}", all));
    table.AddRow(row);
  }
  std::vector<std::string> times = {"ms"}, shares = {"share"}, bytes = {"MB"}, rates = {"GB/s"};
  double all_ms = 0, all_bytes = 0;
  const auto add = [&](double ms, double of_bytes) {
    times.push_back(fmt::format("{:.2f}", ms));
    shares.push_back(fmt::format("{:.1f} %", 100 * ms / stages.step_ms));
    bytes.push_back(Positive(of_bytes / 1e6, "{:.2f}"));
    rates.push_back(Positive(GigabytesPerSecond(of_bytes, ms), "{:.1f}"));
  };
  for (const Stage stage : DecodeStages()) {
    add(stages.Milliseconds(stage), stages.Bytes(stage));
    all_ms += stages.Milliseconds(stage);
    all_bytes += stages.Bytes(stage);
  }
  add(all_ms, all_bytes);
  for (const auto& row : {times, shares, bytes, rates}) table.AddRow(row);
  fmt::print(out, "{} at {}: a step takes {:.2f} ms, {:.2f} of them outside of these stages\n",
             llama::PolicyName(stages.policy), stages.depth, stages.step_ms,
             stages.step_ms - all_ms);
  table.Print(out);
}

nlohmann::json StagesJson(const StepStages& stages) {
  nlohmann::json json = {{"steps", stages.steps}, {"step_ms", stages.step_ms}};
  for (const Stage stage : DecodeStages()) {
    const double ms = stages.Milliseconds(stage);
    const double bytes = stages.Bytes(stage);
    json["stages"][Name(stage)] = {
        {"ms", ms}, {"bytes", bytes}, {"gb_per_s", GigabytesPerSecond(bytes, ms)}};
  }
  for (const llama::LayerTimes& layer : stages.layers) {
    nlohmann::json of = {{"layer", layer.layer}};
    for (const Stage stage : DecodeStages())
      of[Name(stage)] = LayerMilliseconds(stages, layer, stage);
    json["layers"].push_back(std::move(of));
  }
  return json;
}

}  // namespace tactic::app
