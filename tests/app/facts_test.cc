#include "facts.h"

#include <gtest/gtest.h>

namespace tactic::app {
namespace {

TEST(Facts, SentenceHoldsItsValueAndQuestionDoesNot) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    for (const Fact& fact : MakeFacts(kMostFacts, seed)) {
      EXPECT_NE(fact.sentence.find(fact.value), std::string::npos) << fact.sentence;
      EXPECT_EQ(fact.question.find(fact.value), std::string::npos) << fact.question;
      EXPECT_EQ(fact.question.back(), '?');
    }
  }
}

TEST(Facts, DependOnTheSeedAlone) {
  const std::vector<Fact> first = MakeFacts(3, 5), again = MakeFacts(3, 5), other = MakeFacts(3, 6);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(first[i].sentence, again[i].sentence);
  EXPECT_NE(first[0].sentence, other[0].sentence);
}

}  // namespace
}  // namespace tactic::app
