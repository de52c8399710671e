#include "quality_report.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <optional>
#include <set>

#include "defaults.h"
#include "measure.h"
#include "report.h"
#include "tactic/isa.h"

namespace tactic::app {
namespace {

using Fields = QualityPool::Fields;

// Of one file and layer, or of all.
struct Scope {
  std::optional<size_t> file;
  std::optional<int> layer;
};

Fields SummaryOf(const QualityResults& results, size_t policy, size_t target, const Scope& scope) {
  QualityPool pool(results.targets[target]);
  std::set<size_t> files;
  for (const ReplayedLayer& one : results.layers) {
    if (scope.file.value_or(one.file) != one.file) continue;
    if (scope.layer.value_or(one.layer) != one.layer) continue;
    pool.Add(one.policies[policy], target);
    files.insert(one.file);
  }
  pool.SetTraces(static_cast<int>(files.size()));
  return pool.Summarize();
}

nlohmann::json ValueJson(const std::string& name, double value) {
  if (std::isnan(value)) return nullptr;
  if (name == "cases" || name == "p_hat_overclaims") return static_cast<int64_t>(value);
  return value;
}

nlohmann::json FieldsJson(const Fields& fields) {
  nlohmann::json json = nlohmann::json::object();
  for (const auto& [name, value] : fields) {
    const size_t dot = name.find('.');
    if (dot == std::string::npos) {
      json[name] = ValueJson(name, value);
    } else {
      json[name.substr(0, dot)][name.substr(dot + 1)] = ValueJson(name, value);
    }
  }
  return json;
}

nlohmann::json TraceJson(const TraceFile& trace) {
  const TraceInfo& info = trace.info();
  return {{"file", trace.path()},
          {"model", info.model},
          {"lora", info.lora},
          {"text", info.text},
          {"skip", info.skip},
          {"depth", info.depth},
          {"steps", info.steps},
          {"generated", info.generated},
          {"sliding_layers", info.sliding_layers}};
}

std::vector<int> LayersOf(const QualityResults& results, size_t file) {
  std::vector<int> numbers;
  for (const ReplayedLayer& one : results.layers) {
    if (one.file == file) numbers.push_back(one.layer);
  }
  return numbers;
}

std::string Quoted(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + "\"";
}

std::string FileName(const TraceFile& trace) {
  return std::filesystem::path(trace.path()).filename().string();
}

std::string Number(double value, const char* format) {
  return std::isnan(value) ? "-" : fmt::format(fmt::runtime(format), value);
}

std::string Share(double value) { return std::isnan(value) ? "-" : Percent(value); }

}  // namespace

std::vector<int> QualityResults::LayerNumbers() const {
  std::set<int> numbers;
  for (const ReplayedLayer& one : layers) numbers.insert(one.layer);
  return {numbers.begin(), numbers.end()};
}

void PrintQualityTable(const QualityResults& results, FILE* out) {
  const bool several = results.traces.size() > 1;
  Table table({"policy", "target", "reached", "95 %", "by group", "mass", "p1", "min", "rows",
               "by group", "/optimal", "bytes", "error", "error p99", "p_hat", "overclaims",
               "extended", "index"});
  const auto add = [&](size_t policy, size_t target, const Scope& scope) {
    const Fields fields = SummaryOf(results, policy, target, scope);
    const auto at = [&](const char* name) { return FieldOf(fields, name); };
    const std::string name =
        scope.file ? "  " + FileName(*results.traces[*scope.file]) : results.policies[policy].name;
    table.AddRow(
        {name, fmt::format("{}", results.targets[target]), Share(at("target_reached_share")),
         fmt::format("{:.1f}-{:.1f}", 100 * at("target_reached_share_95.low"),
                     100 * at("target_reached_share_95.high")),
         Share(at("target_reached_share_union")), Number(at("mass_mean"), "{:.4f}"),
         Number(at("mass_p1"), "{:.3f}"), Number(at("mass_min"), "{:.3f}"),
         Share(at("tokens") / at("tokens_visible")),
         Share(at("tokens_union") / at("tokens_visible")),
         Number(at("tokens_over_optimal"), "{:.2f}x"), Share(at("bytes_read_fraction.total")),
         Number(at("output_error_mean"), "{:.2g}"), Number(at("output_error_p99"), "{:.2g}"),
         Number(at("p_hat_mean"), "{:.4f}"), Number(at("p_hat_overclaims"), "{:.0f}"),
         Share(at("extended_share")), Share(at("index_bytes_fraction"))});
  };
  for (size_t target = 0; target < results.targets.size(); ++target) {
    for (size_t policy = 0; policy < results.policies.size(); ++policy) {
      add(policy, target, {});
      for (size_t file = 0; several && file < results.traces.size(); ++file) {
        add(policy, target, {file, std::nullopt});
      }
    }
  }
  table.Print(out);
}

nlohmann::json QualityRecords(const QualityResults& results) {
  nlohmann::json records = nlohmann::json::array();
  for (size_t target = 0; target < results.targets.size(); ++target) {
    for (size_t policy = 0; policy < results.policies.size(); ++policy) {
      nlohmann::json record = FieldsJson(SummaryOf(results, policy, target, {}));
      record["policy"] = results.policies[policy].name;
      record["target"] = results.targets[target];
      record["options"] = OptionsJson(results.policies[policy].options);
      record["steps_first"] = results.steps.first;
      record["steps_every"] = results.steps.every;
      record["isa"] = IsaName();
      record["per_layer"] = nlohmann::json::array();
      for (const int layer : results.LayerNumbers()) {
        nlohmann::json one = FieldsJson(SummaryOf(results, policy, target, {std::nullopt, layer}));
        one["layer"] = layer;
        record["per_layer"].push_back(std::move(one));
      }
      record["per_file"] = nlohmann::json::array();
      for (size_t file = 0; file < results.traces.size(); ++file) {
        nlohmann::json one = FieldsJson(SummaryOf(results, policy, target, {file, std::nullopt}));
        one.update(TraceJson(*results.traces[file]));
        one["layers"] = LayersOf(results, file);
        record["per_file"].push_back(std::move(one));
      }
      records.push_back(std::move(record));
    }
  }
  return records;
}

std::string QualityCsv(const QualityResults& results) {
  std::string csv;
  const auto add = [&](size_t policy, size_t target, const Scope& scope) {
    const Fields fields = SummaryOf(results, policy, target, scope);
    if (csv.empty()) {
      csv = "policy,target,file,layer";
      for (const auto& [name, value] : fields) csv += "," + name;
      csv += "\n";
    }
    csv += fmt::format(
        "{},{},{},{}", Quoted(results.policies[policy].name), results.targets[target],
        scope.file ? Quoted(results.traces[*scope.file]->path()) : "all", scope.layer.value_or(-1));
    for (const auto& [name, value] : fields) {
      csv += std::isnan(value) ? "," : fmt::format(",{}", value);
    }
    csv += "\n";
  };
  for (size_t target = 0; target < results.targets.size(); ++target) {
    for (size_t policy = 0; policy < results.policies.size(); ++policy) {
      add(policy, target, {});
      for (const int layer : results.LayerNumbers()) add(policy, target, {std::nullopt, layer});
      if (results.traces.size() == 1) continue;
      for (size_t file = 0; file < results.traces.size(); ++file) {
        add(policy, target, {file, std::nullopt});
        for (const int layer : LayersOf(results, file)) add(policy, target, {file, layer});
      }
    }
  }
  return csv;
}

}  // namespace tactic::app
