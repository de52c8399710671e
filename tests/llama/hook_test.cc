// The hook on a real model: what it takes over, what it leaves alone, and what it reports.
#include "tactic_llama/hook.h"

#include <algorithm>

#include "tests/llama/model_fixture.h"

namespace tactic::llama {
namespace {

// Tokens: the sinks, a segment of an index, the recent ones, and some beyond.
constexpr int kPrompt = 1200;

struct Rig {
  std::unique_ptr<Hook> hook;
  ContextPtr context;

  explicit Rig(const HookOptions& options, uint32_t tokens = 2048, bool install = true) {
    EXPECT_TRUE(Hook::Create(options, &hook).ok());
    llama_context_params params = SmallContext(tokens);
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    if (install) {
      EXPECT_TRUE(hook->Install(&params).ok());
    }
    context.reset(llama_init_from_model(Model(), params));
  }

  std::vector<float> Decode(std::vector<llama_token> tokens) {
    EXPECT_EQ(llama_decode(context.get(),
                           llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size()))),
              0);
    const float* logits = llama_get_logits_ith(context.get(), -1);
    return {logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(Model()))};
  }
  void Read(const std::vector<llama_token>& tokens, size_t end) {
    for (size_t begin = 0; begin < end; begin += 400) {
      Decode({tokens.begin() + begin, tokens.begin() + std::min(end, begin + 400)});
    }
  }
  void RollBack(int length) { llama_memory_seq_rm(llama_get_memory(context.get()), 0, length, -1); }
};

TEST(HookTest, StockIsUntouched) {
  const std::vector<llama_token> tokens = BookTokens(520);
  HookOptions options;
  options.policy = Policy::kStock;
  Rig with(options), without(options, 2048, /*install=*/false);
  with.Read(tokens, 500);
  without.Read(tokens, 500);
  EXPECT_EQ(with.Decode({tokens[500]}), without.Decode({tokens[500]}));
  // Also after the nodes were ours for a while: llama.cpp uses its graph again.
  options.policy = Policy::kDense;
  ASSERT_TRUE(with.hook->SetOptions(options).ok());
  with.Decode({tokens[501]});
  EXPECT_EQ(with.hook->TakeStats().nodes_ours, llama_model_n_layer(Model()));
  with.RollBack(501);
  options.policy = Policy::kStock;
  ASSERT_TRUE(with.hook->SetOptions(options).ok());
  EXPECT_EQ(with.Decode({tokens[501]}), without.Decode({tokens[501]}));
}

// A prompt read through our kernel leaves the model where stock attention leaves it.
TEST(HookTest, PromptAttentionAgreesWithStock) {
  const std::vector<llama_token> tokens = BookTokens(kPrompt + 20);
  HookOptions stock;
  stock.policy = Policy::kStock;
  Rig theirs(stock);
  theirs.Read(tokens, kPrompt);
  const std::vector<float> want = theirs.Decode({tokens[kPrompt]});
  const int64_t layers = llama_model_n_layer(Model());
  for (Policy policy : {Policy::kDense, Policy::kTactic}) {
    SCOPED_TRACE(PolicyName(policy));
    HookOptions options = HookOptions::For(policy);
    options.prompt_attention = true;
    Rig ours(options);
    ours.Read(tokens, kPrompt);
    const HookStats stats = ours.hook->TakeStats();
    EXPECT_EQ(stats.nodes_ours, 3 * layers) << "three batches of up to 400 tokens";
    EXPECT_EQ(stats.nodes_stock, 0);
    EXPECT_TRUE(ours.hook->LastProblem().ok());
    // As far as its two ways of attention are from each other.
    ASSERT_TRUE(ours.hook->SetOptions(stock).ok());
    EXPECT_LT(Kl(want, ours.Decode({tokens[kPrompt]})), 0.02);
    // Its nodes are stock's again: the same prompt gives the same.
    ours.RollBack(0);
    ours.Read(tokens, kPrompt);
    EXPECT_EQ(ours.Decode({tokens[kPrompt]}), want);
  }
}

TEST(HookTest, PoliciesAgreeOnRealText) {
  constexpr Policy kPolicies[] = {Policy::kStock, Policy::kDense, Policy::kPaper, Policy::kTactic};
  const std::vector<llama_token> tokens = BookTokens(kPrompt + 20);
  Rig run(HookOptions{});
  run.Read(tokens, kPrompt);
  EXPECT_GT(run.hook->TakeStats().index_bytes, 0) << "keys are indexed while the prompt is read";
  std::vector<float> logits[4];
  HookStats stats[4];
  for (Policy policy : kPolicies) {
    const int i = static_cast<int>(policy);
    ASSERT_TRUE(run.hook->SetOptions(HookOptions::For(policy)).ok());
    logits[i] = run.Decode({tokens[kPrompt]});
    stats[i] = run.hook->TakeStats();
    EXPECT_TRUE(run.hook->LastProblem().ok());
    run.RollBack(kPrompt);
  }
  // What a policy computes does not depend on the one before it.
  for (Policy policy : {Policy::kTactic, Policy::kDense, Policy::kPaper}) {
    ASSERT_TRUE(run.hook->SetOptions(HookOptions::For(policy)).ok());
    EXPECT_EQ(run.Decode({tokens[kPrompt]}), logits[static_cast<int>(policy)])
        << PolicyName(policy);
    run.RollBack(kPrompt);
  }

  const int64_t layers = llama_model_n_layer(Model());
  EXPECT_EQ(stats[0].nodes_stock, layers);
  EXPECT_EQ(stats[0].tokens, 0);
  EXPECT_EQ(stats[0].index_bytes, 0) << "an index that is there belongs to another policy";
  EXPECT_EQ(stats[1].nodes_ours, layers);
  EXPECT_EQ(stats[1].RowsFraction(), 1.0);
  EXPECT_EQ(stats[1].rows_dense, (kPrompt + 1) * layers * llama_model_n_head_kv(Model()));
  EXPECT_EQ(stats[1].index_bytes, 0);
  for (Policy policy : {Policy::kPaper, Policy::kTactic}) {
    SCOPED_TRACE(PolicyName(policy));
    const int i = static_cast<int>(policy);
    EXPECT_EQ(stats[i].tokens, 1);
    EXPECT_EQ(stats[i].fallbacks, 0);
    EXPECT_GT(stats[i].index_bytes, 0);
    EXPECT_EQ(stats[i].bytes_clusters + stats[i].bytes_codes + stats[i].bytes_rows,
              stats[i].bytes_read);
    EXPECT_LT(Kl(logits[1], logits[i]), 0.5);
  }
  EXPECT_LT(stats[2].RowsFraction(), 0.8);
  // Stock accumulates values in f16: two of its own paths differ by up to 4e-3 in KL.
  EXPECT_LT(Kl(logits[0], logits[1]), 5e-3);
}

TEST(HookTest, TacticSelectsAndKnowsHowMuchItRead) {
  const std::vector<llama_token> tokens = BookTokens(kPrompt + 20);
  Rig run(HookOptions{});
  EXPECT_EQ(run.hook->options().policy, Policy::kTactic);
  run.Read(tokens, kPrompt);
  run.Decode({tokens[kPrompt]});
  run.hook->MeasureMass(true);
  run.Decode({tokens[kPrompt + 1]});
  const HookStats stats = run.hook->TakeStats();
  const int64_t heads = llama_model_n_layer(Model()) * llama_model_n_head(Model());
  EXPECT_EQ(stats.selections, 2 * heads) << "of every step, measured or not";
  EXPECT_EQ(stats.cases, heads);
  EXPECT_LT(stats.RowsFraction(), 0.8);
  EXPECT_GT(stats.bytes_codes, 0);
  EXPECT_GT(stats.p_hat_min, 0);
  EXPECT_LE(stats.p_hat_sum, 1.001 * static_cast<double>(stats.selections));
  EXPECT_GT(stats.p_hat_sum, 0.85 * static_cast<double>(stats.selections));
  EXPECT_GT(stats.coded, 0);
  EXPECT_LE(stats.coded, stats.selections);
  EXPECT_GT(stats.code_error_max, 0);
  EXPECT_LT(stats.extended, stats.selections);
  EXPECT_LE(stats.overclaims * 20, stats.cases);
}

TEST(HookTest, KeepsTheIndexOfEachPolicyUntilItsParametersChange) {
  const std::vector<llama_token> tokens = BookTokens(kPrompt + 20);
  Rig run(HookOptions{});
  run.Read(tokens, kPrompt);
  run.hook->TakeStats();
  // Decodes a token and takes it back; whether that built anything.
  const auto builds = [&](const HookOptions& options) {
    EXPECT_TRUE(run.hook->SetOptions(options).ok());
    run.Decode({tokens[kPrompt]});
    run.RollBack(kPrompt);
    return run.hook->TakeStats().index_build_ns > 0;
  };
  HookOptions paper = HookOptions::For(Policy::kPaper);
  HookOptions tactic = HookOptions::For(Policy::kTactic);
  EXPECT_TRUE(builds(tactic)) << "the open segment; the others were built while the text was read";
  EXPECT_FALSE(builds(tactic));
  EXPECT_TRUE(builds(paper));
  EXPECT_FALSE(builds(tactic));
  EXPECT_FALSE(builds(HookOptions::For(Policy::kDense)));
  EXPECT_FALSE(builds(HookOptions::For(Policy::kStock)));
  EXPECT_FALSE(builds(paper));
  // What decides the selection alone leaves the index as it is.
  paper.tactic.target = 0.5;
  EXPECT_FALSE(builds(paper));
  paper.tactic.cluster_size = 24;
  EXPECT_TRUE(builds(paper));
  EXPECT_FALSE(builds(tactic)) << "another policy's parameters are none of its business";
  tactic.tactic.rounds = 0;
  EXPECT_FALSE(builds(tactic));
  tactic.tactic.bits = 4;
  EXPECT_TRUE(builds(tactic));
  run.hook->DropIndex();
  EXPECT_TRUE(builds(tactic));
  EXPECT_TRUE(builds(paper));
}

TEST(HookTest, MeasuresMassOnlyWhenAsked) {
  const std::vector<llama_token> tokens = BookTokens(kPrompt + 20);
  Rig run(HookOptions::For(Policy::kPaper));
  run.Read(tokens, kPrompt);
  run.Decode({tokens[kPrompt]});
  EXPECT_EQ(run.hook->TakeStats().cases, 0);
  run.hook->MeasureMass(true);
  run.Decode({tokens[kPrompt + 1]});
  const HookStats stats = run.hook->TakeStats();
  EXPECT_EQ(stats.cases, llama_model_n_layer(Model()) * llama_model_n_head(Model()));
  EXPECT_GE(stats.union_mass_sum, stats.own_mass_sum);
  EXPECT_GE(stats.union_reached, stats.own_reached);
  EXPECT_GT(stats.own_mass_sum / static_cast<double>(stats.cases), 0.6);
  EXPECT_EQ(stats.selections, 0) << "only policy tactic knows anything of itself";
  EXPECT_EQ(stats.overclaims, 0);
}

TEST(HookTest, SeveralTokensAtOnceEqualOneByOne) {
  const std::vector<llama_token> tokens = BookTokens(kPrompt + 20);
  Rig run(HookOptions{});
  run.Read(tokens, kPrompt);
  for (Policy policy : {Policy::kPaper, Policy::kTactic}) {
    SCOPED_TRACE(PolicyName(policy));
    ASSERT_TRUE(run.hook->SetOptions(HookOptions::For(policy)).ok());
    const std::vector<float> together =
        run.Decode({tokens.begin() + kPrompt, tokens.begin() + kPrompt + 4});
    EXPECT_EQ(run.hook->TakeStats().fallbacks, 0);
    run.RollBack(kPrompt);
    std::vector<float> single;
    for (int i = kPrompt; i < kPrompt + 4; ++i) single = run.Decode({tokens[i]});
    run.RollBack(kPrompt);
    // llama.cpp multiplies matrices differently for four tokens; its rounding reaches our choice of
    // rows.
    EXPECT_LT(Kl(single, together), 0.05);
  }
}

TEST(HookTest, SaysWhyAttentionCannotBeTakenOver) {
  HookOptions options;
  std::unique_ptr<Hook> hook;
  ASSERT_TRUE(Hook::Create(options, &hook).ok());
  llama_context_params params = SmallContext(256);
  ASSERT_TRUE(hook->Install(&params).ok());
  EXPECT_FALSE(hook->Install(&params).ok()) << "cb_eval is taken";
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  const ContextPtr context(llama_init_from_model(Model(), params));
  std::vector<llama_token> tokens = BookTokens(8);
  ASSERT_EQ(llama_decode(context.get(), llama_batch_get_one(tokens.data(), 8)), 0);
  EXPECT_EQ(hook->LastProblem().code(), StatusCode::kUnsupported);
  EXPECT_NE(hook->LastProblem().message().find("flash-attention"), std::string::npos);
}

TEST(HookTest, RefusesOptionsOutOfRange) {
  HookOptions options;
  std::unique_ptr<Hook> hook;
  options.tactic.target = 0;
  EXPECT_EQ(Hook::Create(options, &hook).code(), StatusCode::kInvalidArgument);
  options.tactic.target = 0.9;
  options.max_decode_tokens = 0;
  EXPECT_EQ(Hook::Create(options, &hook).code(), StatusCode::kInvalidArgument);
  Policy policy;
  EXPECT_EQ(ParsePolicy("fastest", &policy).code(), StatusCode::kInvalidArgument);
}

TEST(HookTest, OptionsOfAPolicyAreThoseOfItsMode) {
  for (Policy policy : {Policy::kStock, Policy::kDense, Policy::kPaper, Policy::kTactic}) {
    Policy parsed;
    ASSERT_TRUE(ParsePolicy(PolicyName(policy), &parsed).ok());
    EXPECT_EQ(parsed, policy);
    EXPECT_EQ(HookOptions::For(policy).policy, policy);
  }
  EXPECT_EQ(HookOptions{}.policy, Policy::kTactic);
  const Options paper = HookOptions::For(Policy::kPaper).tactic;
  EXPECT_EQ(paper.mode, Mode::kPaper);
  EXPECT_EQ(paper.cluster_size, Options::For(Mode::kPaper).cluster_size);
  EXPECT_EQ(HookOptions::For(Policy::kTactic).tactic.mode, Mode::kTactic);
  EXPECT_EQ(HookOptions::For(Policy::kDense).tactic.mode, Mode::kDense);
  // Whatever mode the caller's parameters have, the policy decides.
  HookOptions options = HookOptions::For(Policy::kPaper);
  options.tactic.mode = Mode::kDense;
  std::unique_ptr<Hook> hook;
  ASSERT_TRUE(Hook::Create(options, &hook).ok());
  EXPECT_EQ(hook->options().tactic.mode, Mode::kPaper);
  options.policy = Policy::kTactic;
  ASSERT_TRUE(hook->SetOptions(options).ok());
  EXPECT_EQ(hook->options().tactic.mode, Mode::kTactic);
}

}  // namespace
}  // namespace tactic::llama
