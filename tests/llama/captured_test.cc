// The core on real queries, keys and values, captured from every layer of a model that reads a
// book: dense attention against the double reference, and the paper's selection against the rows
// the reference selects.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "ggml-backend.h"
#include "llama/src/graph_batch.h"
#include "src/half.h"
#include "src/reference/oracle.h"
#include "src/segment.h"
#include "tactic/decode.h"
#include "tests/llama/model_fixture.h"

namespace tactic::llama {
namespace {

constexpr int kTokens = 2000;

// Attention of one decode step in one layer.
struct CapturedLayer {
  LayerShape shape;
  float scale = 0;
  std::vector<float> q;        // [q_heads][head_dim]
  std::vector<uint16_t> keys;  // f16, [tokens][kv_heads][head_dim]
  std::vector<uint16_t> values;
  std::vector<float> stock;  // llama.cpp's own output, [q_heads][value_dim]
};

struct Capture {
  bool on = false;
  std::vector<CapturedLayer> layers;

  static bool Callback(ggml_tensor* node, bool ask, void* user_data) {
    auto* self = static_cast<Capture*>(user_data);
    if (!self->on || node->op != GGML_OP_FLASH_ATTN_EXT) return false;
    if (ask) return true;  // run up to here, then come back
    LayerView view;
    EXPECT_TRUE(view.Read(node).ok());
    CapturedLayer layer;
    layer.shape = view.shape;
    layer.scale = view.scale;
    const ggml_tensor* q = node->src[0];
    for (int h = 0; h < view.shape.q_heads; ++h) {
      const auto* row =
          reinterpret_cast<const float*>(static_cast<const uint8_t*>(q->data) + h * q->nb[2]);
      layer.q.insert(layer.q.end(), row, row + view.shape.head_dim);
    }
    const size_t row = static_cast<size_t>(view.shape.kv_heads) * view.shape.head_dim;
    for (auto [rows, out] :
         {std::pair{&view.keys, &layer.keys}, std::pair{&view.values, &layer.values}}) {
      out->resize(row * (kTokens + 1));
      for (int cell = 0; cell <= kTokens; ++cell) {
        std::memcpy(out->data() + cell * row, rows->data + cell * rows->row_stride,
                    row * sizeof(uint16_t));
      }
    }
    const auto* out = static_cast<const float*>(node->data);
    layer.stock.assign(out, out + view.shape.q_heads * view.shape.value_dim);
    self->layers.push_back(std::move(layer));
    return true;
  }
};

const std::vector<CapturedLayer>& Layers() {
  static const std::vector<CapturedLayer> layers = [] {
    Capture capture;
    llama_context_params params = SmallContext(kTokens + 64);
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.cb_eval = Capture::Callback;
    params.cb_eval_user_data = &capture;
    const ContextPtr context(llama_init_from_model(Model(), params));
    std::vector<llama_token> tokens = BookTokens(kTokens + 1);
    for (int begin = 0; begin < kTokens; begin += 500) {
      EXPECT_EQ(llama_decode(context.get(), llama_batch_get_one(tokens.data() + begin, 500)), 0);
    }
    capture.on = true;
    EXPECT_EQ(llama_decode(context.get(), llama_batch_get_one(tokens.data() + kTokens, 1)), 0);
    return capture.layers;
  }();
  return layers;
}

oracle::Rows ToRows(const std::vector<uint16_t>& data, int kv_heads, int dim, int kv_head) {
  oracle::Rows rows;
  for (size_t cell = 0; cell < data.size() / (kv_heads * dim); ++cell) {
    oracle::Row row(dim);
    for (int i = 0; i < dim; ++i) row[i] = HalfToFloat(data[(cell * kv_heads + kv_head) * dim + i]);
    rows.push_back(row);
  }
  return rows;
}

// A planned and executed step on one captured layer.
struct Executed {
  std::vector<uint32_t> cells;
  SequenceIndex index;
  DecodeStep step;
  std::vector<float> out;

  Executed(const CapturedLayer& layer, const Options& options) : index(layer.shape, options) {
    const size_t row_bytes = layer.shape.kv_heads * layer.shape.head_dim * sizeof(uint16_t);
    const auto view = [&](const std::vector<uint16_t>& data) {
      return RowsView{reinterpret_cast<const uint8_t*>(data.data()), ElementType::kF16, row_bytes,
                      layer.shape.head_dim * sizeof(uint16_t)};
    };
    for (uint32_t cell = 0; cell <= kTokens; ++cell) cells.push_back(cell);
    index.Append(std::ssize(cells));
    const int units = index.PlanBuild();
    for (int unit = 0; unit < units; ++unit)
      index.BuildUnit(unit, view(layer.keys), view(layer.values), cells);
    out.resize(layer.shape.q_heads * layer.shape.value_dim);
    DecodeRequest request;
    request.q = layer.q.data();
    request.q_stride = layer.shape.head_dim;
    request.keys = view(layer.keys);
    request.values = view(layer.values);
    request.cells = cells;
    request.index = &index;
    request.out = out.data();
    request.out_stride = layer.shape.value_dim;
    const Status status =
        step.Plan(layer.shape, options, {layer.scale, 0, false}, std::span(&request, 1), 1);
    EXPECT_TRUE(status.ok()) << status.message();
    step.Run();
  }
};

oracle::Row Query(const CapturedLayer& layer, int head) {
  const auto begin = layer.q.begin() + head * layer.shape.head_dim;
  return oracle::Row(begin, begin + layer.shape.head_dim);
}

// Every element of a softmax average is off by at most the error of the weights times the largest
// value. A weight's relative error is that of its logit (a dot product of `dim` f32 products:
// (log2(dim) + dim / 16) roundings of sum |q_i k_i|), of exp (under 4 ulp) and of the sums over n
// rows in blocks of 64 (n / 64 + 64 roundings at worst).
double OutputBound(const oracle::Row& q, const oracle::Rows& keys, const oracle::Rows& values,
                   double scale) {
  constexpr double kEps = 0x1p-24;
  double most = 0, largest = 0;
  for (const oracle::Row& k : keys) {
    double magnitude = 0;
    for (size_t i = 0; i < q.size(); ++i) magnitude += std::fabs(q[i] * k[i]) * scale;
    most = std::max(most, magnitude);
  }
  for (const oracle::Row& v : values) {
    for (double x : v) largest = std::max(largest, std::fabs(x));
  }
  const double dim = static_cast<double>(q.size());
  const double logit = (std::log2(dim) + dim / 16 + 2) * kEps * most;
  return 2 * largest * (logit + (8 + static_cast<double>(keys.size()) / 64 + 64) * kEps);
}

TEST(CapturedTest, DenseIsTheDoubleReferenceWithinItsArithmetic) {
  Options options = Options::For(Mode::kPaper);
  options.mode = Mode::kDense;
  double worst = 0, worst_stock = 0;
  for (const CapturedLayer& layer : Layers()) {
    const Executed executed(layer, options);
    for (int h = 0; h < layer.shape.q_heads; ++h) {
      const int kv_head = h / layer.shape.group();
      const oracle::Rows keys =
          ToRows(layer.keys, layer.shape.kv_heads, layer.shape.head_dim, kv_head);
      const oracle::Rows values =
          ToRows(layer.values, layer.shape.kv_heads, layer.shape.value_dim, kv_head);
      std::vector<int64_t> all(executed.cells.begin(), executed.cells.end());
      const oracle::Row q = Query(layer, h);
      const oracle::Attention reference = oracle::Attend(q, keys, values, all, layer.scale, 0);
      const double bound = OutputBound(q, keys, values, layer.scale);
      for (int i = 0; i < layer.shape.value_dim; ++i) {
        const size_t at = h * layer.shape.value_dim + i;
        const double error = std::fabs(executed.out[at] - reference.out[i]);
        EXPECT_LE(error, bound) << "q head " << h << " element " << i;
        worst = std::max(worst, error);
        worst_stock = std::max(worst_stock, std::fabs(layer.stock[at] - reference.out[i]));
      }
    }
  }
  std::printf("largest error against double: ours %.2e, stock %.2e\n", worst, worst_stock);
  EXPECT_LT(worst, worst_stock);
}

// Rows whose presence or absence is decided by a difference below f32 resolution: nothing but their
// number can be compared.
TEST(CapturedTest, PaperSelectsTheRowsOfTheReference) {
  int pairs = 0, different = 0;
  for (const int segment_size : {0, 256}) {
    for (const double target : {0.5, 0.9}) {
      Options options = Options::For(Mode::kPaper);
      options.target = target;
      options.segment_size = segment_size;
      options.update_interval = 256;
      for (const CapturedLayer& layer : Layers()) {
        const Executed executed(layer, options);
        for (int kv_head = 0; kv_head < layer.shape.kv_heads; ++kv_head) {
          const oracle::Rows keys =
              ToRows(layer.keys, layer.shape.kv_heads, layer.shape.head_dim, kv_head);
          std::vector<oracle::Cluster> clusters;
          std::vector<bool> clustered(executed.cells.size(), false);
          const int slots = executed.index.slots();
          for (int j = 0; j < executed.index.UsableSegments(std::ssize(executed.cells)); ++j) {
            const Segment& segment = *executed.index.segments()[j];
            const Clusters& head = segment.head(kv_head);
            for (int c = 0; c < head.count; ++c) {
              oracle::Cluster cluster;
              for (int x = 0; x < layer.shape.head_dim; ++x) {
                cluster.centroid.push_back(
                    HalfToFloat(head.centroids[static_cast<size_t>(x) * slots + c]));
              }
              for (uint32_t m = head.starts[c]; m < head.starts[c + 1]; ++m) {
                cluster.members.push_back(segment.first() + head.members[m]);
                clustered[cluster.members.back()] = true;
              }
              clusters.push_back(std::move(cluster));
            }
          }
          std::vector<int64_t> forced;
          for (size_t p = 0; p < clustered.size(); ++p) {
            if (!clustered[p]) forced.push_back(static_cast<int64_t>(p));
          }
          std::vector<std::vector<int64_t>> heads;
          for (int g = 0; g < layer.shape.group(); ++g) {
            const oracle::Row q = Query(layer, kv_head * layer.shape.group() + g);
            const std::vector<int64_t> order = oracle::Order(q, clusters);
            const oracle::Budget budget =
                oracle::PaperBudget(q, keys, order, forced, options, layer.scale, 0);
            heads.push_back(oracle::HeadRows(order, budget.ranks, forced));
          }
          const std::vector<int64_t> expected = oracle::Union(heads);
          const std::vector<uint32_t> selected = executed.step.SelectedCells(0, kv_head);
          ++pairs;
          if (std::equal(expected.begin(), expected.end(), selected.begin(), selected.end()))
            continue;
          ++different;
          // A tie decided the other way moves at most a cluster's worth of ranks at the end of one
          // head's prefix.
          EXPECT_LE(std::abs(std::ssize(expected) - std::ssize(selected)), options.cluster_size);
        }
      }
    }
  }
  std::printf("%d of %d (layer, KV head) selections differ from the reference\n", different, pairs);
  EXPECT_LE(different * 100, pairs) << "more than rounding decides";
}

}  // namespace
}  // namespace tactic::llama
