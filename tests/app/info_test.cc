// `tactic info` on the bundled model, whose shape is known.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "subprocess.h"

namespace tactic::app {
namespace {

TEST(Info, DescribesTheBundledModel) {
  TACTIC_REQUIRE_MODEL();
  if (std::getenv("TACTIC_MODEL") != nullptr) GTEST_SKIP() << "another model is the default";
  const Outcome outcome = RunTactic({"info", "--json", "-"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const nlohmann::json info = nlohmann::json::parse(outcome.out);
  const nlohmann::json& model = info["model"];
  EXPECT_EQ(model["architecture"], "llama");
  EXPECT_EQ(model["layers"], 30);
  EXPECT_EQ(model["q_heads"], 9);
  EXPECT_EQ(model["kv_heads"], 3);
  EXPECT_EQ(model["head_dim_k"], 64);
  EXPECT_EQ(model["context"], 8192);
  EXPECT_EQ(model["vocabulary"], 49152);
  EXPECT_EQ(model["rope_freq_base"], 100000);
  EXPECT_EQ(model["tactic_layers"], 30);
  EXPECT_TRUE(model["sliding_layers"].empty());
  EXPECT_EQ(info["kv_bytes_per_token"], 30 * 2 * 3 * 64 * 2);
  const nlohmann::json& index = info["index_bytes_per_token_estimate"];
  // 30 layers of 3 KV heads: a member's place and code, its share of a cluster.
  EXPECT_DOUBLE_EQ(index["tactic"], 30 * 3 * (2 + 25 + (64 + 64 + 20) / 32.0));
  EXPECT_DOUBLE_EQ(index["paper"], 30 * 3 * (2 + (2 * 64 + 4) / 16.0));
  EXPECT_FALSE(info["isa"].get<std::string>().empty());
  EXPECT_GT(info["threads"], 0);
}

}  // namespace
}  // namespace tactic::app
