// Whether queries find in a planted head what was planted for them.
#include "bench/synthetic/planted_head.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "bench/synthetic/mass_facts.h"
#include "src/half.h"

namespace tactic::synthetic {
namespace {

constexpr int kDim = 64, kGroup = 4, kSteps = 6;

// Queries of a group whose steps are alike, as those of a model are.
std::vector<float> Queries(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> common(kGroup * kDim);
  for (float& x : common) x = normal(random);
  std::vector<float> queries;
  for (int step = 0; step < kSteps; ++step) {
    for (const float x : common)
      queries.push_back((std::sqrt(0.8F) * x + std::sqrt(0.2F) * normal(random)) / 8);
  }
  return queries;
}

struct Planted {
  Planted(const HeadText& text, const std::vector<float>& x, double foreign, bool bf16 = false)
      : keys(static_cast<size_t>(text.tokens) * kDim),
        values(static_cast<size_t>(text.tokens * text.value_dim)) {
    const std::vector<double> foreigns(x.size() / kDim, foreign);
    PlantHead(text, {x, kGroup, kDim, foreigns},
              {reinterpret_cast<uint8_t*>(keys.data()), sizeof(uint16_t) * kDim, bf16},
              {reinterpret_cast<uint8_t*>(values.data()),
               sizeof(uint16_t) * static_cast<size_t>(text.value_dim), bf16});
    facts = FactsOf(x, kDim,
                    {reinterpret_cast<const uint8_t*>(keys.data()), sizeof(uint16_t) * kDim, bf16},
                    std::vector<int64_t>(x.size() / kDim, text.tokens));
  }
  double Mean(const auto& of) const {
    double sum = 0;
    for (const MassFacts& one : facts) sum += static_cast<double>(of(one));
    return sum / static_cast<double>(facts.size());
  }

  std::vector<uint16_t> keys, values;
  std::vector<MassFacts> facts;
};

HeadText Text(int64_t tokens, double needed, uint64_t seed) {
  HeadText text;
  text.tokens = tokens;
  text.needed = needed;
  text.value_dim = 32;
  text.value_size = 0.5;
  text.seed = seed;
  return text;
}

TEST(PlantedHead, QueriesNeedAsManyTokensAsAsked) {
  for (const auto& [tokens, needed] : {std::pair{2048, 100}, {16384, 300}, {16384, 1800}}) {
    // On average over heads: what one finds depends on what its queries have in common.
    double sum = 0;
    constexpr int kHeads = 8;
    for (int head = 0; head < kHeads; ++head) {
      const auto seed = static_cast<uint64_t>(head);
      const Planted planted(Text(tokens, needed, seed), Queries(seed), -100, head % 2 == 1);
      sum += planted.Mean([](const MassFacts& f) { return f.needed; });
    }
    EXPECT_NEAR(sum / kHeads, needed, needed * 0.25) << tokens;
  }
}

TEST(PlantedHead, MassLiesWhereItDoesInLongTexts) {
  double first = 0, recent = 0, alike = 0, largest = 0;
  constexpr int kHeads = 12;
  for (uint64_t head = 0; head < kHeads; ++head) {
    const Planted planted(Text(8192, 400, head), Queries(head), -100);
    first += planted.Mean([](const MassFacts& f) { return f.first; }) / kHeads;
    recent += planted.Mean([](const MassFacts& f) { return f.recent; }) / kHeads;
    alike += planted.Mean([](const MassFacts& f) { return f.alike; }) / kHeads;
    largest += planted.Mean([](const MassFacts& f) { return f.largest; }) / kHeads;
  }
  // Shares are uniform in [0, 0.4].
  EXPECT_NEAR(first, 0.2, 0.08);
  EXPECT_NEAR(recent, 0.2, 0.08);
  EXPECT_NEAR(alike, 0.75, 0.1);
  EXPECT_GT(largest, 0.005);
  EXPECT_LT(largest, 0.15);
}

// The model's own keys, of the tokens after the text, may be far above those of a text.
TEST(PlantedHead, KeysAreRaisedAboveThoseThatAreNotPlanted) {
  constexpr double kForeign = 40;
  const std::vector<float> x = Queries(1);
  const Planted planted(Text(4096, 200, 1), x, kForeign);
  for (size_t j = 0; j * kDim < x.size(); ++j) {
    double total = 0;
    for (size_t t = 0; t < 4096; ++t) {
      double logit = 0;
      for (size_t i = 0; i < kDim; ++i)
        logit += double{x[j * kDim + i]} * HalfToFloat(planted.keys[t * kDim + i]);
      total += std::exp(logit - kForeign);
    }
    EXPECT_LT(1 / (1 + total), 0.4) << "share of the keys that are not planted, query " << j;
  }
}

TEST(PlantedHead, ASeedIsAText) {
  const std::vector<float> x = Queries(1);
  const Planted a(Text(1024, 60, 1), x, -100), b(Text(1024, 60, 1), x, -100),
      c(Text(1024, 60, 2), x, -100);
  EXPECT_EQ(a.keys, b.keys);
  EXPECT_EQ(a.values, b.values);
  EXPECT_NE(a.keys, c.keys);
}

TEST(PlantedHead, ValuesHaveTheirSize) {
  const Planted planted(Text(4096, 200, 1), Queries(1), -100);
  double squares = 0;
  for (const uint16_t value : planted.values) squares += std::pow(HalfToFloat(value), 2);
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(planted.values.size())), 0.5, 0.05);
}

TEST(PlantedHead, QueriesOfZeroGiveFiniteKeys) {
  const Planted planted(Text(512, 50, 1), std::vector<float>(size_t{kSteps} * kGroup * kDim), 0);
  for (const uint16_t key : planted.keys) ASSERT_TRUE(std::isfinite(HalfToFloat(key)));
}

}  // namespace
}  // namespace tactic::synthetic
