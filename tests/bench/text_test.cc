#include "bench/synthetic/text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

namespace tactic::synthetic {
namespace {

TEST(Text, PassagesCoverATextAndTopicsComeBack) {
  std::mt19937_64 random(3);
  const Passages passages(20000, random);
  int64_t end = 0;
  std::set<size_t> topics;
  for (const Passage& passage : passages.all) {
    EXPECT_EQ(passage.begin, end);
    EXPECT_GT(passage.end, passage.begin);
    EXPECT_LE(passage.topic, topics.size()) << "topics are numbered as they come";
    topics.insert(passage.topic);
    end = passage.end;
  }
  EXPECT_EQ(end, 20000);
  EXPECT_EQ(passages.topics, topics.size());
  EXPECT_LT(topics.size(), passages.all.size() * 3 / 4);
}

TEST(Text, NeededTokensHaveTheMeanAndTheSpread) {
  std::mt19937_64 random(3);
  for (const double mean : {60.0, 1800.0, 6000.0}) {
    const std::vector<double> needed = NeededTokens(400, mean, 1.2, 16000, random);
    double sum = 0, logs = 0, squares = 0;
    for (const double x : needed) {
      EXPECT_GE(x, kSinks);
      EXPECT_LE(x, 16000);
      sum += x;
      logs += std::log(x);
      squares += std::log(x) * std::log(x);
    }
    EXPECT_NEAR(sum / 400, mean, mean * 0.001);
    EXPECT_NEAR(std::sqrt(squares / 400 - logs * logs / 160000), 1.2, 0.25);
  }
}

TEST(Text, TopicsNeedNothingWhereTheRestIsEnough) {
  EXPECT_NEAR(ShareOfTopics({0.2, 0.2, 0.1}, 0.9), 0.8, 1e-12);
  EXPECT_EQ(ShareOfTopics({0.5, 0.45, 0}, 0.9), 0);
}

}  // namespace
}  // namespace tactic::synthetic
