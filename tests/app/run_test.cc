// `tactic run` on a short prompt.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "subprocess.h"

namespace tactic::app {
namespace {

using nlohmann::json;

TEST(Run, EveryPolicyAnswersAndReports) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  for (const std::string policy : {"stock", "dense", "paper", "tactic"}) {
    const std::string path = folder.path(policy + ".json");
    const Outcome outcome = RunTactic({"run", "-p", "What is the capital of France?", "-n", "24",
                                       "--policy", policy, "--json", path});
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_GT(outcome.out.size(), 1U);
    EXPECT_NE(outcome.err.find("tok/s"), std::string::npos);
    const json result = json::parse(ReadFile(path));
    EXPECT_EQ(result["policy"], policy);
    EXPECT_EQ(result["text"].get<std::string>() + "\n", outcome.out);
    EXPECT_GT(result["generated_tokens"], 0);
    EXPECT_GT(result["prompt_tokens"], 5);
    EXPECT_GT(result["tokens_per_s"], 0);
    EXPECT_GT(result["ms_per_token"]["median"], 0);
    EXPECT_GT(result["rows_read_fraction"], 0);
    EXPECT_LE(result["rows_read_fraction"], 1);
    EXPECT_EQ(result["fallbacks"], 0);
  }
}

TEST(Run, TacticIsTheDefaultAndSaysWhatItBelieves) {
  TACTIC_REQUIRE_MODEL();
  const Outcome outcome = RunTactic(
      {"run", "-p", "Hello", "-n", "8", "--measure-every", "0", "--bits", "3", "--json", "-"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json result = json::parse(outcome.out);
  EXPECT_EQ(result["policy"], "tactic");
  EXPECT_EQ(result["bits"], 3);
  EXPECT_NE(outcome.err.find("[tactic]"), std::string::npos);
  EXPECT_TRUE(result["overclaimed_share"].is_null()) << "no mass was measured";
  // A short prompt is read densely.
  EXPECT_EQ(result["p_hat_mean"], 1);
  EXPECT_EQ(result["p_hat_min"], 1);
  EXPECT_EQ(result["extended_share"], 0);
  EXPECT_NE(outcome.err.find("p_hat"), std::string::npos);
}

TEST(Run, ReadsThePromptAsAsked) {
  TACTIC_REQUIRE_MODEL();
  for (const std::string who : {"", "ours", "stock"}) {
    std::vector<std::string> arguments = {"run", "-p", "Hello", "-n", "4", "--json", "-"};
    if (!who.empty()) arguments.insert(arguments.end(), {"--prompt-attention", who});
    const Outcome outcome = RunTactic(arguments);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(json::parse(outcome.out)["prompt_attention"], who.empty() ? "ours" : who);
  }
  const Outcome outcome = RunTactic({"run", "-p", "Hello", "--prompt-attention", "theirs"});
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_NE(outcome.err.find("theirs"), std::string::npos);
}

TEST(Run, IsDeterministic) {
  TACTIC_REQUIRE_MODEL();
  for (const std::string temperature : {"0", "0.8"}) {
    const std::vector<std::string> arguments = {
        "run", "-p", "Tell me about whales.", "-n", "16", "--temp", temperature, "--seed", "7"};
    const Outcome first = RunTactic(arguments), second = RunTactic(arguments);
    ASSERT_EQ(first.exit_code, 0) << first.err;
    EXPECT_EQ(first.out, second.out);
  }
}

TEST(Run, JsonToStdoutIsAlone) {
  TACTIC_REQUIRE_MODEL();
  const Outcome outcome = RunTactic({"run", "-p", "Hello", "-n", "4", "--json", "-"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(json::parse(outcome.out)["command"], "run");
}

TEST(Run, ReadsStdinAndAsksAfterwards) {
  TACTIC_REQUIRE_MODEL();
  const Outcome outcome =
      RunTactic({"run", "-f", "-", "-p", "What is his name?", "-n", "8", "--json", "-"},
                {.input = "Call me Ishmael. Some years ago I went to sea."});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_GT(json::parse(outcome.out)["prompt_tokens"], 20);
}

TEST(Run, RawSendsNoTemplate) {
  TACTIC_REQUIRE_MODEL();
  const Outcome raw =
      RunTactic({"run", "--raw", "-p", "Once upon a time", "-n", "4", "--json", "-"});
  ASSERT_EQ(raw.exit_code, 0) << raw.err;
  EXPECT_EQ(json::parse(raw.out)["prompt_tokens"], 4);
}

TEST(Run, QuantisedCache) {
  TACTIC_REQUIRE_MODEL();
  const Outcome outcome = RunTactic(
      {"run", "-p", "Hello", "-n", "4", "--kv-type", "q8_0", "--kv-type-v", "f16", "--json", "-"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
}

TEST(Run, StopsWhenTheContextIsFull) {
  TACTIC_REQUIRE_MODEL();
  std::string prompt = "the";
  for (int i = 1; i < 240; ++i) prompt += " the";  // one token each
  const Outcome outcome = RunTactic({"run", "--raw", "-p", prompt, "-n", "600", "--ctx", "256",
                                     "--json", "-", "--policy", "stock"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json result = json::parse(outcome.out);
  EXPECT_EQ(result["prompt_tokens"], 240);
  EXPECT_EQ(result["end"], "context full");
  // The last token needs no place: it is not decoded any more.
  EXPECT_EQ(result["generated_tokens"], 17);
}

}  // namespace
}  // namespace tactic::app
