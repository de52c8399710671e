#include "eval_items.h"

#include <gtest/gtest.h>

#include <set>

#include "facts.h"

namespace tactic::app {
namespace {

TEST(EvalItems, TextHoldsTheValueAndTheQuestionDoesNot) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    std::set<std::string> texts, questions;
    for (const EvalItem& item : MakeItems({kMostFacts, kMostLines, kMostEntries}, seed)) {
      EXPECT_NE(item.text.find(item.value), std::string::npos) << item.text;
      EXPECT_EQ(item.question.find(item.value), std::string::npos) << item.question;
      EXPECT_TRUE(texts.insert(item.text).second) << item.text;
      EXPECT_TRUE(questions.insert(item.question).second) << item.question;
    }
    EXPECT_EQ(texts.size(), size_t{kMostFacts + kMostLines + kMostEntries});
  }
}

TEST(EvalItems, AreAsManyOfEachKindAsAskedFor) {
  int counts[3] = {};
  for (const EvalItem& item : MakeItems({2, 3, 1}, 1)) ++counts[static_cast<int>(item.kind)];
  EXPECT_EQ(counts[0], 2);
  EXPECT_EQ(counts[1], 3);
  EXPECT_EQ(counts[2], 1);
  EXPECT_TRUE(MakeItems({0, 0, 0}, 1).empty());
}

TEST(EvalItems, DependOnTheSeedAlone) {
  const std::vector<EvalItem> first = MakeItems({}, 5), again = MakeItems({}, 5),
                              other = MakeItems({}, 6);
  ASSERT_EQ(first.size(), 20U);
  for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(first[i].text, again[i].text);
  EXPECT_NE(first[0].text, other[0].text);
  EXPECT_NE(first[7].text, other[7].text);
  EXPECT_NE(first[19].text, other[19].text);
}

TEST(EvalItems, LookAsInTheBenchmarks) {
  const std::vector<EvalItem> items = MakeItems({0, 1, 1}, 3);
  EXPECT_NE(items[0].text.find(": REGISTER_CONTENT is <" + items[0].value + ">\n"),
            std::string::npos)
      << items[0].text;
  const std::string& uuid = items[1].value;
  ASSERT_EQ(uuid.size(), 36U);
  for (const size_t dash : {8, 13, 18, 23}) EXPECT_EQ(uuid[dash], '-');
  EXPECT_EQ(uuid[14], '4');
  EXPECT_NE(items[1].text.find("\": \"" + uuid + "\"}\n"), std::string::npos) << items[1].text;
}

}  // namespace
}  // namespace tactic::app
