#include "dense_below.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string_view>

#include "atomic_file.h"
#include "machine.h"
#include "measure.h"
#include "quality_policy.h"
#include "tactic/isa.h"
#include "tactic/tactic.h"

namespace tactic::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::optional<ElementType> TypeOf(ggml_type type) {
  for (int i = 0; i < kElementTypes; ++i) {
    const auto candidate = static_cast<ElementType>(i);
    if (std::string_view(ElementTypeName(candidate)) == ggml_type_name(type)) return candidate;
  }
  return std::nullopt;
}

// The tokens of an entry with this key; none when it is not one, or not a sound one.
std::optional<int> TokensOf(const json& entry, const json& key) {
  if (!entry.is_object() || entry.value("key", json()) != key) return std::nullopt;
  const json tokens = entry.value("tokens", json());
  if (!tokens.is_number_integer()) return std::nullopt;
  const auto n = tokens.get<int64_t>();
  if (n < 0 || n > std::numeric_limits<int>::max()) return std::nullopt;
  return static_cast<int>(n);
}

}  // namespace

json CalibrationKey(const CalibrationRequest& request) {
  json options = OptionsJson(request.options);
  options.erase("dense-below");  // what is asked for
  options["target"] = request.options.target;
  const LayerShape& shape = request.shape;
  return {{"version", tactic_version()},
          {"cpu", CpuName()},  // the same name is taken to be the same speed
          {"isa", IsaName()},
          {"threads", request.threads},
          {"shape", {shape.q_heads, shape.kv_heads, shape.head_dim, shape.value_dim}},
          {"key_type", ElementTypeName(request.key_type)},
          {"value_type", ElementTypeName(request.value_type)},
          {"mode", ModeName(request.options.mode)},
          {"options", options}};
}

std::string CalibrationCache::Path() const {
  return (fs::path(folder_) / "dense_below.json").string();
}

json CalibrationCache::Entries(bool complain) const {
  json entries = json::array();
  std::error_code ignored;
  if (folder_.empty() || !fs::exists(Path(), ignored)) return entries;
  std::ifstream file(Path());
  json read = json::parse(file, nullptr, false);
  if (read.is_array()) return read;
  if (complain) spdlog::warn("the measurements in '{}' are damaged and are made again", Path());
  return entries;
}

void CalibrationCache::Keep(const json& key, const Calibration& found) const {
  if (folder_.empty()) return;
  json points = json::array();
  for (const CalibrationPoint& point : found.points) {
    points.push_back(
        {{"tokens", point.tokens}, {"dense_ms", 1e3 * point.dense}, {"mode_ms", 1e3 * point.mode}});
  }
  json entries = Entries(false);  // again: another program may have added some
  const auto same = [&](const json& entry) {
    return entry.is_object() && entry.value("key", json()) == key;
  };
  entries.erase(std::remove_if(entries.begin(), entries.end(), same), entries.end());
  entries.push_back(
      {{"key", key}, {"tokens", found.tokens}, {"found", found.found}, {"points", points}});
  std::error_code error;
  fs::create_directories(folder_, error);  // if it fails, so does writing
  const Status status = WriteFile(Path(), entries.dump(1) + "\n", "the measurement is not kept");
  if (!status.ok()) spdlog::warn("{}", status.message());
}

std::optional<int> CalibrationCache::Tokens(const CalibrationRequest& request) const {
  const json key = CalibrationKey(request);
  const char* mode = ModeName(request.options.mode);
  for (const json& entry : Entries(true)) {
    const std::optional<int> tokens = TokensOf(entry, key);
    if (!tokens) continue;
    spdlog::debug("policy {} reads densely below {} tokens, as measured before", mode, *tokens);
    return tokens;
  }
  Calibration found;
  const Status status = measure_(request, &found);
  if (!status.ok()) {
    spdlog::warn("--dense-below is not measured: {}", status.message());
    return std::nullopt;
  }
  spdlog::info("policy {} reads densely below {} tokens: {}", mode, found.tokens,
               found.found ? "from there on it was faster" : "it was not faster yet");
  Keep(key, found);
  return static_cast<int>(found.tokens);
}

void ChooseDenseBelow(const Session& session, const std::string& folder,
                      llama::HookOptions* policy) {
  // A context that the default reads densely throughout gains little from a measurement.
  if (!Selects(policy->policy) || session.capacity() <= policy->tactic.dense_below) return;
  const std::optional<ElementType> key_type = TypeOf(session.options().type_k);
  const std::optional<ElementType> value_type = TypeOf(session.options().type_v);
  const ModelFacts& facts = session.model().facts();
  CalibrationRequest request;
  request.shape = {facts.q_heads, facts.kv_heads, facts.head_dim_k, facts.head_dim_v};
  // Layers whose heads differ have the first layer's.
  if (!key_type || !value_type || !request.shape.Validate().ok()) return;
  request.options = policy->tactic;
  request.threads = session.options().threads;
  request.key_type = *key_type;
  request.value_type = *value_type;
  const std::optional<int> tokens = CalibrationCache(folder).Tokens(request);
  if (tokens) policy->tactic.dense_below = *tokens;
}

}  // namespace tactic::app
