#include "facts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "defaults.h"
#include "subprocess.h"
#include "text.h"

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

TEST(Facts, AreHiddenBetweenSentences) {
  TACTIC_REQUIRE_MODEL();
  std::unique_ptr<Model> model;
  ASSERT_TRUE(Model::Load({DefaultModelPath(), "", true}, &model).ok());
  std::string book;
  ASSERT_TRUE(ReadText(FindProjectFile(kDefaultBook), "book", &book).ok());
  std::vector<llama_token> tokens;
  ASSERT_TRUE(model->Tokenize(book.substr(0, 200000), false, false, &tokens).ok());
  const std::vector<Fact> facts = MakeFacts(3, 1);
  Haystack haystack;
  ASSERT_TRUE(HideFacts(*model, tokens, 4000, facts, 1, &haystack).ok());
  EXPECT_EQ(haystack.tokens.size(), 4000U);
  std::string text;
  for (const llama_token token : haystack.tokens) text += model->Piece(token);
  for (size_t i = 0; i < facts.size(); ++i) {
    EXPECT_NE(text.find(" " + facts[i].sentence), std::string::npos) << facts[i].sentence;
    EXPECT_GE(haystack.depths[i], 0);
    EXPECT_LT(haystack.depths[i], 1);
  }
  const Status status = HideFacts(*model, tokens, 1 << 28, facts, 1, &haystack);
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace tactic::app
