// Prompt attention on every instruction set against the oracle: element types, sizes, group sizes,
// masks of all kinds, values that are not finite, and bad requests.
#include "tactic/prompt.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "src/half.h"
#include "src/reference/oracle.h"
#include "tests/core/isa_param.h"
#include "tests/core/rows.h"
#include "tests/core/tolerance.h"

namespace tactic {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr uint16_t kMasked = 0xFC00;

struct PromptSpec {
  LayerShape shape = {6, 2, 64, 64};
  ElementType key_type = ElementType::kF16;
  ElementType value_type = ElementType::kF16;
  int tokens = 70;
  int cells = 150;
  float softcap = 0;
  // Whether a token sees a cell; the default: the last tokens of a causal prompt.
  std::function<bool(int, int)> sees;
  float bias = 0;  // of every other cell that is seen
};

class Prompt {
 public:
  explicit Prompt(const PromptSpec& spec)
      : spec_(spec),
        keys_(spec.key_type, spec.shape.head_dim, spec.shape.kv_heads, spec.cells, 16),
        values_(spec.value_type, spec.shape.value_dim, spec.shape.kv_heads, spec.cells, 8),
        stride_(static_cast<size_t>(spec.cells) + 3),
        mask_(stride_ * spec.tokens, 0x7E00) {  // NaN where nobody should look
    std::mt19937 random(11);
    for (int h = 0; h < spec.shape.kv_heads; ++h) {
      for (int c = 0; c < spec.cells; ++c) {
        keys_.Set(c, h, RandomRow(spec.shape.head_dim, random, 2));
        values_.Set(c, h, RandomRow(spec.shape.value_dim, random));
      }
    }
    q_ = RandomRow(spec.tokens * spec.shape.q_heads * spec.shape.head_dim, random);
    for (int t = 0; t < spec.tokens; ++t) {
      for (int c = 0; c < spec.cells; ++c)
        mask_[t * stride_ + c] = Sees(t, c) ? FloatToHalf(Bias(c)) : kMasked;
    }
    out_.assign(static_cast<size_t>(spec.tokens) * spec.shape.q_heads * spec.shape.value_dim,
                std::nanf(""));
  }

  Rows& keys() { return keys_; }
  Rows& values() { return values_; }
  const std::vector<float>& out() const { return out_; }
  bool Sees(int token, int cell) const {
    return spec_.sees ? spec_.sees(token, cell) : cell <= spec_.cells - spec_.tokens + token;
  }

  PromptRequest Request() {
    const LayerShape& shape = spec_.shape;
    PromptRequest r;
    r.tokens = spec_.tokens;
    r.q = q_.data();
    r.q_head_stride = static_cast<size_t>(shape.head_dim);
    r.q_token_stride = r.q_head_stride * shape.q_heads;
    r.out = out_.data();
    r.out_head_stride = static_cast<size_t>(shape.value_dim);
    r.out_token_stride = r.out_head_stride * shape.q_heads;
    r.keys = keys_.View();
    r.values = values_.View();
    r.num_cells = spec_.cells;
    r.mask = mask_.data();
    r.mask_stride = stride_;
    return r;
  }

  void Run(int threads) {
    const PromptRequest request = Request();
    PromptStep step;
    ASSERT_TRUE(step.Plan(spec_.shape, Params(), {&request, 1}, threads).ok());
    std::vector<std::thread> team;
    for (int t = 0; t < threads; ++t) team.emplace_back([&step, t] { step.Run(t); });
    for (std::thread& thread : team) thread.join();
  }

  // Every output against the oracle, within what its arithmetic allows.
  void Judge() const {
    const LayerShape& shape = spec_.shape;
    for (int t = 0; t < spec_.tokens; ++t) {
      std::vector<int64_t> seen;
      for (int c = 0; c < spec_.cells; ++c) {
        if (Sees(t, c)) seen.push_back(c);
      }
      for (int h = 0; h < shape.q_heads; ++h) JudgeHead(t, h, seen);
    }
  }

  const float* Out(int t, int h) const {
    return out_.data() + (static_cast<size_t>(t) * spec_.shape.q_heads + h) * spec_.shape.value_dim;
  }

 private:
  DecodeParams Params() const {
    return {1 / std::sqrt(static_cast<float>(spec_.shape.head_dim)), spec_.softcap, false};
  }
  float Bias(int cell) const { return cell % 2 == 0 ? spec_.bias : 0; }

  void JudgeHead(int t, int h, const std::vector<int64_t>& seen) const {
    const LayerShape& shape = spec_.shape;
    const int kv_head = h / shape.group();
    if (seen.empty()) {
      for (int x = 0; x < shape.value_dim; ++x) ASSERT_EQ(Out(t, h)[x], 0) << t << " " << h;
      return;
    }
    const size_t first = (static_cast<size_t>(t) * shape.q_heads + h) * shape.head_dim;
    const oracle::Row q(q_.begin() + first, q_.begin() + first + shape.head_dim);
    oracle::Rows keys(spec_.cells);
    oracle::Rows values(spec_.cells);
    for (int64_t c : seen) {
      keys[c] = keys_.Get(c, kv_head);
      values[c] = values_.Get(c, kv_head);
      // A bias is one more element of the dot product, of a query's 1 / scale.
      if (spec_.bias != 0) keys[c].push_back(Bias(static_cast<int>(c)));
    }
    oracle::Row query = q;
    if (spec_.bias != 0) query.push_back(1 / double{Params().scale});
    // Dot products are single chains here, and the scale is multiplied in first: a rounding more
    // each, which one lane's bound covers (it has dim + 1).
    const tolerance::BoundedAttention want = tolerance::Attend(
        query, keys, values, seen, Params().scale, spec_.softcap, /*lanes=*/1, /*merges=*/1);
    for (int x = 0; x < shape.value_dim; ++x) {
      ASSERT_NEAR(Out(t, h)[x], want.out[x].value, want.out[x].error)
          << "token " << t << " head " << h << " element " << x;
    }
  }

  PromptSpec spec_;
  Rows keys_;
  Rows values_;
  size_t stride_;
  std::vector<uint16_t> mask_;
  std::vector<float> q_;
  std::vector<float> out_;
};

using PromptAttention = IsaTest;

void RunAndJudge(const PromptSpec& spec, int threads = 1) {
  Prompt prompt(spec);
  prompt.Run(threads);
  prompt.Judge();
}

TEST_P(PromptAttention, EveryElementType) {
  for (ElementType keys : kAllTypes) {
    for (ElementType values : kAllTypes) {
      PromptSpec spec;
      spec.key_type = keys;
      spec.value_type = values;
      spec.tokens = 9;
      SCOPED_TRACE(ElementTypeName(keys));
      RunAndJudge(spec);
    }
  }
}

TEST_P(PromptAttention, EveryShape) {
  for (const LayerShape& shape :
       {LayerShape{1, 1, 8, 8}, LayerShape{4, 4, 72, 80}, LayerShape{10, 2, 96, 64},
        LayerShape{32, 1, 128, 128}, LayerShape{2, 2, 256, 256}, LayerShape{1, 1, 512, 512}}) {
    PromptSpec spec;
    spec.shape = shape;
    spec.key_type = spec.value_type = ElementType::kBF16;
    spec.tokens = 13;
    spec.cells = 67;
    SCOPED_TRACE(shape.head_dim);
    RunAndJudge(spec);
  }
}

TEST_P(PromptAttention, EveryNumberOfTokensAndCells) {
  for (int tokens : {1, 2, 63, 64, 65, 129}) {
    for (int cells : {tokens, 64 * 3, 64 * 3 + 1}) {
      PromptSpec spec;
      spec.shape = {3, 1, 64, 64};
      spec.tokens = tokens;
      spec.cells = std::max(tokens, cells);
      RunAndJudge(spec, 2);
    }
  }
}

TEST_P(PromptAttention, SoftcapBiasAndMasksOfAllKinds) {
  PromptSpec spec;
  spec.softcap = 3;
  RunAndJudge(spec);
  spec.softcap = 0;
  spec.bias = -1.5f;
  RunAndJudge(spec);
  spec.bias = 0;
  spec.sees = [](int t, int c) { return c <= 80 + t && c > 60 + t; };  // a sliding window
  RunAndJudge(spec);
  spec.sees = [](int t, int c) { return t % 3 != 0 && (c * 7 + t) % 5 == 0; };  // some see nothing
  RunAndJudge(spec);
  spec.sees = [](int, int c) { return c >= 128; };  // whole blocks are masked
  RunAndJudge(spec);
  spec.sees = [](int, int) { return false; };
  RunAndJudge(spec);
}

TEST_P(PromptAttention, LargeLogitsStayFinite) {
  PromptSpec spec;
  Prompt prompt(spec);
  std::mt19937 random(3);
  for (int c = 0; c < spec.cells; c += 10) prompt.keys().Set(c, 0, RandomRow(64, random, 500));
  prompt.Run(1);
  for (float x : prompt.out()) ASSERT_TRUE(std::isfinite(x));
}

// What a token does not see cannot reach it, whatever it holds; what it sees does.
TEST_P(PromptAttention, RowsThatAreNotFiniteReachThoseWhoSeeThem) {
  for (float bad : {std::nanf(""), kInf}) {
    for (bool in_keys : {false, true}) {
      PromptSpec spec;
      spec.tokens = 20;
      Prompt prompt(spec);
      constexpr int kCell = 140;
      std::vector<float> row(64, 0.5f);
      row[7] = bad;
      (in_keys ? prompt.keys() : prompt.values()).Set(kCell, 0, row);
      prompt.Run(1);
      for (int t = 0; t < spec.tokens; ++t) {
        for (int h = 0; h < 6; ++h) {
          bool finite = true;
          for (int x = 0; x < 64; ++x) finite = finite && std::isfinite(prompt.Out(t, h)[x]);
          // An infinite key may give -inf, which is no weight.
          if (prompt.Sees(t, kCell) && h < 3 && !(in_keys && std::isinf(bad))) {
            EXPECT_FALSE(finite) << t << " " << h;
          } else if (!prompt.Sees(t, kCell) || h >= 3) {
            EXPECT_TRUE(finite) << t << " " << h;
          }
        }
      }
    }
  }
}

TEST_P(PromptAttention, ThreadsDoNotShowInTheResult) {
  PromptSpec spec;
  spec.tokens = 200;
  spec.cells = 300;
  Prompt one(spec);
  one.Run(1);
  for (int threads : {2, 5}) {
    Prompt many(spec);
    many.Run(threads);
    EXPECT_EQ(one.out(), many.out());
  }
}

TACTIC_INSTANTIATE_FOR_ISAS(PromptAttention);

TEST(PromptStep, SeveralRequestsOfDifferentLengths) {
  PromptSpec a;
  PromptSpec b;
  b.tokens = 5;
  b.cells = 40;
  PromptSpec none;
  none.tokens = 0;
  none.cells = 10;
  Prompt first(a);
  Prompt second(b);
  Prompt third(none);
  const PromptRequest requests[] = {first.Request(), third.Request(), second.Request()};
  PromptStep step;
  ASSERT_TRUE(step.Plan(a.shape, {1 / 8.0f, 0, false}, requests, 1).ok());
  step.Run(0);
  first.Judge();
  second.Judge();
}

TEST(PromptStep, BadRequestsAreNamed) {
  Prompt prompt{PromptSpec()};
  PromptStep step;
  const auto message = [&](auto change) {
    PromptRequest request = prompt.Request();
    change(request);
    const Status status = step.Plan({6, 2, 64, 64}, {1, 0, false}, {&request, 1}, 1);
    EXPECT_FALSE(status.ok());
    return status.message();
  };
  const auto has = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  has(message([](PromptRequest& r) { r.mask = nullptr; }), "mask");
  has(message([](PromptRequest& r) { r.mask_stride = 3; }), "mask_stride is 3");
  has(message([](PromptRequest& r) { r.q_head_stride = 63; }), "q_head_stride is 63");
  has(message([](PromptRequest& r) { r.out_token_stride = 0; }), "out_token_stride is 0");
  has(message([](PromptRequest& r) { r.keys.data = nullptr; }), "keys");
  has(message([](PromptRequest& r) { r.tokens = -1; }), "tokens is -1");
  const PromptRequest good = prompt.Request();
  EXPECT_FALSE(step.Plan({6, 2, 64, 64}, {0, 0, false}, {&good, 1}, 1).ok());
  EXPECT_FALSE(step.Plan({6, 2, 64, 64}, {1, 0, false}, {&good, 1}, 0).ok());
  EXPECT_FALSE(step.Plan({6, 4, 64, 64}, {1, 0, false}, {&good, 1}, 1).ok());
}

}  // namespace
}  // namespace tactic
