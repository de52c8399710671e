// Sessions: reading, rolling back and changing the policy from step to step.
#include "session.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "defaults.h"
#include "subprocess.h"
#include "text.h"

namespace tactic::app {
namespace {

using llama::Policy;

constexpr int kPromptTokens = 1200;

class SessionTest : public testing::Test {
 protected:
  void SetUp() override {
    TACTIC_REQUIRE_MODEL();
    ASSERT_TRUE(Model::Load({DefaultModelPath(), "", true}, &model_).ok());
    std::string book;
    ASSERT_TRUE(ReadText(FindProjectFile(kDefaultBook), "book", &book).ok());
    ASSERT_TRUE(model_->Tokenize(book.substr(20000, 12000), true, false, &tokens_).ok());
    SessionOptions options;
    options.context = 1536;
    options.threads = 2;
    const llama::HookOptions hook = OptionsFor(Policy::kTactic);
    ASSERT_TRUE(Session::Open(*model_, options, &hook, &session_).ok());
    ASSERT_TRUE(session_->Read({tokens_.data(), kPromptTokens}).ok());
  }

  static llama::HookOptions OptionsFor(Policy policy) {
    llama::HookOptions options = llama::HookOptions::For(policy);
    options.tactic.dense_below = 256;  // so that there is something to select
    return options;
  }

  // Logits after two steps under `policy`, which are rolled back.
  std::vector<float> Logits(Policy policy) {
    EXPECT_TRUE(session_->UsePolicy(OptionsFor(policy)).ok());
    for (int i = 0; i < 2; ++i) {
      EXPECT_TRUE(session_->Step(tokens_[static_cast<size_t>(kPromptTokens + i)]).ok());
    }
    const float* logits = llama_get_logits_ith(session_->get(), -1);
    std::vector<float> copy(logits, logits + model_->facts().vocabulary);
    EXPECT_TRUE(session_->RollBack(kPromptTokens).ok());
    return copy;
  }

  static double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
    double largest = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      largest = std::max(largest, std::abs(double{a[i]} - double{b[i]}));
    }
    return largest;
  }

  std::unique_ptr<Model> model_;
  std::vector<llama_token> tokens_;
  std::unique_ptr<Session> session_;
};

TEST_F(SessionTest, APolicyDoesNotDependOnTheOneBefore) {
  const std::vector<float> stock = Logits(Policy::kStock), dense = Logits(Policy::kDense),
                           paper = Logits(Policy::kPaper), tactic = Logits(Policy::kTactic);
  // Dense is exact; llama.cpp's own attention paths differ by as much (up to 1.2 was measured).
  EXPECT_LT(LargestDifference(stock, dense), 2.5);
  EXPECT_LT(LargestDifference(Logits(Policy::kDense), dense), 1e-3) << "dense after paper";
  EXPECT_LT(LargestDifference(Logits(Policy::kStock), stock), 1e-3) << "stock after dense";
  EXPECT_LT(LargestDifference(Logits(Policy::kPaper), paper), 1e-3) << "paper after stock";
  EXPECT_LT(LargestDifference(Logits(Policy::kTactic), tactic), 1e-3) << "tactic after paper";
  EXPECT_LT(LargestDifference(Logits(Policy::kPaper), paper), 1e-3) << "paper after tactic";
  EXPECT_LT(LargestDifference(Logits(Policy::kStock), stock), 1e-3) << "stock after paper";
}

TEST_F(SessionTest, RollsBackToAnyDepth) {
  EXPECT_EQ(session_->depth(), kPromptTokens);
  ASSERT_TRUE(session_->RollBack(500).ok());
  EXPECT_EQ(session_->depth(), 500);
  EXPECT_EQ(llama_memory_seq_pos_max(llama_get_memory(session_->get()), 0), 499);
  const Status status = session_->Read(std::vector<llama_token>(2000, 1));
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange) << status.message();
  EXPECT_EQ(session_->depth(), 500);
}

}  // namespace
}  // namespace tactic::app
