// What a Capture sees is what llama.cpp's attention computes with: from it alone, in double
// precision, follows the output of the attention node.
#include "tactic_llama/capture.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "src/half.h"
#include "src/reference/oracle.h"
#include "tests/llama/model_fixture.h"

namespace tactic::llama {
namespace {

constexpr int kPrompt = 600;
constexpr int kSteps = 3;

// Calls the callback of a Capture, and keeps the output of every attention node it stops at.
struct OutputTap {
  ggml_backend_sched_eval_callback inner = nullptr;
  void* inner_data = nullptr;
  std::vector<std::vector<float>> outputs;

  static bool Callback(ggml_tensor* node, bool ask, void* user_data) {
    auto* self = static_cast<OutputTap*>(user_data);
    if (!ask) {
      const auto* out = static_cast<const float*>(node->data);
      self->outputs.emplace_back(out, out + ggml_nelements(node));
    }
    return self->inner(node, ask, self->inner_data);
  }
};

// A context that has read the prompt.
struct Fixture {
  std::unique_ptr<Capture> capture;
  OutputTap tap;
  std::vector<llama_token> tokens = BookTokens(kPrompt + kSteps);
  ContextPtr context;

  explicit Fixture(std::vector<int> layers = {}, ggml_type type = GGML_TYPE_F16) {
    EXPECT_TRUE(Capture::Create({std::move(layers)}, &capture).ok());
    llama_context_params params = SmallContext(kPrompt + 64);
    params.n_batch = params.n_ubatch = kPrompt;
    params.type_k = params.type_v = type;
    EXPECT_TRUE(capture->Install(&params).ok());
    tap.inner = params.cb_eval;
    tap.inner_data = params.cb_eval_user_data;
    params.cb_eval = OutputTap::Callback;
    params.cb_eval_user_data = &tap;
    context.reset(llama_init_from_model(tactic::llama::Model(), params));
    EXPECT_EQ(llama_decode(context.get(), llama_batch_get_one(tokens.data(), kPrompt)), 0);
  }

  void Step(int step) {
    capture->BeginStep();
    EXPECT_EQ(llama_decode(context.get(), llama_batch_get_one(&tokens[kPrompt + step], 1)), 0);
  }
  void Run() {
    capture->Start(kPrompt);
    for (int step = 0; step < kSteps; ++step) Step(step);
    capture->Stop();
  }
};

double Element(ElementType type, const uint8_t* row, int i) {
  const auto* bits = reinterpret_cast<const uint16_t*>(row);
  return type == ElementType::kF16 ? HalfToFloat(bits[i]) : Bf16ToFloat(bits[i]);
}

oracle::Rows ToRows(const RowsView& view, int head, int dim, int count) {
  oracle::Rows rows;
  for (int i = 0; i < count; ++i) {
    const uint8_t* row = view.Head(head) + static_cast<size_t>(i) * view.row_stride;
    oracle::Row values(dim);
    for (int x = 0; x < dim; ++x) values[x] = Element(view.type, row, x);
    rows.push_back(values);
  }
  return rows;
}

// The largest error of llama.cpp's outputs against those that follow from the capture, relative to
// the largest value. `ignored`: newest rows to leave out.
double LargestError(const Fixture& fixture, int step, size_t index, int ignored = 0) {
  const CapturedLayer& layer = fixture.capture->layers()[index];
  const LayerShape& shape = layer.shape;
  const std::vector<float>& output =
      fixture.tap.outputs[static_cast<size_t>(step) * fixture.capture->layers().size() + index];
  const int count = kPrompt + step + 1 - ignored;
  std::vector<int64_t> all;
  for (int i = 0; i < count; ++i) all.push_back(i);
  double worst = 0, largest = 0;
  for (int head = 0; head < shape.q_heads; ++head) {
    const auto q = layer.q.begin() + (step * shape.q_heads + head) * shape.head_dim;
    const int kv_head = head / shape.group();
    const oracle::Rows values = ToRows(layer.values, kv_head, shape.value_dim, count);
    const oracle::Attention expected = oracle::Attend(
        oracle::Row(q, q + shape.head_dim), ToRows(layer.keys, kv_head, shape.head_dim, count),
        values, all, layer.scale, layer.softcap);
    for (const oracle::Row& row : values) {
      for (const double x : row) largest = std::max(largest, std::fabs(x));
    }
    for (int i = 0; i < shape.value_dim; ++i) {
      const float got = output[static_cast<size_t>(head * shape.value_dim + i)];
      worst = std::max(worst, std::fabs(got - expected.out[i]));
    }
  }
  return worst / largest;
}

class CaptureTypeTest : public testing::TestWithParam<ggml_type> {};

TEST_P(CaptureTypeTest, GivesTheOutputOfTheAttentionNode) {
  Fixture fixture({}, GetParam());
  fixture.Run();
  ASSERT_TRUE(fixture.capture->Problem().ok()) << fixture.capture->Problem().message();
  ASSERT_EQ(fixture.capture->steps(), kSteps);
  const auto& layers = fixture.capture->layers();
  ASSERT_EQ(std::ssize(layers), llama_model_n_layer(tactic::llama::Model()));
  double worst = 0, one_row_less = 0;
  for (const size_t index : {size_t{0}, layers.size() / 2, layers.size() - 1}) {
    EXPECT_EQ(layers[index].layer, static_cast<int>(index));
    EXPECT_FALSE(layers[index].slides);
    for (int step = 0; step < kSteps; ++step) {
      worst = std::max(worst, LargestError(fixture, step, index));
      one_row_less = std::max(one_row_less, LargestError(fixture, step, index, 1));
    }
  }
  std::printf("largest error of stock: %.2e of the largest value, %.2e without the newest row\n",
              worst, one_row_less);
  // llama.cpp rounds queries to the type of the keys and sums in f16 where values are f16.
  EXPECT_LT(worst, 1e-2);
  EXPECT_GT(one_row_less, 1e-1) << "the comparison would not notice a wrong row";
}

INSTANTIATE_TEST_SUITE_P(Types, CaptureTypeTest, testing::Values(GGML_TYPE_F16, GGML_TYPE_BF16),
                         [](const auto& info) { return std::string(ggml_type_name(info.param)); });

TEST(CaptureTest, TakesOnlyTheLayersAskedFor) {
  Fixture fixture({7, 2, 7});
  fixture.Run();
  EXPECT_TRUE(fixture.capture->Problem().ok());
  ASSERT_EQ(fixture.capture->layers().size(), 2U);
  EXPECT_EQ(fixture.capture->layers()[0].layer, 2);
  EXPECT_EQ(fixture.capture->layers()[1].layer, 7);
  EXPECT_EQ(fixture.tap.outputs.size(), 2U * kSteps) << "the graph stops nowhere else";
}

TEST(CaptureTest, StartForgetsAndStopEnds) {
  Fixture fixture({0});
  fixture.Step(0);
  fixture.capture->Start(kPrompt + 1);
  EXPECT_EQ(fixture.capture->steps(), 0);
  fixture.Step(1);
  fixture.capture->Stop();
  ASSERT_EQ(fixture.capture->layers().size(), 1U);
  const size_t queries = fixture.capture->layers()[0].q.size();
  EXPECT_EQ(llama_decode(fixture.context.get(), llama_batch_get_one(&fixture.tokens[0], 1)), 0);
  EXPECT_EQ(fixture.capture->layers()[0].q.size(), queries);
  EXPECT_EQ(fixture.capture->steps(), 1);
  EXPECT_TRUE(fixture.capture->Problem().ok());
}

TEST(CaptureTest, LayerThatSeesLessSlides) {
  Fixture fixture({0});
  fixture.capture->Start(kPrompt + 10);
  fixture.Step(0);
  EXPECT_TRUE(fixture.capture->Problem().ok());
  ASSERT_EQ(fixture.capture->layers().size(), 1U);
  EXPECT_TRUE(fixture.capture->layers()[0].slides);
}

TEST(CaptureTest, NamesALayerThatIsNotThere) {
  Fixture fixture({0, 99});
  fixture.Run();
  EXPECT_EQ(fixture.capture->Problem().code(), StatusCode::kNotFound);
  EXPECT_NE(fixture.capture->Problem().message().find("layer 99"), std::string::npos);
}

TEST(CaptureTest, RefusesQuantisedCaches) {
  Fixture fixture({3}, GGML_TYPE_Q8_0);
  fixture.Run();
  const Status problem = fixture.capture->Problem();
  EXPECT_EQ(problem.code(), StatusCode::kUnsupported);
  EXPECT_NE(problem.message().find("layer 3: the KV cache has type q8_0"), std::string::npos)
      << problem.message();
}

// llama.cpp converts such a cache for every step; what attention reads is a copy.
TEST(CaptureTest, RefusesF32Caches) {
  Fixture fixture({3}, GGML_TYPE_F32);
  fixture.Run();
  const Status problem = fixture.capture->Problem();
  EXPECT_EQ(problem.code(), StatusCode::kUnsupported);
  EXPECT_NE(problem.message().find("layer 3: attention reads keys from"), std::string::npos)
      << problem.message();
}

TEST(CaptureTest, RefusesCellsThatAreNotInOrder) {
  Fixture fixture({0});
  llama_memory_t memory = llama_get_memory(fixture.context.get());
  ASSERT_TRUE(llama_memory_seq_rm(memory, 0, 10, 20));
  llama_memory_seq_add(memory, 0, 20, -1, -10);
  fixture.capture->Start(kPrompt - 10);
  fixture.Step(0);
  const Status problem = fixture.capture->Problem();
  EXPECT_EQ(problem.code(), StatusCode::kUnsupported);
  EXPECT_NE(problem.message().find("layer 0: the cells"), std::string::npos) << problem.message();
}

TEST(CaptureTest, RefusesStepsOfSeveralTokens) {
  Fixture fixture({0});
  fixture.capture->Start(kPrompt);
  fixture.capture->BeginStep();
  EXPECT_EQ(llama_decode(fixture.context.get(), llama_batch_get_one(&fixture.tokens[kPrompt], 2)),
            0);
  EXPECT_NE(fixture.capture->Problem().message().find("a step has 2 tokens"), std::string::npos);
}

TEST(CaptureTest, ChecksItsArguments) {
  std::unique_ptr<Capture> capture;
  EXPECT_EQ(Capture::Create({{1, -1}}, &capture).code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(Capture::Create({}, &capture).ok());
  llama_context_params params = SmallContext(64);
  ASSERT_TRUE(capture->Install(&params).ok());
  EXPECT_EQ(capture->Install(&params).code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace tactic::llama
