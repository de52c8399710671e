// The arithmetic of `tactic eval` on logits made by hand.
#include "next_token.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace tactic::app {
namespace {

std::vector<float> Logs(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

TEST(NextToken, MatchesTheSumByHand) {
  const std::vector<double> p = {0.5, 0.25, 0.25}, q = {0.25, 0.5, 0.25};
  const NextToken result = CompareNextToken(Logs(p), Logs(q), 1);
  EXPECT_NEAR(result.kl, 0.5 * std::log(2) - 0.25 * std::log(2), 1e-7);
  EXPECT_FALSE(result.same_top);
  EXPECT_NEAR(result.nll_reference, std::log(4), 1e-7);
  EXPECT_NEAR(result.nll, std::log(2), 1e-7);
}

TEST(NextToken, AConstantChangesNothing) {
  const std::vector<float> reference = {1, 2, 3, -4}, other = {3, 2, 1, 0};
  std::vector<float> shifted = other;
  for (float& logit : shifted) logit += 64;
  const NextToken plain = CompareNextToken(reference, other, 2);
  const NextToken moved = CompareNextToken(reference, shifted, 2);
  EXPECT_NEAR(plain.kl, moved.kl, 1e-12);
  EXPECT_NEAR(plain.nll, moved.nll, 1e-12);
}

TEST(NextToken, EqualLogitsHaveNoDivergence) {
  std::vector<float> logits;
  for (int i = 0; i < 1000; ++i) logits.push_back(std::sin(static_cast<float>(i)) * 20);
  const NextToken result = CompareNextToken(logits, logits, 7);
  EXPECT_EQ(result.kl, 0);
  EXPECT_TRUE(result.same_top);
  EXPECT_EQ(result.nll, result.nll_reference);
}

TEST(NextToken, LargeLogitsDoNotOverflow) {
  const std::vector<float> reference = {30000, 0, -30000}, other = {30000, 29999, -30000};
  const NextToken result = CompareNextToken(reference, other, 0);
  EXPECT_NEAR(result.kl, std::log(1 + std::exp(-1)), 1e-9);
}

TEST(NextToken, TokensThatAreRuledOutDoNotCount) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const NextToken result =
      CompareNextToken(std::vector<float>{0, kNever, 0}, std::vector<float>{0, kNever, 0}, 0);
  EXPECT_EQ(result.kl, 0);
  EXPECT_NEAR(result.nll, std::log(2), 1e-12);
}

TEST(NextToken, WhatIsNoNumberShows) {
  const std::vector<float> reference = {0, 1}, other = {std::nanf(""), 1};
  EXPECT_TRUE(std::isnan(CompareNextToken(reference, other, 1).kl));
}

TEST(NextToken, Summary) {
  std::vector<NextToken> tokens;
  for (int i = 1; i <= 100; ++i)
    tokens.push_back({i / 100.0, i % 4 != 0, std::log(2), std::log(8)});
  const NextTokenSummary summary = Summarize(tokens);
  EXPECT_NEAR(summary.kl_mean, 0.505, 1e-12);
  // The variance of 1 to n is (n * n - 1) / 12; its unbiased estimate n / (n - 1) times that.
  EXPECT_NEAR(summary.kl_standard_error, std::sqrt(9999.0 / 12 * 100 / 99 / 100) / 100, 1e-12);
  EXPECT_NEAR(summary.kl_median, 0.5, 1e-12);
  EXPECT_NEAR(summary.kl_p99, 0.99, 1e-12);
  EXPECT_NEAR(summary.kl_max, 1, 1e-12);
  EXPECT_EQ(summary.kl_max_at, 99);
  EXPECT_NEAR(summary.same_top_share, 0.75, 1e-12);
  EXPECT_NEAR(summary.perplexity_reference, 2, 1e-12);
  EXPECT_NEAR(summary.perplexity, 8, 1e-12);
  EXPECT_EQ(Summarize({tokens[0]}).kl_standard_error, 0);
}

}  // namespace
}  // namespace tactic::app
