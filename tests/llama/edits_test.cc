// Random edits of the KV cache - append, remove, shift, fork, save and load, several sequences at
// once - after which decoding must give, bit for bit, what a fresh index of the same cache gives.
// Two policies take turns on every cache, so that each one's index also sees edits while it is not
// the one that decodes.
#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "llama/src/cell_tracker.h"
#include "tactic_llama/hook.h"
#include "tests/llama/model_fixture.h"

namespace tactic::llama {
namespace {

constexpr int kContext = 1024;
constexpr int kSequences = 3;
constexpr double kTarget = 0.8;
constexpr Policy kIndexed[] = {Policy::kPaper, Policy::kTactic};
// Random sequences of edits per kind of cache. Sanitizers look at the code, not at the odds.
#ifdef __SANITIZE_ADDRESS__
constexpr uint32_t kHistories = 2;
#else
constexpr uint32_t kHistories = 5;
#endif

// A context whose cache is edited at random, with small segments so that a few hundred tokens make
// many.
class EditedCache {
 public:
  EditedCache(uint32_t seed, bool unified, ggml_type type) : random_(seed), unified_(unified) {
    EXPECT_TRUE(Hook::Create(OptionsFor(Policy::kPaper, kTarget), &hook_).ok());
    llama_context_params params = SmallContext(kContext);
    params.n_threads = params.n_threads_batch =
        1;  // thousands of tiny steps: barriers would cost more than they save
    params.n_seq_max = kSequences;
    params.kv_unified = unified;
    params.type_k = params.type_v = type;
    EXPECT_TRUE(hook_->Install(&params).ok());
    context_.reset(llama_init_from_model(Model(), params));
    text_ = BookTokens(4096);
  }

  llama_memory_t memory() { return llama_get_memory(context_.get()); }
  int Length(int seq) { return llama_memory_seq_pos_max(memory(), seq) + 1; }
  int Capacity() const { return unified_ ? kContext : kContext / kSequences; }
  int Below(int n) { return static_cast<int>(random_() % static_cast<uint32_t>(n)); }
  int Total() {
    int total = 0;
    for (int s = 0; s < kSequences; ++s) total += Length(s);
    return total;
  }

  // Decodes `count` further tokens of each listed sequence in one batch.
  bool Decode(const std::vector<int>& sequences, int count,
              std::vector<std::vector<float>>* logits) {
    llama_batch batch = llama_batch_init(static_cast<int>(sequences.size()) * count, 0, 1);
    for (int s : sequences) {
      for (int i = 0; i < count; ++i) {
        const int at = batch.n_tokens++;
        batch.token[at] = text_[(next_ + 257 * s + i) % text_.size()];
        batch.pos[at] = Length(s) + i;
        batch.n_seq_id[at] = 1;
        batch.seq_id[at][0] = s;
        batch.logits[at] = i + 1 == count;
      }
    }
    const int rc = llama_decode(context_.get(), batch);
    EXPECT_EQ(rc, 0);
    if (rc == 0 && logits != nullptr) {
      const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(Model()));
      for (int at = 0; at < batch.n_tokens; ++at) {
        if (batch.logits[at] == 0) continue;
        const float* l = llama_get_logits_ith(context_.get(), at);
        logits->emplace_back(l, l + vocabulary);
      }
    }
    llama_batch_free(batch);
    return rc == 0;
  }

  // One random edit; returns its name.
  std::string Edit() {
    const int seq = Below(kSequences);
    const int length = Length(seq);
    const int room = std::min(Capacity() - length, kContext - Total()) - 16;
    next_ = random_() % text_.size();
    switch (Below(8)) {
      case 0:
      case 1: {  // a prompt, through stock attention
        if (room < 80) break;
        Decode({seq}, 16 + Below(std::min(room, 300) - 16), nullptr);
        return "append to " + std::to_string(seq);
      }
      case 2: {  // a few tokens, through ours
        if (room < 16) break;
        Decode({seq}, 1 + Below(8), nullptr);
        return "decode " + std::to_string(seq);
      }
      case 3:
        if (length < 8) break;
        llama_memory_seq_rm(memory(), seq, length - 1 - Below(std::min(length / 2, 100)), -1);
        return "roll back " + std::to_string(seq);
      case 4: {
        if (length < 40) break;
        const int begin = 4 + Below(length / 2);
        const int end = begin + 1 + Below(length / 4);
        llama_memory_seq_rm(memory(), seq, begin, end);
        llama_memory_seq_add(memory(), seq, end, -1, begin - end);
        return "cut and shift " + std::to_string(seq);
      }
      case 5: {
        const int to = (seq + 1) % kSequences;
        if (length < 8 || (!unified_ && length + 16 > Capacity())) break;
        llama_memory_seq_rm(memory(), to, -1, -1);
        llama_memory_seq_cp(memory(), seq, to, -1, -1);
        return "fork " + std::to_string(seq) + " to " + std::to_string(to);
      }
      case 6: {  // save, go on differently, load: the bytes change back without any node
        if (length < 8 || kContext - Total() < length + 64) break;
        std::vector<uint8_t> state(llama_state_seq_get_size(context_.get(), seq));
        EXPECT_GT(llama_state_seq_get_data(context_.get(), state.data(), state.size(), seq), 0u);
        llama_memory_seq_rm(memory(), seq, length / 2, -1);
        if (room > 60) Decode({seq}, std::min(room, length - length / 2), nullptr);
        llama_memory_seq_rm(memory(), seq, -1, -1);
        EXPECT_GT(llama_state_seq_set_data(context_.get(), state.data(), state.size(), seq), 0u);
        return "load a state of " + std::to_string(seq);
      }
      case 7:
        if (length == 0 || Below(3) != 0) break;
        llama_memory_seq_rm(memory(), seq, -1, -1);
        return "clear " + std::to_string(seq);
    }
    return "";
  }

  // Decodes one token of every sequence that holds anything, takes it back, and returns the logits.
  std::vector<std::vector<float>> Probe() {
    std::vector<int> sequences;
    for (int s = 0; s < kSequences; ++s) {
      if (Length(s) > 0 && Length(s) + 1 <= Capacity()) sequences.push_back(s);
    }
    std::vector<std::vector<float>> logits;
    if (sequences.empty() || !Decode(sequences, 1, &logits)) return logits;
    for (int s : sequences) llama_memory_seq_rm(memory(), s, Length(s) - 1, -1);
    return logits;
  }

  void SetPolicy(Policy policy, double target = kTarget) {
    EXPECT_TRUE(hook_->SetOptions(OptionsFor(policy, target)).ok());
  }
  Hook& hook() { return *hook_; }

 private:
  static HookOptions OptionsFor(Policy policy, double target) {
    HookOptions options = HookOptions::For(policy);
    options.tactic.segment_size = 64;
    options.tactic.cluster_size = 8;
    options.tactic.recent = 16;
    options.tactic.sinks = 4;
    options.tactic.dense_below = 96;
    options.tactic.target = target;
    return options;
  }

  std::mt19937 random_;
  bool unified_;
  std::unique_ptr<Hook> hook_;
  ContextPtr context_;
  std::vector<llama_token> text_;
  size_t next_ = 0;
};

struct Setup {
  const char* name;
  bool unified;
  ggml_type type;
  uint32_t first_seed;
};

class EditsTest : public testing::TestWithParam<Setup> {};

TEST_P(EditsTest, EqualsAFreshIndexAfterAnyEdit) {
  int checks = 0;
  std::map<Policy, int64_t> saved;  // rows
  for (uint32_t seed = GetParam().first_seed; seed < GetParam().first_seed + kHistories; ++seed) {
    EditedCache cache(seed, GetParam().unified, GetParam().type);
    std::string history;
    for (int edit = 0; edit < 12; ++edit) {
      const std::string name = cache.Edit();
      if (name.empty()) continue;
      history += name + "; ";
      SCOPED_TRACE("seed " + std::to_string(seed) + ": " + history);
      std::map<Policy, std::vector<std::vector<float>>> after_edit;
      cache.hook().TakeStats();
      for (Policy policy : kIndexed) {
        cache.SetPolicy(policy);
        after_edit[policy] = cache.Probe();
        const HookStats stats = cache.hook().TakeStats();
        ASSERT_TRUE(cache.hook().LastProblem().ok()) << cache.hook().LastProblem().message();
        EXPECT_EQ(stats.fallbacks, 0);
        saved[policy] += stats.rows_dense - stats.rows_read;
      }
      cache.hook().DropIndex();
      for (Policy policy : kIndexed) {
        SCOPED_TRACE(PolicyName(policy));
        cache.SetPolicy(policy);
        const auto fresh = cache.Probe();
        ASSERT_EQ(after_edit[policy], fresh);
        checks += static_cast<int>(fresh.size());
      }
      // The next edit is decoded by one policy or the other.
      cache.SetPolicy(kIndexed[edit % 2]);
      if (edit % 4 != 3) continue;
      // Reading everything through the index is reading everything: no row is lost, doubled or
      // stale.
      cache.SetPolicy(Policy::kDense);
      const auto dense = cache.Probe();
      for (Policy policy : kIndexed) {
        SCOPED_TRACE(PolicyName(policy));
        cache.SetPolicy(policy, 1.0);
        cache.hook().TakeStats();
        const auto everything = cache.Probe();
        const HookStats all = cache.hook().TakeStats();
        EXPECT_EQ(all.rows_read, all.rows_dense);
        // Another order of the same sums. What is left of the difference comes from the model's
        // quantised activations, where the last bit of a float can turn into 1/127 of a block;
        // cut-up text makes a small model sensitive to that.
        for (size_t i = 0; i < dense.size(); ++i) EXPECT_LT(Kl(dense[i], everything[i]), 0.05);
      }
      cache.SetPolicy(kIndexed[edit % 2]);
    }
  }
  EXPECT_GT(checks, 12 * static_cast<int>(kHistories));
  for (Policy policy : kIndexed) {
    EXPECT_GT(saved[policy], 0) << "the sequences were too short for the index of "
                                << PolicyName(policy) << " to be used at all";
  }
  RecordProperty("checks", checks);
}

INSTANTIATE_TEST_SUITE_P(Caches, EditsTest,
                         testing::Values(Setup{"UnifiedF16", true, GGML_TYPE_F16, 1},
                                         Setup{"StreamsF16", false, GGML_TYPE_F16, 101},
                                         Setup{"UnifiedQ8", true, GGML_TYPE_Q8_0, 201},
                                         Setup{"StreamsQ4", false, GGML_TYPE_Q4_0, 301}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tactic::llama
