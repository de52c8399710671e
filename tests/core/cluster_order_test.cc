// ClusterOrder against a full sort, for whole visits, windows and prefixes, whatever the scores.
#include "src/cluster_order.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace tactic {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
using Token = std::pair<uint32_t, uint32_t>;  // cluster, member

struct Clusters {
  std::vector<float> scores;
  std::vector<uint32_t> sizes;
};

std::vector<Token> Sorted(const Clusters& c) {
  std::vector<uint32_t> by_score(c.scores.size());
  std::iota(by_score.begin(), by_score.end(), 0u);
  std::stable_sort(by_score.begin(), by_score.end(),
                   [&](uint32_t x, uint32_t y) { return c.scores[x] > c.scores[y]; });
  std::vector<Token> tokens;
  for (uint32_t x : by_score) {
    for (uint32_t m = 0; m < c.sizes[x]; ++m) tokens.emplace_back(x, m);
  }
  return tokens;
}

// Visits in a random sequence, so that buckets are sorted in any order.
void ExpectSortedOrder(const Clusters& c, std::mt19937& random) {
  const std::vector<Token> want = Sorted(c);
  std::vector<uint32_t> scratch(c.scores.size());
  std::vector<uint8_t> bucket_of(c.scores.size());
  ClusterOrder order(c.scores.data(), c.sizes.data(), static_cast<int>(c.scores.size()),
                     scratch.data(), bucket_of.data());
  ASSERT_TRUE(order.ordered());
  const auto n = static_cast<int64_t>(want.size());
  ASSERT_EQ(order.num_tokens(), n);
  for (int visit = 0; visit < 8; ++visit) {
    int64_t first = std::uniform_int_distribution<int64_t>(0, n)(random);
    int64_t last = std::uniform_int_distribution<int64_t>(0, n)(random);
    if (first > last) std::swap(first, last);
    if (visit == 7) first = 0, last = n;
    std::vector<Token> got;
    order.Visit(first, last, [&](uint32_t cluster, uint32_t begin, uint32_t end) {
      for (uint32_t m = begin; m < end; ++m) got.emplace_back(cluster, m);
    });
    ASSERT_EQ(got, std::vector<Token>(want.begin() + first, want.begin() + last));

    std::map<uint32_t, uint32_t> members;  // a prefix of a cluster's members is read
    for (int64_t i = 0; i < last; ++i) members[want[i].first] = want[i].second + 1;
    std::map<uint32_t, uint32_t> prefix;
    order.VisitPrefix(last, [&](uint32_t cluster, uint32_t count) {
      if (count > 0) prefix[cluster] = count;
    });
    ASSERT_EQ(prefix, members);
  }
}

Clusters Random(int n, std::mt19937& random, const std::vector<float>& choices) {
  Clusters c;
  for (int i = 0; i < n; ++i) {
    c.scores.push_back(choices[random() % choices.size()]);
    c.sizes.push_back(random() % 4 == 0 ? 0 : random() % 70);
  }
  return c;
}

TEST(ClusterOrder, IsTheOrderOfAFullSort) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (int n : {0, 1, 2, 3, 16, 255, 256, 257, 1000}) {
    for (int repeat = 0; repeat < 10; ++repeat) {
      std::vector<float> choices;
      for (int i = 0; i < 2 * n + 1; ++i) choices.push_back(std::exp(3 * normal(random)));
      ExpectSortedOrder(Random(n, random, choices), random);
    }
  }
}

TEST(ClusterOrder, TiesGoToTheLowerNumber) {
  std::mt19937 random(2);
  for (int repeat = 0; repeat < 20; ++repeat) {
    ExpectSortedOrder(Random(300, random, {0.0f, -0.0f}), random);
    ExpectSortedOrder(Random(300, random, {1.0f, 2.0f, 3.0f}), random);
  }
}

TEST(ClusterOrder, ExtremeScoresAreOrderedToo) {
  std::mt19937 random(3);
  constexpr float kMax = std::numeric_limits<float>::max();
  constexpr float kTiny = std::numeric_limits<float>::denorm_min();
  const std::vector<std::vector<float>> kinds = {
      {kInf},
      {-kInf},
      {kInf, -kInf},
      {kInf, 1, 2, 3},
      {-kInf, 1, 2, 3},
      {kInf, -kInf, 0, 5, kMax, -kMax},
      {kMax, -kMax, 0},                 // their difference overflows
      {kTiny, 2 * kTiny, 0, -kTiny},    // the inverse of their difference overflows
      {1, std::nextafter(1.0f, 2.0f)},  // one bucket width is below one unit in the last place
      {1e30f, 1, 2, 3, 4, 5},           // all but one in one bucket
  };
  for (const auto& choices : kinds) {
    for (int repeat = 0; repeat < 10; ++repeat) {
      ExpectSortedOrder(Random(100, random, choices), random);
    }
  }
}

TEST(ClusterOrder, ANanAmongTheScoresIsReportedButNotOfAnEmptySlot) {
  const std::vector<float> scores = {1, std::nanf(""), 2};
  std::vector<uint32_t> scratch(3);
  std::vector<uint8_t> bucket_of(3);
  const std::vector<uint32_t> all = {1, 1, 1};
  const std::vector<uint32_t> empty_slot = {1, 0, 1};
  EXPECT_FALSE(
      ClusterOrder(scores.data(), all.data(), 3, scratch.data(), bucket_of.data()).ordered());
  EXPECT_TRUE(ClusterOrder(scores.data(), empty_slot.data(), 3, scratch.data(), bucket_of.data())
                  .ordered());
}

}  // namespace
}  // namespace tactic
