// `tactic eval` on short texts: dense attention is its own equal, policies have their figures, and
// wrong arguments are named.
#include "eval.h"

#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>

#include "defaults.h"
#include "exit_code.h"
#include "subprocess.h"

namespace tactic::app {
namespace {

using llama::Policy;
using nlohmann::json;

constexpr char kSelecting[] = "tactic:dense-below=256";

TEST(EvalPolicies, AreModesWithParametersForEveryTarget) {
  EvalArgs args;
  args.policies = {"stock", "tactic:bits=2", "paper", "dense", "paper"};
  args.targets = {0.9, 0.8, 0.9};
  std::vector<EvalPolicy> policies;
  ASSERT_TRUE(ResolveEvalPolicies(args, &policies).ok());
  ASSERT_EQ(policies.size(), 6U);
  EXPECT_EQ(policies[0].options.policy, Policy::kStock);
  EXPECT_EQ(policies[1].options.policy, Policy::kTactic);
  EXPECT_EQ(policies[1].name, "tactic:bits=2");
  EXPECT_EQ(policies[1].options.tactic.bits, 2);
  EXPECT_EQ(policies[1].options.tactic.target, 0.8);
  EXPECT_EQ(policies[2].options.tactic.target, 0.9);
  EXPECT_EQ(policies[3].options.policy, Policy::kPaper);
  EXPECT_EQ(policies[3].options.tactic.sinks, Options::For(Mode::kPaper).sinks);
  EXPECT_EQ(policies[5].options.policy, Policy::kDense);
}

TEST(EvalKl, DenseIsItsOwnEqual) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  const std::string policies = std::string("dense,stock,paper:dense-below=256,") + kSelecting;
  const Outcome outcome =
      RunTactic({"eval", "kl", "--depths", "1000,1500", "--tokens", "4", "--policies", policies,
                 "--cache-dir", folder.path(), "--json", "-"});
  ASSERT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  EXPECT_NE(outcome.err.find("KL mean"), std::string::npos) << outcome.err;
  const json records = json::parse(outcome.out);
  ASSERT_EQ(records.size(), 8U);
  for (size_t i = 0; i < records.size(); ++i) {
    const json& record = records[i];
    EXPECT_EQ(record["depth"], i < 4 ? 1000 : 1500);
    EXPECT_EQ(record["tokens"], 4);
    EXPECT_EQ(record["fallbacks"], 0);
    const double mean = record["kl_mean"], largest = record["kl_max"];
    EXPECT_GE(largest, mean);
    EXPECT_GE(mean, record["kl_standard_error"].get<double>() / 4);
    EXPECT_GT(record["perplexity"], 1);
    EXPECT_EQ(record["perplexity_dense"], records[i / 4 * 4]["perplexity_dense"]);
    if (record["policy"] == "dense") {
      EXPECT_EQ(largest, 0);
      EXPECT_EQ(record["same_top_share"], 1);
      EXPECT_EQ(record["perplexity"], record["perplexity_dense"]);
      EXPECT_TRUE(record["target"].is_null());
    } else {
      // Policy paper reads everything here: no segment is full yet.
      const bool reads_all = record["policy"] == "paper";
      EXPECT_GE(mean, reads_all ? 0 : 1e-9) << record["policy"];
      EXPECT_LT(mean, 1) << record["policy"];
    }
    if (record["policy"] == "tactic") {
      EXPECT_EQ(record["policy_given"], kSelecting);
      EXPECT_LT(record["rows_read_fraction"], 0.9);
      EXPECT_GE(record["p_hat_mean"], record["p_hat_min"]);
      EXPECT_EQ(record["target"], 0.9);
    }
  }
  EXPECT_EQ(folder.Files().size(), 1U) << "the text is read once";
}

TEST(EvalKl, SkipsTheStartOfTheText) {
  TACTIC_REQUIRE_MODEL();
  const auto perplexity = [](const std::string& skip) {
    const Outcome outcome =
        RunTactic({"eval", "kl", "--depths", "64", "--tokens", "2", "--policies", "stock", "--skip",
                   skip, "--no-cache", "--json", "-"});
    EXPECT_EQ(outcome.exit_code, kExitOk) << outcome.err;
    return outcome.exit_code == kExitOk
               ? json::parse(outcome.out)[0]["perplexity_dense"].get<double>()
               : 0;
  };
  EXPECT_NE(perplexity("0"), perplexity("1000"));
}

TEST(EvalRetrieval, DenseKeepsEveryAnswer) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  const std::string policies = std::string("dense,") + kSelecting;
  const Outcome outcome = RunTactic({"eval", "retrieval", "--depths", "1500", "--facts", "1",
                                     "--lines", "1", "--entries", "0", "--policies", policies,
                                     "--cache-dir", folder.path(), "--json", folder.path("r")});
  ASSERT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  EXPECT_NE(outcome.out.find("gained"), std::string::npos) << outcome.out;
  const json result = json::parse(ReadFile(folder.path("r")));
  ASSERT_EQ(result["records"].size(), 2U);
  const json& dense = result["records"][0];
  EXPECT_EQ(dense["depth"], 1500);
  EXPECT_EQ(dense["all"]["questions"], 2);
  EXPECT_EQ(dense["fact"]["questions"], 1);
  EXPECT_EQ(dense["entry"]["questions"], 0);
  EXPECT_EQ(dense["all"]["kl_max"], 0);
  EXPECT_EQ(dense["all"]["kept"], dense["all"]["dense_right"]);
  EXPECT_EQ(dense["all"]["gained"], 0);
  EXPECT_LT(result["records"][1]["bytes_read_fraction"], 1);
  ASSERT_EQ(result["questions"].size(), 2U);
  for (size_t i = 0; i < 2; ++i) {
    const json& question = result["questions"][i];
    EXPECT_EQ(question["decoded"], i == 1);
    EXPECT_EQ(question["answers"][0]["text"], question["dense"]["text"]);
    EXPECT_FALSE(question["dense"]["text"].get<std::string>().empty());
    const json& selected = question["answers"][1];
    EXPECT_EQ(selected["policy_given"], kSelecting);
    EXPECT_GT(selected["kl_mean"], 0);
    EXPECT_GE(selected["kl_max"], selected["kl_mean"]);
    EXPECT_TRUE(selected["p_hat_min"].is_number());
    // Measured only where the answer is another one.
    const bool same = selected["text"] == question["dense"]["text"];
    EXPECT_EQ(selected["mass_mean"].is_null(), same) << selected;
  }
}

void ExpectError(const std::vector<std::string>& arguments, int exit_code,
                 const std::vector<std::string>& parts) {
  for (const std::string kind : {"kl", "retrieval"}) {
    std::vector<std::string> all = {"eval", kind};
    all.insert(all.end(), arguments.begin(), arguments.end());
    const Outcome outcome = RunTactic(all);
    EXPECT_EQ(outcome.exit_code, exit_code) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    for (const std::string& part : parts) {
      EXPECT_NE(outcome.err.find(part), std::string::npos)
          << "no '" << part << "' in: " << outcome.err;
    }
  }
}

TEST(EvalBadInput, Policies) {
  ExpectError({"--policies", "best"}, kExitUsage, {"best", "stock", "dense", "paper", "tactic"});
  ExpectError({"--policies", "stock:bits=2"}, kExitUsage, {"stock:bits=2", "no parameters"});
  ExpectError({"--policies", "tactic:teeth=2"}, kExitUsage, {"tactic:teeth=2", "'teeth'", "bits"});
  ExpectError({"--policies", "tactic:rounds=99"}, kExitUsage, {"rounds is 99"});
}

TEST(EvalBadInput, TargetsAndDepths) {
  ExpectError({"--targets", "0.9,1.5"}, kExitUsage, {"target is 1.5"});
  ExpectError({"--targets", "0"}, kExitUsage, {"target is 0"});
  ExpectError({"--policies", "stock", "--targets", "7"}, kExitUsage, {"target is 7"});
  ExpectError({"--depths", "4k"}, kExitUsage, {"--depths"});
  ExpectError({"--depths", "0"}, kExitUsage, {"--depths"});
}

TEST(EvalBadInput, Files) {
  ExpectError({"-m", "/nowhere/x.gguf"}, kExitInput, {"model '/nowhere/x.gguf'"});
  ExpectError({"-f", "/nowhere/a.txt"}, kExitInput, {"--file", "'/nowhere/a.txt'"});
  // Before anything else that is wrong.
  ExpectError({"-m", "/nowhere/x.gguf", "--json", "/nowhere/x.json"}, kExitUsage,
              {"--json", "'/nowhere/x.json'"});
}

TEST(EvalBadInput, TooShort) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  std::ofstream(folder.path("short.txt")) << "A short text. It has two sentences.";
  ExpectError({"--depths", "3000", "-f", folder.path("short.txt")}, kExitUsage, {"text", "9"});
  ExpectError({"--depths", "3000", "--ctx", "2048"}, kExitUsage,
              {"--ctx is 2048", "--depths needs at least"});
}

TEST(EvalBadInput, NothingToEvaluate) {
  const Outcome kind = RunTactic({"eval"});
  EXPECT_EQ(kind.exit_code, kExitUsage);
  EXPECT_NE(kind.err.find("subcommand"), std::string::npos) << kind.err;
  const Outcome items =
      RunTactic({"eval", "retrieval", "--facts", "0", "--lines", "0", "--entries", "0"});
  EXPECT_EQ(items.exit_code, kExitUsage);
  EXPECT_NE(items.err.find("nothing to ask for"), std::string::npos) << items.err;
}

TEST(EvalInterrupt, LeavesNoResults) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  const Outcome outcome =
      RunTactic({"eval", "kl", "--depths", "4096", "--no-cache", "--json", folder.path("kl.json")},
                {.signal = SIGINT, .after_s = 2});
  EXPECT_EQ(outcome.exit_code, kExitSignal + SIGINT) << outcome.err;
  EXPECT_NE(outcome.err.find("interrupted"), std::string::npos) << outcome.err;
  EXPECT_TRUE(folder.Files().empty());
}

}  // namespace
}  // namespace tactic::app
