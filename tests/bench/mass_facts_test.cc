// Facts of masses that are known.
#include "bench/synthetic/mass_facts.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "src/half.h"

namespace tactic::synthetic {
namespace {

TEST(MassFacts, OfMassesThatAreKnown) {
  // 0.2 on the first token, 0.3 on the newest 64, 0.1 on one, 0.4 on 200 and nearly nothing on the
  // rest.
  std::vector<double> logits(1000, -40);
  logits[0] = std::log(0.2);
  logits[50] = std::log(0.1);
  for (int t = 300; t < 500; ++t) logits[t] = std::log(0.4 / 200);
  for (int t = 936; t < 1000; ++t) logits[t] = std::log(0.3 / 64);
  const MassFacts facts = FactsOf(logits);
  EXPECT_NEAR(facts.first, 0.2, 1e-9);
  EXPECT_NEAR(facts.recent, 0.3, 1e-9);
  EXPECT_NEAR(facts.largest, 0.1, 1e-9);
  EXPECT_NEAR(facts.needed, 2 + 64 + 150, 1);
  EXPECT_GT(facts.alike, 0.9);
}

TEST(MassFacts, OfRowsAreThoseOfTheirLogits) {
  constexpr int kDim = 8, kTokens = 700;
  for (const bool bf16 : {false, true}) {
    std::vector<uint16_t> rows(size_t{kTokens} * kDim);
    std::vector<float> queries = {1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 1};
    std::vector<double> second;
    for (int t = 0; t < kTokens; ++t) {
      for (int i = 0; i < kDim; ++i) {
        const auto x = static_cast<float>((t * 31 + i * 17) % 13) / 4;
        rows[static_cast<size_t>(t * kDim + i)] = bf16 ? FloatToBf16(x) : FloatToHalf(x);
      }
      second.push_back(2 * ((t * 31 + 17) % 13 / 4.0) + (t * 31 + 7 * 17) % 13 / 4.0);
    }
    const std::vector<int64_t> visible = {kTokens, kTokens - 1};
    const std::vector<MassFacts> facts = FactsOf(
        queries, kDim,
        {reinterpret_cast<const uint8_t*>(rows.data()), sizeof(uint16_t) * kDim, bf16}, visible);
    ASSERT_EQ(facts.size(), 2U);
    second.pop_back();
    const MassFacts expected = FactsOf(second);
    EXPECT_EQ(facts[1].needed, expected.needed);
    EXPECT_NEAR(facts[1].recent, expected.recent, 1e-6);
    EXPECT_NEAR(facts[1].alike, expected.alike, 1e-6);
  }
}

}  // namespace
}  // namespace tactic::synthetic
