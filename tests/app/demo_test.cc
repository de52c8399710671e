// `tactic demo` on a short piece of the bundled novel.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "defaults.h"
#include "subprocess.h"

namespace tactic::app {
namespace {

using nlohmann::json;

TEST(Demo, AsksEveryPolicyTheSame) {
  TACTIC_REQUIRE_MODEL();
  if (!std::filesystem::exists(FindProjectFile(kDefaultAdapter))) GTEST_SKIP() << "no adapter";
  const TemporaryFolder folder;
  const Outcome outcome =
      RunTactic({"demo", "--ctx", "1024", "--dense-below", "256", "--repeats", "1", "--cache-dir",
                 folder.path(), "--json", folder.path("demo.json")});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("ms/token"), std::string::npos);
  EXPECT_NE(outcome.out.find("tactic bench"), std::string::npos);
  EXPECT_NE(outcome.out.find("tactic: p_hat"), std::string::npos);
  const json result = json::parse(ReadFile(folder.path("demo.json")));
  ASSERT_EQ(result["questions"].size(), 3U);
  for (const json& question : result["questions"]) {
    EXPECT_NE(question["sentence"].get<std::string>().find(question["value"].get<std::string>()),
              std::string::npos);
    EXPECT_GE(question["depth"], 0);
    EXPECT_LE(question["depth"], 1);
    for (const char* policy : {"stock", "dense", "paper", "tactic"}) {
      EXPECT_FALSE(question["answers"][policy]["text"].get<std::string>().empty());
    }
  }
  ASSERT_EQ(result["policies"].size(), 4U);
  for (const json& policy : result["policies"]) {
    EXPECT_GT(policy["ms_per_token"]["median"], 0);
    EXPECT_GT(policy["rows_read_fraction"], 0);
    EXPECT_TRUE(policy["mass_reached_mean"].is_number());
    EXPECT_TRUE(policy["target_reached_share"].is_number());
    EXPECT_EQ(policy["p_hat_mean"].is_number(), policy["policy"] == "tactic");
  }
  // The adapter answers such questions without fail, and dense attention is as exact as stock.
  EXPECT_EQ(result["policies"][0]["right"], 3);
  EXPECT_EQ(result["policies"][1]["right"], 3);
}

}  // namespace
}  // namespace tactic::app
