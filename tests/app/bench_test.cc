// `tactic bench` at tiny depths: its records, and the saved prompt.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "subprocess.h"

namespace tactic::app {
namespace {

using nlohmann::json;

std::vector<std::string> TinyBench(const std::string& cache, const std::string& depths) {
  // Not measured: what is selected must not depend on how fast this machine is.
  return {"bench", "--depths",      depths, "--repeats",   "2",   "--tokens", "3", "--mass-tokens",
          "2",     "--dense-below", "1024", "--cache-dir", cache, "--json",   "-"};
}

TEST(Bench, SaysWhereTheTimeGoes) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  std::vector<std::string> arguments = TinyBench(folder.path(), "1200");
  arguments.emplace_back("--stages");
  const Outcome outcome = RunTactic(arguments);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  for (const json& record : json::parse(outcome.out)) {
    ASSERT_EQ(record.contains("stages"), record["policy"] != "stock");
    if (record["policy"] == "stock") continue;
    SCOPED_TRACE(record["policy"].get<std::string>());
    const json& stages = record["stages"];
    EXPECT_EQ(stages["steps"], 6);
    EXPECT_EQ(stages["layers"].size(), 30U);
    double all = 0, bytes = 0;
    for (const auto& [name, stage] : stages["stages"].items()) {
      all += stage["ms"].get<double>();
      bytes += stage["bytes"].get<double>();
      double of_layers = 0;
      for (const json& layer : stages["layers"]) of_layers += layer[name].get<double>();
      EXPECT_NEAR(of_layers, stage["ms"], 1e-9);
    }
    EXPECT_GT(stages["stages"]["rank"]["ms"], 0);
    EXPECT_LT(all, stages["step_ms"]) << "the rest of the model takes time, too";
    // All that a step reads, as the timed steps counted it: the same depths, so the same bytes but
    // for what the selections differ by.
    const double dense = record["kv_bytes"].get<double>();
    EXPECT_NEAR(bytes / dense, record["bytes_read_fraction"], .05) << bytes;
  }
}

TEST(BenchPrompt, WritesARecordPerLengthAndReader) {
  TACTIC_REQUIRE_MODEL();
  const Outcome outcome =
      RunTactic({"bench-prompt", "--lengths", "64,1100", "--repeats", "1", "--json", "-"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json records = json::parse(outcome.out);
  ASSERT_EQ(records.size(), 8U);
  std::set<std::pair<int, std::string>> seen;
  for (const json& record : records) {
    const auto reader = record["reader"].get<std::string>();
    seen.emplace(record["tokens"].get<int>(), reader);
    EXPECT_GT(record["milliseconds"]["median"], 0);
    EXPECT_GT(record["tokens_per_second"], 0);
    EXPECT_LE(record["speedup_vs_stock"], reader.starts_with("stock") ? 1 : 1e3);
    const bool indexes = !reader.starts_with("stock") && record["tokens"] == 1100;
    EXPECT_EQ(record["index_build_ms"] > 0, indexes) << reader;
  }
  EXPECT_EQ(seen.size(), 8U);
  const Outcome long_prompt = RunTactic({"bench-prompt", "--lengths", "10000000"});
  EXPECT_NE(long_prompt.exit_code, 0);
  EXPECT_NE(long_prompt.err.find("--lengths"), std::string::npos) << long_prompt.err;
}

TEST(Bench, WritesARecordPerDepthAndPolicy) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  const Outcome outcome = RunTactic(TinyBench(folder.path(), "512,1200"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json records = json::parse(outcome.out);
  ASSERT_EQ(records.size(), 8U);
  std::set<std::pair<int, std::string>> seen;
  for (const json& record : records) {
    seen.emplace(record["depth"].get<int>(), record["policy"].get<std::string>());
    const bool stock = record["policy"] == "stock";
    EXPECT_GT(record["ms_per_token"]["median"], 0);
    EXPECT_LE(record["ms_per_token"]["p10"], record["ms_per_token"]["p90"]);
    EXPECT_EQ(record["tokens_per_step"], 1);
    EXPECT_EQ(record["steps_timed"], 6);
    EXPECT_GT(record["rows_read_fraction"], 0);
    EXPECT_LE(record["rows_read_fraction"], 1);
    EXPECT_GT(record["bytes_read_fraction"], 0);
    EXPECT_GT(record["mass_reached_mean"], 0);
    EXPECT_LE(record["mass_reached_mean"], 1.0001);
    EXPECT_GE(record["mass_union_mean"].get<double>(),
              record["mass_reached_mean"].get<double>() - 1e-4);
    EXPECT_GE(record["target_reached_share"], 0);
    EXPECT_LE(record["target_reached_share_union"], 1);
    EXPECT_EQ(record["stock_fa_on_ms"].is_number(), stock);
    EXPECT_EQ(record["stock_fa_off_ms"].is_number(), stock);
    EXPECT_EQ(record["fill"], "real");
    EXPECT_EQ(record["repeats"], 2);
    EXPECT_EQ(record["fallbacks"], 0);
    for (const char* field :
         {"index_bytes", "index_build_ms", "threads", "model", "kv_type_k", "kv_type_v", "isa",
          "target", "speedup_vs_stock", "speedup_vs_dense", "p_hat_mean", "p_hat_min",
          "extended_share", "overclaimed_share", "cluster_size", "bits"}) {
      EXPECT_TRUE(record.contains(field)) << field;
    }
    EXPECT_NEAR(record["bytes_clusters_fraction"].get<double>() +
                    record["bytes_codes_fraction"].get<double>() +
                    record["bytes_rows_fraction"].get<double>(),
                record["bytes_read_fraction"], 1e-9);
    ASSERT_EQ(record["p_hat_mean"].is_number(), record["policy"] == "tactic");
    if (record["policy"] == "tactic") {
      EXPECT_GT(record["p_hat_min"], 0);
      EXPECT_LE(record["p_hat_min"], record["p_hat_mean"]);
      EXPECT_LE(record["p_hat_mean"], 1.0001);
      EXPECT_GE(record["extended_share"], 0);
      EXPECT_LE(record["extended_share"], 1);
      EXPECT_TRUE(record["overclaimed_share"].is_number());
      EXPECT_NE(outcome.err.find("tactic at 1200: p_hat"), std::string::npos) << outcome.err;
    }
  }
  EXPECT_EQ(seen.size(), 8U);
  // The table goes to stderr when stdout carries the JSON.
  EXPECT_NE(outcome.err.find("ms/token"), std::string::npos);
}

TEST(Bench, GivenParametersReplaceThoseOfEveryPolicy) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  std::vector<std::string> arguments = TinyBench(folder.path(), "300");
  arguments.insert(arguments.end(), {"--policies", "paper,tactic", "--recent", "32"});
  const Outcome outcome = RunTactic(arguments);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json records = json::parse(outcome.out);
  ASSERT_EQ(records.size(), 2U);
  for (const json& record : records) {
    const bool paper = record["policy"] == "paper";
    EXPECT_EQ(record["recent"], 32);
    EXPECT_EQ(record["sinks"], paper ? 16 : 4);
    EXPECT_EQ(record["cluster_size"], paper ? 16 : 32);
  }
}

TEST(Bench, ReadsATextOnlyOnce) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  const Outcome first = RunTactic(TinyBench(folder.path(), "768"));
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_NE(first.err.find("768 tokens, 0 of them from a saved state"), std::string::npos)
      << first.err;
  EXPECT_EQ(folder.Files().size(), 1U);
  // A smaller depth is a prefix of what was saved (and its context too small for all of it), a
  // larger one continues it.
  const Outcome smaller = RunTactic(TinyBench(folder.path(), "200"));
  ASSERT_EQ(smaller.exit_code, 0) << smaller.err;
  EXPECT_NE(smaller.err.find("200 tokens, 200 of them"), std::string::npos) << smaller.err;
  EXPECT_EQ(folder.Files().size(), 1U);
  const Outcome larger = RunTactic(TinyBench(folder.path(), "1024"));
  ASSERT_EQ(larger.exit_code, 0) << larger.err;
  EXPECT_NE(larger.err.find("1024 tokens, 768 of them"), std::string::npos) << larger.err;
  EXPECT_EQ(folder.Files().size(), 1U) << "the shorter state is part of the longer one";
}

TEST(Bench, DamagedStateIsReadAgain) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  ASSERT_EQ(RunTactic(TinyBench(folder.path(), "512")).exit_code, 0);
  ASSERT_EQ(folder.Files().size(), 1U);
  std::filesystem::resize_file(folder.path(folder.Files()[0]), 100000);
  const Outcome outcome = RunTactic(TinyBench(folder.path(), "512"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("read again"), std::string::npos) << outcome.err;
}

TEST(Bench, NoCacheLeavesNoFiles) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  std::vector<std::string> arguments = TinyBench(folder.path(), "512");
  arguments.push_back("--no-cache");
  ASSERT_EQ(RunTactic(arguments).exit_code, 0);
  EXPECT_TRUE(folder.Files().empty());
}

TEST(Bench, RandomFillReadsNothingAndMeasuresNoMass) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  std::vector<std::string> arguments = TinyBench(folder.path(), "2048");
  arguments.insert(arguments.end(), {"--fill", "random", "--policies", "stock,dense"});
  const Outcome outcome = RunTactic(arguments);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json records = json::parse(outcome.out);
  ASSERT_EQ(records.size(), 2U);
  for (const json& record : records) {
    EXPECT_EQ(record["fill"], "random");
    EXPECT_TRUE(record["mass_reached_mean"].is_null());
    EXPECT_TRUE(record["target_reached_share"].is_null());
  }
  EXPECT_NE(outcome.err.find("random"), std::string::npos);
  EXPECT_TRUE(folder.Files().empty());
}

TEST(Bench, SyntheticFillIsAsSparseAsAskedAtEveryDepth) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  std::vector<std::string> arguments = TinyBench(folder.path(), "1024,2048");
  arguments.insert(arguments.end(), {"--fill", "synthetic", "--fill-needed", "150", "--policies",
                                     "paper,tactic", "--threads", "1"});
  const Outcome outcome = RunTactic(arguments);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json records = json::parse(outcome.out);
  ASSERT_EQ(records.size(), 4U);
  for (const json& record : records) {
    SCOPED_TRACE(record["policy"].get<std::string>() + " at " + record["depth"].dump());
    EXPECT_EQ(record["fill"], "synthetic");
    const json& facts = record["synthetic"];
    const double asked = record["depth"] == 1024 ? 102.4 : 150;
    EXPECT_NEAR(facts["needed_asked"], asked, 1e-9);
    EXPECT_NEAR(facts["needed_mean"], asked, asked / 4);
    EXPECT_NEAR(facts["sink_mass_mean"], 0.2, 0.1);
    EXPECT_NEAR(facts["recent_mass_mean"], 0.2, 0.1);
    // 0.75 by design; a text this short has few topics that could differ.
    EXPECT_GT(facts["neighbour_correlation"], 0.4);
    EXPECT_LT(facts["neighbour_correlation"], 0.9);
    // What a policy reaches is its own affair, but it is measured, and near what was asked for.
    const bool tactic = record["policy"] == "tactic";
    EXPECT_GT(record["mass_reached_mean"], tactic ? 0.9 : 0.8);
    EXPECT_LE(record["mass_reached_mean"], 1.0001);
    EXPECT_GT(record["target_reached_share"], tactic ? 0.95 : 0.5);
  }
  EXPECT_NE(outcome.err.find("synthetic: 90 % of the mass are in"), std::string::npos);
  EXPECT_NE(outcome.err.find("taken as 102 at depth 1024"), std::string::npos) << outcome.err;
  EXPECT_TRUE(folder.Files().empty());
}

TEST(Bench, QuantisedValuesHaveNoStockWithoutFlashAttention) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  std::vector<std::string> arguments = TinyBench(folder.path(), "512");
  arguments.insert(arguments.end(), {"--kv-type", "q8_0"});
  const Outcome outcome = RunTactic(arguments);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  for (const json& record : json::parse(outcome.out)) {
    EXPECT_EQ(record["kv_type_v"], "q8_0");
    EXPECT_TRUE(record["stock_fa_off_ms"].is_null());
  }
}

}  // namespace
}  // namespace tactic::app
