// `tactic info` on the bundled model, whose shape is known.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "subprocess.h"
#include "tactic/sequence_index.h"

namespace tactic::app {
namespace {

// What an index of random keys takes for each token that its segments hold.
double IndexBytesPerToken(const LayerShape& shape, const Options& options) {
  const int64_t covered = 4 * int64_t{options.segment_size};
  const size_t row = static_cast<size_t>(shape.kv_heads) * shape.head_dim;
  std::vector<float> data(static_cast<size_t>(covered) * row);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (float& x : data) x = normal(random);
  const RowsView rows{reinterpret_cast<const uint8_t*>(data.data()), ElementType::kF32,
                      row * sizeof(float), shape.head_dim * sizeof(float)};
  std::vector<uint32_t> cells(static_cast<size_t>(covered + options.recent));
  std::iota(cells.begin(), cells.end(), 0U);  // the newest are not looked at
  SequenceIndex index(shape, options);
  index.Append(std::ssize(cells));
  const int units = index.PlanBuild();
  for (int unit = 0; unit < units; ++unit) index.BuildUnit(unit, rows, rows, cells);
  return static_cast<double>(index.MemoryBytes()) / static_cast<double>(covered);
}

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
  for (const Mode mode : {Mode::kTactic, Mode::kPaper}) {
    const double bytes = 30 * IndexBytesPerToken({9, 3, 64, 64}, Options::For(mode));
    EXPECT_NEAR(index[ModeName(mode)].get<double>(), bytes, 0.05 * bytes) << ModeName(mode);
  }
  EXPECT_FALSE(info["isa"].get<std::string>().empty());
  EXPECT_GT(info["threads"], 0);
}

}  // namespace
}  // namespace tactic::app
