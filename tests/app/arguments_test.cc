#include "arguments.h"

#include <gtest/gtest.h>

namespace tactic::app {
namespace {

using llama::Policy;

// What `policy` decodes with when the user writes `line`.
llama::HookOptions Resolved(const std::string& line, Policy policy) {
  CLI::App app;
  AlgorithmArgs args;
  AddAlgorithmArgs(&app, &args);
  app.parse(line);
  llama::HookOptions options;
  const Status status = ResolveAlgorithm(args, policy, &options);
  EXPECT_TRUE(status.ok()) << status.message();
  return options;
}

TEST(AlgorithmArgs, WhatIsNotGivenIsThePolicysOwn) {
  for (const Policy policy : {Policy::kStock, Policy::kDense, Policy::kPaper, Policy::kTactic}) {
    const llama::HookOptions options = Resolved("", policy), own = llama::HookOptions::For(policy);
    EXPECT_EQ(options.policy, policy);
    EXPECT_EQ(options.tactic.mode, own.tactic.mode);
    EXPECT_EQ(options.tactic.cluster_size, own.tactic.cluster_size);
    EXPECT_EQ(options.tactic.kmeans_iterations, own.tactic.kmeans_iterations);
    EXPECT_EQ(options.tactic.sinks, own.tactic.sinks);
    EXPECT_EQ(options.tactic.recent, own.tactic.recent);
  }
  EXPECT_EQ(Resolved("", Policy::kPaper).tactic.cluster_size, 16);
  EXPECT_EQ(Resolved("", Policy::kTactic).tactic.cluster_size, 32);
}

TEST(AlgorithmArgs, WhatIsGivenHoldsForEveryPolicyAndNothingElseChanges) {
  const std::string line = "--sinks 7 --target 0.8";
  const Options paper = Resolved(line, Policy::kPaper).tactic;
  const Options tactic = Resolved(line, Policy::kTactic).tactic;
  for (const Options& options : {paper, tactic}) {
    EXPECT_EQ(options.sinks, 7);
    EXPECT_EQ(options.target, 0.8);
  }
  EXPECT_EQ(paper.recent, 128);
  EXPECT_EQ(tactic.recent, 64);
  EXPECT_EQ(paper.mode, Mode::kPaper);
  EXPECT_EQ(tactic.mode, Mode::kTactic);
}

TEST(AlgorithmArgs, GivingADefaultOfOnePolicyIsGivingIt) {
  EXPECT_EQ(Resolved("--cluster-size 32", Policy::kPaper).tactic.cluster_size, 32);
}

TEST(AlgorithmArgs, EveryFieldHasAnOption) {
  const Options options =
      Resolved(
          "--target 0.5 --cluster-size 8 --kmeans-iterations 3 --segment-size 512 "
          "--update-interval 100 --index-seed 9 --sinks 1 --recent 2 --index pages --bits 2 "
          "--bits-error 0.3 --skip-share 0.1 --skip-token 0.2 --unread-margin 1.7 "
          "--skipped-margin 1.8 --rounds 5 --tail off --dense-share 0.7 --head-share 0.03 "
          "--near-window 0.2 --far-window 0.5 --window-share 0.004 --dense-below 77",
          Policy::kTactic)
          .tactic;
  EXPECT_EQ(options.target, 0.5);
  EXPECT_EQ(options.cluster_size, 8);
  EXPECT_EQ(options.kmeans_iterations, 3);
  EXPECT_EQ(options.segment_size, 512);
  EXPECT_EQ(options.update_interval, 100);
  EXPECT_EQ(options.seed, 9U);
  EXPECT_EQ(options.sinks, 1);
  EXPECT_EQ(options.recent, 2);
  EXPECT_EQ(options.index, IndexKind::kPages);
  EXPECT_EQ(options.bits, 2);
  EXPECT_EQ(options.bits_error, 0.3);
  EXPECT_EQ(options.skip_share, 0.1);
  EXPECT_EQ(options.skip_token, 0.2);
  EXPECT_EQ(options.unread_margin, 1.7);
  EXPECT_EQ(options.skipped_margin, 1.8);
  EXPECT_EQ(options.rounds, 5);
  EXPECT_FALSE(options.tail);
  EXPECT_EQ(options.dense_share, 0.7);
  EXPECT_EQ(options.head_share, 0.03);
  EXPECT_EQ(options.near_window, 0.2);
  EXPECT_EQ(options.far_window, 0.5);
  EXPECT_EQ(options.window_share, 0.004);
  EXPECT_EQ(options.dense_below, 77);
  const Options back = Resolved("--index clusters --bits auto --tail on", Policy::kTactic).tactic;
  EXPECT_EQ(back.index, IndexKind::kClusters);
  EXPECT_EQ(back.bits, 0);
  EXPECT_TRUE(back.tail);
}

TEST(AlgorithmArgs, AnErrorNamesThePolicyWhoseRangeItIs) {
  CLI::App app;
  AlgorithmArgs args;
  AddAlgorithmArgs(&app, &args);
  app.parse("--segment-size 20");
  llama::HookOptions options;
  EXPECT_TRUE(ResolveAlgorithm(args, Policy::kPaper, &options).ok());
  const Status status = ResolveAlgorithm(args, Policy::kTactic, &options);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "policy tactic: segment_size is 20; expected a number from 32 to 65536");
}

TEST(AlgorithmArgs, HelpShowsTheDefaultsOfBothPolicies) {
  CLI::App app;
  AlgorithmArgs args;
  AddAlgorithmArgs(&app, &args);
  const std::string help = app.help();
  for (const char* part : {"--cluster-size INT=32 (paper: 16)", "--recent INT=64 (paper: 128)",
                           "--target FLOAT=0.9 ", "--rounds INT=2 ", "=auto", "=clusters", "=on"}) {
    EXPECT_NE(help.find(part), std::string::npos) << part << " in: " << help;
  }
}

}  // namespace
}  // namespace tactic::app
