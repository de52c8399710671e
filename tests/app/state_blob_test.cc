// State blobs against libllama itself: what it writes parses, what we write it accepts.
#include "state_blob.h"

#include <gtest/gtest.h>

#include <cstring>

#include "defaults.h"
#include "session.h"
#include "subprocess.h"

namespace tactic::app {
namespace {

std::vector<uint8_t> State(const Session& session) {
  std::vector<uint8_t> blob(llama_state_get_size(session.get()));
  llama_state_get_data(session.get(), blob.data(), blob.size());
  return blob;
}

class StateBlobTest : public testing::Test {
 protected:
  void SetUp() override {
    TACTIC_REQUIRE_MODEL();
    ASSERT_TRUE(Model::Load({DefaultModelPath(), "", true}, &model_).ok());
  }
  std::unique_ptr<Session> Open(bool flash_attention) {
    SessionOptions options;
    options.context = 512;
    options.batch = 64;
    options.flash_attention = flash_attention;
    std::unique_ptr<Session> session;
    EXPECT_TRUE(Session::Open(*model_, options, nullptr, &session).ok());
    return session;
  }
  std::unique_ptr<Model> model_;
};

TEST_F(StateBlobTest, ParsesWhatLlamaWrites) {
  for (const bool flash_attention : {true, false}) {
    const std::unique_ptr<Session> session = Open(flash_attention);
    ASSERT_TRUE(session->Read(std::vector<llama_token>{1, 504, 3575, 282, 4649}).ok());
    std::vector<BlobCache> caches;
    const Status status = ParseStateBlob(State(*session), &caches);
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_EQ(caches.size(), 1U);
    EXPECT_EQ(caches[0].cells, 5U);
    EXPECT_EQ(caches[0].v_transposed, !flash_attention);
    EXPECT_EQ(caches[0].keys.size(), static_cast<size_t>(model_->facts().layers));
    EXPECT_EQ(caches[0].values[0].row_bytes,
              size_t{2} * model_->facts().kv_heads * model_->facts().head_dim_v);
  }
}

TEST_F(StateBlobTest, TransposedValuesGiveTheSameNextToken) {
  const std::unique_ptr<Session> on = Open(true), off = Open(false);
  const std::vector<llama_token> prompt = {1, 504, 3575, 282, 4649, 314};
  ASSERT_TRUE(on->Read(prompt).ok());
  std::vector<uint8_t> blob = State(*on);
  ASSERT_TRUE(TransposeValues(&blob).ok());
  ASSERT_EQ(llama_state_set_data(off->get(), blob.data(), blob.size()), blob.size());
  off->SetDepth(on->depth());
  ASSERT_TRUE(on->Step(260).ok());
  ASSERT_TRUE(off->Step(260).ok());
  const float* expected = llama_get_logits_ith(on->get(), -1);
  const float* actual = llama_get_logits_ith(off->get(), -1);
  const int vocabulary = model_->facts().vocabulary;
  const auto argmax = [&](const float* logits) {
    return std::max_element(logits, logits + vocabulary) - logits;
  };
  EXPECT_EQ(argmax(actual), argmax(expected));
  // llama.cpp's two attention paths round differently; garbage in V would be off by tens.
  for (int i = 0; i < vocabulary; ++i) ASSERT_NEAR(actual[i], expected[i], 1.0) << i;
}

TEST_F(StateBlobTest, RandomCellsAreAccepted) {
  for (const bool flash_attention : {true, false}) {
    const std::unique_ptr<Session> session = Open(flash_attention);
    ASSERT_TRUE(session->Step(1).ok());
    std::vector<uint8_t> blob;
    ASSERT_TRUE(RandomStateBlob(State(*session), 300, 1, &blob).ok());
    session->Clear();
    ASSERT_EQ(llama_state_set_data(session->get(), blob.data(), blob.size()), blob.size());
    session->SetDepth(300);
    EXPECT_EQ(llama_memory_seq_pos_max(llama_get_memory(session->get()), 0), 299);
    EXPECT_TRUE(session->Step(1).ok());
  }
}

TEST_F(StateBlobTest, FirstCellsAreThoseOfTheShorterPrompt) {
  const std::unique_ptr<Session> longer = Open(true), shorter = Open(true);
  const std::vector<llama_token> prompt = {1, 504, 3575, 282, 4649, 314, 260};
  ASSERT_TRUE(longer->Read(prompt).ok());
  std::vector<uint8_t> part;
  ASSERT_TRUE(KeepFirstCells(State(*longer), 4, &part).ok());
  ASSERT_EQ(llama_state_set_data(shorter->get(), part.data(), part.size()), part.size());
  EXPECT_EQ(llama_memory_seq_pos_max(llama_get_memory(shorter->get()), 0), 3);
  ASSERT_TRUE(longer->RollBack(4).ok());
  EXPECT_EQ(State(*longer), part);
  std::vector<uint8_t> kept;
  EXPECT_FALSE(KeepFirstCells(part, 5, &kept).ok());
}

TEST(StateBlob, DamageIsRefused) {
  std::vector<uint8_t> blob(64, 0xFF);
  std::vector<BlobCache> caches;
  EXPECT_EQ(ParseStateBlob(blob, &caches).code(), StatusCode::kUnsupported);
  blob.clear();
  EXPECT_FALSE(ParseStateBlob(blob, &caches).ok());
}

TEST_F(StateBlobTest, EveryTruncationIsRefused) {
  const std::unique_ptr<Session> session = Open(true);
  ASSERT_TRUE(session->Step(1).ok());
  const std::vector<uint8_t> blob = State(*session);
  std::vector<BlobCache> caches;
  for (size_t size = 0; size < blob.size(); size += 97) {
    const std::vector<uint8_t> cut(blob.begin(), blob.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_FALSE(ParseStateBlob(cut, &caches).ok()) << size;
  }
}

}  // namespace
}  // namespace tactic::app
