// What one layer's phases take from the graph and add to the totals, without a model.
#include "llama/src/graph_batch.h"

#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <thread>

#include "gtest/gtest.h"

namespace tactic::llama {
namespace {

constexpr LayerShape kShape{6, 2, 16, 16};
constexpr float kScale = 0.25f;

struct ContextDeleter {
  void operator()(ggml_context* context) const { ggml_free(context); }
};

// An attention layer whose queries, keys and values are random: q lies as llama.cpp has it,
// computed as [head_dim, heads, tokens, streams] and then permuted.
class GraphBatchTest : public testing::Test {
 protected:
  GraphBatchTest() : context_(ggml_init({1 << 22, nullptr, /*no_alloc=*/false})), rows_(1) {
    options_.tactic.segment_size = 64;
    options_.tactic.cluster_size = 8;
    options_.tactic.sinks = 4;
    options_.tactic.recent = 16;
    std::normal_distribution<float> normal;
    data_.resize(size_t{kCells} * kShape.kv_heads * kShape.head_dim);
    for (float& x : data_) x = normal(random_);
    layer_.rows = &rows_;
    rows_[0].track = &track_;
    layer_.view.layer = 3;
    layer_.view.shape = kShape;
    layer_.view.scale = kScale;
    layer_.view.keys = RowsView{reinterpret_cast<const uint8_t*>(data_.data()), ElementType::kF32,
                                kShape.kv_heads * kShape.head_dim * sizeof(float),
                                kShape.head_dim * sizeof(float)};
    layer_.view.values = layer_.view.keys;
  }

  // A new batch, which makes the sequence `length` tokens long.
  void NextBatch(int64_t tokens, int64_t streams, int64_t length) {
    ggml_tensor* q = ggml_new_tensor_4d(context_.get(), GGML_TYPE_F32, kShape.head_dim,
                                        kShape.q_heads, tokens, streams);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < ggml_nelements(q); ++i)
      static_cast<float*>(q->data)[i] = normal(random_);
    computed_q_ = q;
    ggml_tensor* node = ggml_new_tensor_4d(context_.get(), GGML_TYPE_F32, kShape.head_dim,
                                           kShape.q_heads, tokens, streams);
    node->src[0] = ggml_permute(context_.get(), q, 0, 2, 1, 3);
    layer_.view.node = node;
    layer_.view.tokens = tokens;
    layer_.view.streams = streams;
    const int64_t added = length - std::ssize(track_.cells);
    for (auto& [key, index] : track_.indexes) index.Append(added);
    while (std::ssize(track_.cells) < length) {
      track_.cells.push_back(static_cast<uint32_t>(track_.cells.size()));
    }
    rows_[0].num_tokens = length;
  }
  float* Query(int64_t stream, int64_t token, int head) {
    return static_cast<float*>(computed_q_->data) +
           ((stream * computed_q_->ne[2] + token) * kShape.q_heads + head) * kShape.head_dim;
  }
  // The index phase as two threads of ggml run it.
  void RunIndexPhase() {
    batch_.PlanIndex(&layer_);
    std::thread second([&] { batch_.Index(&layer_, 1, 2); });
    batch_.Index(&layer_, 0, 2);
    second.join();
  }
  const SequenceIndex& Index(Mode mode) { return track_.indexes.at({mode, layer_.view.layer}); }

  static constexpr int64_t kCells = 512;
  std::mt19937 random_{1};
  std::unique_ptr<ggml_context, ContextDeleter> context_;
  ggml_tensor* computed_q_ = nullptr;
  std::vector<float> data_;
  HookOptions options_;
  AttentionBatch batch_{&options_};
  Track track_;
  std::vector<TrackedRow> rows_;
  AttentionBatch::Layer layer_;
};

TEST_F(GraphBatchTest, QueryNormsAreMeansOverTheHeadsAndTheLastTokensOfEveryStream) {
  NextBatch(/*tokens=*/100, /*streams=*/2, /*length=*/100);
  Query(1, 99, 0)[5] = std::numeric_limits<float>::quiet_NaN();  // does not count
  const std::vector<float> norms = layer_.view.QueryNorms();
  ASSERT_EQ(std::ssize(norms), kShape.kv_heads);
  for (int h = 0; h < kShape.kv_heads; ++h) {
    double sum = 0;
    int count = 0;
    for (int64_t s = 0; s < 2; ++s) {
      for (int64_t t = 36; t < 100; ++t) {
        for (int g = 0; g < 3; ++g) {
          double square = 0;
          for (int i = 0; i < kShape.head_dim; ++i)
            square += std::pow(double{kScale} * double{Query(s, t, 3 * h + g)[i]}, 2);
          if (std::isnan(square)) continue;
          sum += square;
          ++count;
        }
      }
    }
    EXPECT_EQ(count, 2 * 64 * 3 - (h == 0 ? 1 : 0));
    EXPECT_NEAR(norms[h], sum / count, 1e-6 * sum / count);
  }
}

TEST_F(GraphBatchTest, QueryNormsAreThoseOfTheFirstPromptBatch) {
  layer_.decode = true;
  NextBatch(1, 1, 1);
  RunIndexPhase();
  EXPECT_TRUE(layer_.query_norms.empty()) << "nothing is due after one token, which says little";
  layer_.decode = false;
  NextBatch(99, 1, 100);
  RunIndexPhase();
  const std::vector<float> first = layer_.query_norms;
  EXPECT_EQ(first, layer_.view.QueryNorms());
  // Whatever comes later, and from whichever batch the index is built again.
  NextBatch(200, 1, 300);
  EXPECT_NE(first, layer_.view.QueryNorms());
  RunIndexPhase();
  EXPECT_EQ(layer_.query_norms, first);
  track_.indexes.clear();
  NextBatch(1, 1, 301);
  RunIndexPhase();
  EXPECT_EQ(layer_.query_norms, first);
}

TEST_F(GraphBatchTest, OpenSegmentsWaitForTheFirstDecodeStep) {
  NextBatch(200, 1, 200);
  RunIndexPhase();
  EXPECT_EQ(Index(Mode::kTactic).UsablePages(200), 0) << "while the prompt is read";
  layer_.decode = true;
  NextBatch(1, 1, 201);
  RunIndexPhase();
  EXPECT_GT(Index(Mode::kTactic).UsablePages(201), 0);
}

TEST_F(GraphBatchTest, EveryModeHasAnIndexOfItsOwn) {
  for (const Mode mode : {Mode::kTactic, Mode::kPaper, Mode::kDense}) {
    options_.tactic.mode = mode;
    NextBatch(1, 1, 200 + std::ssize(track_.indexes));
    RunIndexPhase();
  }
  ASSERT_EQ(track_.indexes.size(), 2u);
  for (const Mode mode : {Mode::kTactic, Mode::kPaper}) {
    EXPECT_EQ(Index(mode).options().mode, mode);
    EXPECT_EQ(Index(mode).size(), 202) << "it follows the sequence under other modes, too";
    EXPECT_GT(Index(mode).UsableSegments(202), 0);
  }
}

TEST(AddReportTest, CountsWhatASelectionKnowsOfItselfWithoutMeasuring) {
  HookStats stats;
  AddReport({.p_hat = 0.95, .code_error = 0.4}, 0.9, &stats);
  AddReport({.p_hat = 0.91, .code_error = 0.8, .rounds = 2}, 0.9, &stats);
  AddReport({.p_hat = 1}, 0.9, &stats);  // read everything
  AddReport({}, 0.9, &stats);            // another mode
  EXPECT_EQ(stats.selections, 3);
  EXPECT_DOUBLE_EQ(stats.p_hat_sum, 2.86);
  EXPECT_DOUBLE_EQ(stats.p_hat_min, 0.91);
  EXPECT_EQ(stats.extended, 1);
  EXPECT_EQ(stats.coded, 2);
  EXPECT_DOUBLE_EQ(stats.code_error_sum, 1.2);
  EXPECT_DOUBLE_EQ(stats.code_error_max, 0.8);
  EXPECT_EQ(stats.cases, 0);
  EXPECT_EQ(stats.overclaims, 0);
}

TEST(AddReportTest, AnOverclaimIsAMeasuredTargetMissedByMoreThanAFewPercent) {
  HookStats stats;
  AddReport({.own_mass = 0.84, .union_mass = 0.9, .p_hat = 0.9}, 0.9, &stats);    // claimed, missed
  AddReport({.own_mass = 0.86, .union_mass = 0.86, .p_hat = 0.95}, 0.9, &stats);  // by a little
  AddReport({.own_mass = 0.5, .union_mass = 0.5, .p_hat = 0.8}, 0.9, &stats);     // known
  AddReport({.own_mass = 0.5, .union_mass = 0.5}, 0.9, &stats);                   // claims nothing
  AddReport({.own_mass = 0.8995, .union_mass = 0.9, .p_hat = 0.9}, 0.9, &stats);
  EXPECT_EQ(stats.cases, 5);
  EXPECT_EQ(stats.overclaims, 1);
  EXPECT_EQ(stats.own_reached, 1);
  EXPECT_EQ(stats.union_reached, 2);
  EXPECT_DOUBLE_EQ(stats.own_mass_min, 0.5);
  EXPECT_EQ(stats.selections, 4);
}

}  // namespace
}  // namespace tactic::llama
