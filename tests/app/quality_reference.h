// What `tactic quality` must come to, computed once more in the plainest way.
//
// A made-up trace is kept in memory as doubles. The library is asked for the rows that each query
// head chose, one head of a group at a time, so that what its group reads is its own choice alone;
// everything else is computed here, in double, with one loop per sum.
#ifndef TACTIC_TESTS_APP_QUALITY_REFERENCE_H_
#define TACTIC_TESTS_APP_QUALITY_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "src/half.h"
#include "src/reference/oracle.h"
#include "tactic/decode.h"
#include "trace_writer.h"

namespace tactic::app {

// Rows of a layer as a cache holds them and as numbers.
struct MadeRows {
  std::vector<uint8_t> bytes;         // [kv_heads][tokens][dim]
  std::vector<oracle::Rows> numbers;  // [kv_heads]
  RowsView view;

  MadeRows(ElementType type, int heads, int64_t tokens, int dim, std::mt19937* random) {
    const size_t row = RowBytes(type, static_cast<size_t>(dim));
    bytes.resize(row * static_cast<size_t>(heads * tokens));
    view = {bytes.data(), type, row, row * static_cast<size_t>(tokens)};
    std::normal_distribution<float> normal;
    uint8_t* at = bytes.data();
    for (int h = 0; h < heads; ++h) {
      // Clusters that drift: neighbours are alike, as in a text.
      std::vector<std::vector<float>> centres(12, std::vector<float>(static_cast<size_t>(dim)));
      for (auto& centre : centres)
        std::generate(centre.begin(), centre.end(), [&] { return normal(*random); });
      oracle::Rows& rows = numbers.emplace_back();
      for (int64_t p = 0; p < tokens; ++p) {
        const auto& centre = centres[(*random)() % centres.size()];
        oracle::Row& numbers_of_row = rows.emplace_back();
        for (int d = 0; d < dim; ++d, at += RowBytes(type, 1)) {
          const float x = centre[static_cast<size_t>(d)] + 0.5F * normal(*random);
          numbers_of_row.push_back(Store(type, x, at));
        }
      }
    }
  }
  MadeRows(MadeRows&&) = default;

 private:
  static float Store(ElementType type, float x, uint8_t* at) {
    if (type == ElementType::kF32) {
      std::memcpy(at, &x, sizeof(x));
      return x;
    }
    const uint16_t bits = type == ElementType::kF16 ? FloatToHalf(x) : FloatToBf16(x);
    std::memcpy(at, &bits, sizeof(bits));
    return type == ElementType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
  }
};

struct MadeLayer {
  TraceLayer facts;
  MadeRows keys;
  MadeRows values;
  std::vector<float> q;  // [steps][q_heads][head_dim]
};

struct MadeTrace {
  TraceInfo info;
  std::vector<MadeLayer> layers;

  // Two layers: a group of two in f16, and no groups in other types, with a softcap.
  MadeTrace(uint32_t seed, int depth, int steps) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    info.depth = depth;
    info.steps = steps;
    info.model = "made.gguf";
    info.layers = {{2, {4, 2, 16, 8}, 0.4F, 0, ElementType::kF16, ElementType::kF16},
                   {5, {3, 3, 24, 16}, 0.5F, 15, ElementType::kBF16, ElementType::kF32}};
    for (const TraceLayer& facts : info.layers) {
      const LayerShape& s = facts.shape;
      layers.push_back({facts,
                        MadeRows(facts.key_type, s.kv_heads, info.tokens(), s.head_dim, &random),
                        MadeRows(facts.value_type, s.kv_heads, info.tokens(), s.value_dim, &random),
                        {}});
      for (int i = 0; i < steps * s.q_heads * s.head_dim; ++i)
        layers.back().q.push_back(normal(random));
    }
  }

  Status Write(const std::string& path) const {
    std::unique_ptr<TraceWriter> writer;
    TACTIC_RETURN_IF_ERROR(TraceWriter::Open(path, info, &writer));
    for (const MadeLayer& layer : layers) {
      TACTIC_RETURN_IF_ERROR(writer->WriteLayer(layer.keys.view, layer.values.view, layer.q));
    }
    return writer->Finish(std::vector<int32_t>(static_cast<size_t>(info.tokens()) + 1, 1));
  }
};

// One query head in one step.
struct ReferenceCase {
  double own_mass = 0, union_mass = 0, error = 0;
  int64_t own_rows = 0, union_rows = 0, optimal = 0, visible = 0;
};

struct Reference {
  std::vector<ReferenceCase> cases;
  std::vector<double> bytes;  // of each step, as a share
  double index_bytes = 0, kv_bytes = 0;

  void Append(const Reference& other) {
    cases.insert(cases.end(), other.cases.begin(), other.cases.end());
    bytes.insert(bytes.end(), other.bytes.begin(), other.bytes.end());
    index_bytes += other.index_bytes;
    kv_bytes += other.kv_bytes;
  }
};

// The library on some of the query heads of a layer.
class Heads {
 public:
  Heads(const MadeLayer& layer, const TraceInfo& info, const Options& options,
        std::vector<int> q_heads)
      : layer_(layer),
        options_(options),
        heads_(std::move(q_heads)),
        shape_(layer.facts.shape),
        index_((shape_.q_heads = static_cast<int>(heads_.size()), shape_), options) {
    cells_.resize(static_cast<size_t>(info.tokens()));
    std::iota(cells_.begin(), cells_.end(), 0U);
    Append(info.depth);
  }
  void Append(int64_t n) {
    index_.Append(n);
    const int units = index_.PlanBuild();
    for (int u = 0; u < units; ++u)
      index_.BuildUnit(u, layer_.keys.view, layer_.values.view, cells_);
  }
  void Run(int step, int64_t tokens) {
    q_.clear();
    const auto dim = static_cast<size_t>(shape_.head_dim);
    for (const int head : heads_) {
      const float* row =
          layer_.q.data() + (static_cast<size_t>(step) * layer_.facts.shape.q_heads + head) * dim;
      q_.insert(q_.end(), row, row + dim);
    }
    out_.assign(static_cast<size_t>(shape_.q_heads * shape_.value_dim), 0);
    DecodeRequest request = {q_.data(),
                             dim,
                             layer_.keys.view,
                             layer_.values.view,
                             std::span(cells_).first(static_cast<size_t>(tokens)),
                             &index_,
                             out_.data(),
                             static_cast<size_t>(shape_.value_dim)};
    const Status status = decode_.Plan(shape_, options_, {layer_.facts.scale, layer_.facts.softcap},
                                       {&request, 1}, 1);
    ASSERT_TRUE(status.ok()) << status.message();
    decode_.Run();
  }
  std::vector<uint32_t> Rows(int kv_head) const { return decode_.SelectedCells(0, kv_head); }
  double Bytes() const {
    return static_cast<double>(decode_.stats().bytes_read) /
           static_cast<double>(decode_.stats().bytes_dense);
  }
  double IndexBytes() const { return static_cast<double>(index_.MemoryBytes()); }
  const float* Out(int i) const { return out_.data() + i * shape_.value_dim; }

 private:
  const MadeLayer& layer_;
  const Options options_;
  const std::vector<int> heads_;
  LayerShape shape_;
  SequenceIndex index_;
  std::vector<uint32_t> cells_;
  std::vector<float> q_, out_;
  DecodeStep decode_;
};

// The layer at the steps given, which are ascending.
inline Reference ReferenceOf(const MadeTrace& trace, size_t number, const Options& options,
                             const std::vector<int>& steps) {
  const MadeLayer& layer = trace.layers[number];
  const LayerShape& shape = layer.facts.shape;
  std::vector<int> all(static_cast<size_t>(shape.q_heads));
  std::iota(all.begin(), all.end(), 0);
  Heads group(layer, trace.info, options, all);
  std::vector<std::unique_ptr<Heads>> alone;  // the g-th head of every group
  for (int g = 0; g < shape.group(); ++g) {
    std::vector<int> heads;
    for (int h = 0; h < shape.kv_heads; ++h) heads.push_back(h * shape.group() + g);
    alone.push_back(std::make_unique<Heads>(layer, trace.info, options, heads));
  }
  Reference result;
  result.index_bytes = options.mode == Mode::kDense ? 0 : group.IndexBytes();
  result.kv_bytes = 2.0 * trace.info.depth * shape.kv_heads * (shape.head_dim + shape.value_dim);
  for (int t = 0; t < trace.info.steps; ++t) {
    const int64_t tokens = trace.info.depth + t + 1;
    group.Append(1);
    for (auto& heads : alone) heads->Append(1);
    if (!std::binary_search(steps.begin(), steps.end(), t)) continue;
    group.Run(t, tokens);
    for (auto& heads : alone) heads->Run(t, tokens);
    result.bytes.push_back(group.Bytes());
    for (int head = 0; head < shape.q_heads; ++head) {
      const int kv_head = head / shape.group();
      const oracle::Rows& keys = layer.keys.numbers[static_cast<size_t>(kv_head)];
      const oracle::Rows& values = layer.values.numbers[static_cast<size_t>(kv_head)];
      const float* row = layer.q.data() + (t * shape.q_heads + head) * shape.head_dim;
      const oracle::Row q(row, row + shape.head_dim);
      std::vector<int64_t> visible(static_cast<size_t>(tokens));
      std::iota(visible.begin(), visible.end(), 0);
      const auto attend = [&](const std::vector<int64_t>& rows) {
        return oracle::Attend(q, keys, values, rows, layer.facts.scale, layer.facts.softcap);
      };
      const oracle::Attention dense = attend(visible);
      const auto mass = [&](const std::vector<uint32_t>& rows) {
        return std::exp(attend({rows.begin(), rows.end()}).lse - dense.lse);
      };
      const std::vector<uint32_t> own =
          alone[static_cast<size_t>(head % shape.group())]->Rows(kv_head);
      const std::vector<uint32_t> read = group.Rows(kv_head);
      ReferenceCase one;
      one.own_mass = mass(own);
      one.union_mass = mass(read);
      one.own_rows = std::ssize(own);
      one.union_rows = std::ssize(read);
      one.visible = tokens;
      double difference = 0, norm = 0;
      for (int d = 0; d < shape.value_dim; ++d) {
        const double exact = dense.out[static_cast<size_t>(d)];
        difference += std::pow(group.Out(head)[d] - exact, 2);
        norm += exact * exact;
      }
      one.error = std::sqrt(difference / norm);
      std::vector<double> masses;
      for (const int64_t p : visible) {
        masses.push_back(std::exp(
            oracle::Logit(q, keys[static_cast<size_t>(p)], layer.facts.scale, layer.facts.softcap) -
            dense.lse));
      }
      std::sort(masses.rbegin(), masses.rend());
      for (double sum = 0; sum < options.target && one.optimal < tokens;) {
        sum += masses[static_cast<size_t>(one.optimal++)];
      }
      result.cases.push_back(one);
    }
  }
  return result;
}

// The fields of a record that are numbers of their own, by name.
inline std::map<std::string, double> FieldsOf(const Reference& reference, double target) {
  std::map<std::string, double> f;
  std::vector<double> own, group, errors;
  double n = 0, optimal = 0;
  for (const ReferenceCase& c : reference.cases) {
    n += 1;
    own.push_back(c.own_mass);
    group.push_back(c.union_mass);
    errors.push_back(c.error);
    optimal += static_cast<double>(c.optimal);
    f["target_reached_share"] += c.own_mass >= target - 0.001;
    f["target_reached_share_union"] += c.union_mass >= target - 0.001;
    f["mass_mean"] += c.own_mass;
    f["union_mass_mean"] += c.union_mass;
    f["tokens"] += static_cast<double>(c.own_rows);
    f["tokens_union"] += static_cast<double>(c.union_rows);
    f["tokens_optimal"] += static_cast<double>(c.optimal);
    f["tokens_visible"] += static_cast<double>(c.visible);
    f["output_error_mean"] += c.error;
  }
  f["tokens_over_optimal"] = f["tokens"] / optimal * n;
  f["tokens_union_over_optimal"] = f["tokens_union"] / optimal * n;
  for (auto& [name, value] : f) value /= n;
  f["cases"] = n;
  for (auto* values : {&own, &group, &errors}) std::sort(values->begin(), values->end());
  f["mass_min"] = own.front();
  f["mass_p1"] = own[static_cast<size_t>(std::ceil(0.01 * n)) - 1];
  f["union_mass_min"] = group.front();
  f["output_error_p99"] = errors[static_cast<size_t>(std::ceil(0.99 * n)) - 1];
  f["bytes_read_fraction/total"] =
      std::accumulate(reference.bytes.begin(), reference.bytes.end(), 0.0) /
      static_cast<double>(reference.bytes.size());
  f["index_bytes_fraction"] = reference.index_bytes / reference.kv_bytes;
  return f;
}

}  // namespace tactic::app

#endif  // TACTIC_TESTS_APP_QUALITY_REFERENCE_H_
