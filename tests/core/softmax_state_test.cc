// SoftmaxState: merging is associative up to rounding, the empty state is neutral, and nothing that
// is not a number disappears.
#include "src/softmax_state.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/core/tolerance.h"

namespace tactic {
namespace {

constexpr int kDim = 8;
constexpr float kInf = std::numeric_limits<float>::infinity();
using State = std::vector<float>;

State Empty() {
  State state(SoftmaxStateStride(kDim));
  ClearState(state.data(), kDim);
  return state;
}

// The state of one row: weight exp(logit), value `value`.
State OfRow(float logit, float value) {
  State state = Empty();
  for (int i = 0; i < kDim; ++i) state[i] = value;
  StateMax(state.data(), kDim) = logit;
  StateSum(state.data(), kDim) = 1;
  return state;
}

State Merged(const State& a, const State& b) {
  State into = a;
  MergeState(b.data(), kDim, into.data());
  return into;
}

// Merges states [begin, end) as a random tree.
State MergeTree(const std::vector<State>& states, size_t begin, size_t end, std::mt19937& random) {
  if (end - begin == 1) return states[begin];
  const size_t middle = begin + 1 + random() % (end - begin - 1);
  return Merged(MergeTree(states, begin, middle, random), MergeTree(states, middle, end, random));
}

TEST(SoftmaxState, MergingIsAssociativeUpToRounding) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (int repeat = 0; repeat < 200; ++repeat) {
    const size_t n = 1 + random() % 40;
    std::vector<State> states;
    double max = -oracle::kInf;
    double min = oracle::kInf;
    std::vector<double> logits;
    std::vector<double> values;
    for (size_t i = 0; i < n; ++i) {
      logits.push_back(10 * normal(random));
      values.push_back(normal(random));
      logits.back() = static_cast<float>(logits.back());
      values.back() = static_cast<float>(values.back());
      max = std::max(max, logits.back());
      min = std::min(min, logits.back());
      states.push_back(OfRow(static_cast<float>(logits.back()), static_cast<float>(values.back())));
      if (random() % 4 == 0) states.push_back(Empty());
    }
    double sum = 0;
    double out = 0;
    double magnitude = 0;
    for (size_t i = 0; i < n; ++i) {
      const double weight = std::exp(logits[i] - max);
      sum += weight;
      out += weight * values[i];
      magnitude += weight * std::fabs(values[i]);
    }
    // Per merge both sides are rescaled and added: 2 u for exp, u for the product, u for the sum.
    // The differences of maxima add up to at most the range of the logits.
    const double relative = tolerance::Gamma(4.0 * static_cast<double>(states.size()) + max - min);
    for (int tree = 0; tree < 3; ++tree) {
      const State merged = MergeTree(states, 0, states.size(), random);
      ASSERT_EQ(StateMax(merged.data(), kDim), max);
      ASSERT_NEAR(StateSum(merged.data(), kDim), sum, relative * sum);
      ASSERT_NEAR(merged[0], out, relative * magnitude);
    }
  }
}

TEST(SoftmaxState, TheEmptyStateIsNeutral) {
  const State row = OfRow(-70, 3);
  EXPECT_EQ(Merged(Empty(), row), row);
  EXPECT_EQ(Merged(row, Empty()), row);
  EXPECT_EQ(Merged(Empty(), Empty()), Empty());
}

TEST(SoftmaxState, WhatIsNotANumberStays) {
  for (float max : {-kInf, 1.0f, kInf}) {
    State bad = Empty();
    StateMax(bad.data(), kDim) = max;
    StateSum(bad.data(), kDim) = std::nanf("");
    EXPECT_FALSE(StateEmpty(bad.data(), kDim));
    for (const State& other : {Empty(), OfRow(5, 1), OfRow(-5, 1)}) {
      const State right = Merged(other, bad);
      const State left = Merged(bad, other);
      EXPECT_TRUE(std::isnan(StateSum(right.data(), kDim))) << max;
      EXPECT_TRUE(std::isnan(StateSum(left.data(), kDim))) << max;
    }
  }
}

TEST(SoftmaxState, StatesAreWholeCacheLinesApart) {
  for (int dim = 8; dim <= 512; dim += 8) {
    EXPECT_EQ(SoftmaxStateStride(dim) % 16, 0u);
    EXPECT_GE(SoftmaxStateStride(dim), static_cast<size_t>(dim) + 2);
  }
}

}  // namespace
}  // namespace tactic
