// Haystacks: everything hidden is there once, where it should be, between sentences.
#include "haystack.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <span>

#include "defaults.h"
#include "eval_items.h"
#include "facts.h"
#include "subprocess.h"
#include "text.h"

namespace tactic::app {
namespace {

constexpr int kSize = 4000;

class HaystackTest : public testing::Test {
 protected:
  void SetUp() override {
    TACTIC_REQUIRE_MODEL();
    ASSERT_TRUE(Model::Load({DefaultModelPath(), "", true}, &model_).ok());
    std::string book;
    ASSERT_TRUE(ReadText(FindProjectFile(kDefaultBook), "book", &book).ok());
    ASSERT_TRUE(model_->Tokenize(book.substr(0, 200000), false, false, &book_).ok());
    for (const EvalItem& item : MakeItems({}, 1)) pieces_.push_back(item.text);
  }

  Haystack Hide(Placing placing, uint64_t seed) {
    Haystack haystack;
    EXPECT_TRUE(HidePieces(*model_, book_, kSize, pieces_, placing, seed, &haystack).ok());
    return haystack;
  }

  std::string Text(std::span<const llama_token> tokens) const {
    std::string text;
    for (const llama_token token : tokens) text += model_->Piece(token);
    return text;
  }

  std::unique_ptr<Model> model_;
  std::vector<llama_token> book_;
  std::vector<std::string> pieces_;
};

TEST_F(HaystackTest, HoldsEveryPieceOnceAtItsPlace) {
  for (const Placing placing : {Placing::kRandom, Placing::kEven}) {
    const Haystack haystack = Hide(placing, 1);
    ASSERT_EQ(haystack.tokens.size(), size_t{kSize});
    const std::string text = Text(haystack.tokens);
    ASSERT_EQ(haystack.depths.size(), pieces_.size());
    for (size_t i = 0; i < pieces_.size(); ++i) {
      const size_t at = text.find(pieces_[i]);
      ASSERT_NE(at, std::string::npos) << pieces_[i];
      EXPECT_EQ(text.find(pieces_[i], at + 1), std::string::npos) << pieces_[i];
      const auto start = static_cast<size_t>(haystack.depths[i] * kSize + 0.5);
      EXPECT_EQ(Text(std::span(haystack.tokens).subspan(start)).find(pieces_[i]), 0U) << pieces_[i];
      const std::string before = Text({haystack.tokens.data(), start});
      EXPECT_NE(std::string(".!?\"')\n").find(before.back()), std::string::npos)
          << before.substr(before.size() - std::min<size_t>(before.size(), 40));
    }
  }
}

TEST_F(HaystackTest, EvenPlacesAreEquallyFarApart) {
  std::vector<double> depths = Hide(Placing::kEven, 1).depths;
  EXPECT_FALSE(std::is_sorted(depths.begin(), depths.end())) << "kinds should be mixed";
  std::sort(depths.begin(), depths.end());
  const auto count = static_cast<double>(depths.size());
  // In the text without the pieces, but for the lengths of sentences; pieces differ in length, too.
  for (size_t i = 0; i < depths.size(); ++i) {
    EXPECT_NEAR(depths[i], (static_cast<double>(i) + 0.5) / count, 0.06) << i;
  }
}

TEST_F(HaystackTest, DependsOnTheSeedAlone) {
  for (const Placing placing : {Placing::kRandom, Placing::kEven}) {
    const Haystack first = Hide(placing, 5), again = Hide(placing, 5), other = Hide(placing, 6);
    EXPECT_EQ(first.tokens, again.tokens);
    EXPECT_EQ(first.depths, again.depths);
    EXPECT_NE(first.tokens, other.tokens);
    EXPECT_NE(first.depths, other.depths);
  }
}

TEST_F(HaystackTest, TooLittleTextOrSpaceIsAnError) {
  Haystack haystack;
  Status status = HidePieces(*model_, book_, 1 << 28, pieces_, Placing::kEven, 1, &haystack);
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
  EXPECT_NE(status.message().find("the text has"), std::string::npos) << status.message();
  status = HidePieces(*model_, book_, 100, pieces_, Placing::kEven, 1, &haystack);
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
  EXPECT_NE(status.message().find("among 100 tokens"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace tactic::app
