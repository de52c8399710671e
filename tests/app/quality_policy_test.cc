// Specs of policies: every parameter of Options, and clear words about what is wrong.
#include "quality_policy.h"

#include <gtest/gtest.h>

namespace tactic::app {
namespace {

Options Parsed(const std::string& spec) {
  QualityPolicy policy;
  const Status status = ParseQualityPolicy(spec, &policy);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(policy.name, spec);
  return policy.options;
}

TEST(QualityPolicy, NamesAloneAreTheDefaultsOfTheMode) {
  for (const Mode mode : {Mode::kDense, Mode::kPaper, Mode::kTactic}) {
    const Options options = Parsed(ModeName(mode));
    EXPECT_EQ(options.mode, mode);
    EXPECT_EQ(OptionsJson(options), OptionsJson(Options::For(mode)));
  }
}

TEST(QualityPolicy, SetsEveryParameter) {
  const Options options = Parsed(
      "tactic:cluster-size=8:kmeans-iterations=3:segment-size=512:update-interval=100:seed=9:"
      "sinks=1:recent=2:index=pages:bits=4:bits-error=0.25:skip-share=0.5:skip-token=0.125:"
      "unread-margin=2:skipped-margin=3.5:rounds=5:tail=false:dense-share=0.75:head-share=0.03:"
      "near-window=0.2:far-window=0.7:window-share=0.01:dense-below=12");
  EXPECT_EQ(options.cluster_size, 8);
  EXPECT_EQ(options.kmeans_iterations, 3);
  EXPECT_EQ(options.segment_size, 512);
  EXPECT_EQ(options.update_interval, 100);
  EXPECT_EQ(options.seed, 9U);
  EXPECT_EQ(options.sinks, 1);
  EXPECT_EQ(options.recent, 2);
  EXPECT_EQ(options.index, IndexKind::kPages);
  EXPECT_EQ(options.bits, 4);
  EXPECT_EQ(options.bits_error, 0.25);
  EXPECT_EQ(options.skip_share, 0.5);
  EXPECT_EQ(options.skip_token, 0.125);
  EXPECT_EQ(options.unread_margin, 2);
  EXPECT_EQ(options.skipped_margin, 3.5);
  EXPECT_EQ(options.rounds, 5);
  EXPECT_FALSE(options.tail);
  EXPECT_EQ(options.dense_share, 0.75);
  EXPECT_EQ(options.head_share, 0.03);
  EXPECT_EQ(options.near_window, 0.2);
  EXPECT_EQ(options.far_window, 0.7);
  EXPECT_EQ(options.window_share, 0.01);
  EXPECT_EQ(options.dense_below, 12);
  // All that can be set, and no more: a new field of Options belongs here, too.
  EXPECT_EQ(OptionsJson(options).size(), 22U);
}

TEST(QualityPolicy, ChangesNothingElse) {
  Options expected = Options::For(Mode::kPaper);
  expected.sinks = 0;
  expected.recent = 0;
  EXPECT_EQ(OptionsJson(Parsed("paper:sinks=0:recent=0")), OptionsJson(expected));
}

TEST(QualityPolicy, SaysWhatIsWrong) {
  const auto expect_error = [](const std::string& spec, const std::vector<std::string>& parts) {
    QualityPolicy policy;
    const Status status = ParseQualityPolicy(spec, &policy);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << spec;
    for (const std::string& part : parts) {
      EXPECT_NE(status.message().find(part), std::string::npos)
          << spec << ": no '" << part << "' in: " << status.message();
    }
  };
  expect_error("", {"policy ''", "dense, paper or tactic"});
  expect_error("best", {"policy 'best'", "dense, paper or tactic"});
  expect_error("stock", {"dense, paper or tactic"});
  expect_error("paper:sink=1", {"policy 'paper:sink=1'", "'sink'", "sinks", "cluster-size"});
  expect_error("paper:sinks", {"'sinks'", "key=value"});
  expect_error("paper:", {"''", "key=value"});
  expect_error("paper:=3", {"no parameter ''"});
  for (const char* value : {"", "x", "1x", "1.5", "99999999999", " 1"}) {
    expect_error(std::string("paper:sinks=") + value,
                 {"sinks is '" + std::string(value) + "'", "whole number"});
  }
  expect_error("tactic:seed=-1", {"seed is '-1'"});
  expect_error("tactic:bits-error=high", {"bits-error is 'high'", "a number"});
  expect_error("tactic:tail=maybe", {"tail is 'maybe'", "true or false"});
  expect_error("tactic:index=tree", {"index is 'tree'", "clusters or pages"});
  expect_error("tactic:bits=5", {"policy 'tactic:bits=5'", "bits is 5", "2 to 4"});
  expect_error("tactic:skip-share=nan", {"skip_share"});
  expect_error("paper:recent=1:recent=2", {"recent is given twice"});
  expect_error("paper:target=0.9", {"--targets"});
}

}  // namespace
}  // namespace tactic::app
