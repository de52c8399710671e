#include "trace_metadata.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

namespace tactic::app {
namespace {

using nlohmann::json;

constexpr char kFormat[] = "tactic-trace-1";
// The largest context that the program's options allow.
constexpr int64_t kMostTokens = 1 << 28;
constexpr int64_t kMostLayers = 1 << 16;

// One number when all layers agree, else a list.
template <class T>
std::string PerLayer(const TraceInfo& info, const std::function<T(const TraceLayer&)>& get) {
  std::vector<T> values;
  for (const TraceLayer& layer : info.layers) values.push_back(get(layer));
  const bool same = std::all_of(values.begin(), values.end(),
                                [&](const T& value) { return value == values.front(); });
  return same && !values.empty() ? json(values.front()).dump() : json(values).dump();
}

std::vector<int> Layers(const TraceInfo& info) {
  std::vector<int> layers;
  for (const TraceLayer& layer : info.layers) layers.push_back(layer.layer);
  return layers;
}

// Reads fields; the first that is wrong is remembered.
class Fields {
 public:
  explicit Fields(const std::map<std::string, std::string>& metadata) : metadata_(metadata) {}

  std::string Text(const std::string& name) {
    const auto at = metadata_.find(name);
    if (at != metadata_.end()) return at->second;
    Fail(fmt::format("metadata lacks '{}'", name));
    return "";
  }

  int64_t Number(const std::string& name, int64_t least, int64_t most) {
    const json value = Json(name);
    const bool good =
        value.is_number_integer() && value.get<int64_t>() >= least && value.get<int64_t>() <= most;
    if (!good) Expected(name, fmt::format("a number from {} to {}", least, most));
    return good ? value.get<int64_t>() : least;
  }

  // Ascending.
  std::vector<int> List(const std::string& name) {
    const json value = Json(name);
    std::vector<int> list;
    bool good = value.is_array();
    for (const json& item : good ? value : json::array()) {
      good = good && item.is_number_unsigned() && item.get<uint64_t>() < kMostLayers &&
             (list.empty() || item.get<int>() > list.back());
      if (good) list.push_back(item.get<int>());
    }
    if (!good) Expected(name, "a list of ascending layers");
    return list;
  }

  // One number for each of `count` layers.
  std::vector<double> EachLayer(const std::string& name, size_t count, double least, double most) {
    json value = Json(name);
    if (value.is_number()) value = json(std::vector<json>(count, value));
    bool good = value.is_array() && value.size() == count;
    std::vector<double> list;
    for (const json& item : good ? value : json::array()) {
      good = good && item.is_number() && item.get<double>() >= least && item.get<double>() <= most;
      list.push_back(good ? item.get<double>() : least);
    }
    if (!good) {
      Expected(name, fmt::format("a number from {} to {}, or one for each layer", least, most));
    }
    list.resize(count, least);
    return list;
  }

  void Expected(const std::string& name, const std::string& what) {
    Fail(fmt::format("metadata '{}' is '{}', expected {}", name, Text(name), what));
  }
  void Fail(std::string message) {
    if (status_.ok()) status_ = Status::Unsupported(std::move(message));
  }
  const Status& status() const { return status_; }

 private:
  json Json(const std::string& name) {
    return json::parse(Text(name), nullptr, /*allow_exceptions=*/false);
  }

  const std::map<std::string, std::string>& metadata_;
  Status status_;
};

}  // namespace

std::map<std::string, std::string> TraceMetadata(const TraceInfo& info) {
  using Layer = const TraceLayer&;
  return {
      {"format", kFormat},
      {"model", info.model},
      {"lora", info.lora},
      {"text", info.text},
      {"llama_build", info.llama_build},
      {"skip", fmt::format("{}", info.skip)},
      {"depth", fmt::format("{}", info.depth)},
      {"steps", fmt::format("{}", info.steps)},
      {"generated", info.generated ? "1" : "0"},
      {"rope_freq_base", json(info.rope_freq_base).dump()},
      {"layers", json(Layers(info)).dump()},
      {"sliding_layers", json(info.sliding_layers).dump()},
      {"q_heads", PerLayer<int>(info, [](Layer l) { return l.shape.q_heads; })},
      {"kv_heads", PerLayer<int>(info, [](Layer l) { return l.shape.kv_heads; })},
      {"head_dim", PerLayer<int>(info, [](Layer l) { return l.shape.head_dim; })},
      {"value_dim", PerLayer<int>(info, [](Layer l) { return l.shape.value_dim; })},
      {"scale", PerLayer<float>(info, [](Layer l) { return l.scale; })},
      {"softcap", PerLayer<float>(info, [](Layer l) { return l.softcap; })},
  };
}

Status ReadTraceMetadata(const std::map<std::string, std::string>& metadata, TraceInfo* info) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  constexpr double kSmallest = std::numeric_limits<float>::min();
  constexpr int kMostHeads = 1 << 16;
  Fields fields(metadata);
  if (fields.Text("format") != kFormat) fields.Expected("format", kFormat);
  info->model = fields.Text("model");
  info->lora = fields.Text("lora");
  info->text = fields.Text("text");
  info->llama_build = fields.Text("llama_build");
  info->skip = fields.Number("skip", 0, std::numeric_limits<int32_t>::max());
  info->depth = static_cast<int>(fields.Number("depth", 1, kMostTokens));
  info->steps = static_cast<int>(fields.Number("steps", 1, kMostTokens - info->depth));
  info->generated = fields.Number("generated", 0, 1) == 1;
  info->sliding_layers = fields.List("sliding_layers");
  const std::vector<int> layers = fields.List("layers");
  if (layers.empty()) fields.Expected("layers", "at least one");
  const size_t count = layers.size();
  const auto rope = fields.EachLayer("rope_freq_base", 1, 0, kLargest);
  const auto q_heads = fields.EachLayer("q_heads", count, 1, kMostHeads);
  const auto kv_heads = fields.EachLayer("kv_heads", count, 1, kMostHeads);
  const auto head_dim = fields.EachLayer("head_dim", count, 1, LayerShape::kMaxDim);
  const auto value_dim = fields.EachLayer("value_dim", count, 1, LayerShape::kMaxDim);
  const auto scale = fields.EachLayer("scale", count, kSmallest, kLargest);
  const auto softcap = fields.EachLayer("softcap", count, 0, kLargest);
  TACTIC_RETURN_IF_ERROR(fields.status());

  info->rope_freq_base = static_cast<float>(rope.front());
  info->layers.clear();
  for (size_t i = 0; i < count; ++i) {
    TraceLayer layer;
    layer.layer = layers[i];
    layer.shape = {static_cast<int>(q_heads[i]), static_cast<int>(kv_heads[i]),
                   static_cast<int>(head_dim[i]), static_cast<int>(value_dim[i])};
    layer.scale = static_cast<float>(scale[i]);
    layer.softcap = static_cast<float>(softcap[i]);
    const Status shape = layer.shape.Validate();
    if (!shape.ok()) {
      return Status::Unsupported(fmt::format("layer {}: {}", layer.layer, shape.message()));
    }
    info->layers.push_back(layer);
  }
  return Status::Ok();
}

}  // namespace tactic::app
