// `tactic quality` on made-up traces: every number against a second computation, and that it
// depends on nothing that it should not depend on.
#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "exit_code.h"
#include "quality_reference.h"
#include "subprocess.h"

namespace tactic::app {
namespace {

using nlohmann::json;

constexpr int kDepth = 300;
constexpr int kSteps = 13;  // more than are computed together, and no multiple of that

// A segment is filled while the steps go on: 300 + 13 tokens, the 19 newest of which are recent.
constexpr char kPaper[] =
    "paper:cluster-size=8:segment-size=98:sinks=3:recent=19:dense-below=0:window-share=0.05";

Options PaperOptions(double target) {
  Options options = Options::For(Mode::kPaper);
  options.cluster_size = 8;
  options.segment_size = 98;
  options.sinks = 3;
  options.recent = 19;
  options.dense_below = 0;
  options.window_share = 0.05;
  options.target = target;
  return options;
}

Options DenseOptions(double target) {
  Options options = Options::For(Mode::kDense);
  options.target = target;
  return options;
}

class QualityTest : public testing::Test {
 protected:
  // Writes a trace and gives its path.
  std::string Make(const std::string& name, const MadeTrace& trace) {
    const Status status = trace.Write(folder_.path(name));
    EXPECT_TRUE(status.ok()) << status.message();
    return folder_.path(name);
  }
  // The records of a run that succeeds.
  json Records(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "quality");
    arguments.insert(arguments.end(), {"--json", "-"});
    const Outcome outcome = RunTactic(arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return outcome.exit_code == 0 ? json::parse(outcome.out) : json();
  }
  // Without what a clock says.
  static json Timeless(json records) {
    for (json& record : records) {
      record.erase("index_build_ms");
      for (const char* part : {"per_layer", "per_file"}) {
        for (json& one : record[part]) one.erase("index_build_ms");
      }
    }
    return records;
  }

  TemporaryFolder folder_;
};

void ExpectFields(const json& record, const Reference& reference, double target) {
  for (const auto& [name, value] : FieldsOf(reference, target)) {
    const double got = record.at(json::json_pointer("/" + name));
    // Own masses come from float kernels; all else is double, and the same output in float.
    const bool own = name.starts_with("mass_");
    EXPECT_NEAR(got, value, own ? 2e-5 : 1e-9 * std::max(1.0, std::fabs(value))) << name;
  }
}

TEST_F(QualityTest, EveryFieldAgainstAPlainComputation) {
  const MadeTrace trace(1, kDepth, kSteps);
  const std::string path = Make("a.safetensors", trace);
  const json records =
      Records({path, "--policies", std::string("dense,") + kPaper, "--targets", "0.9,0.6"});
  ASSERT_EQ(records.size(), 4U);
  std::vector<int> steps(kSteps);
  std::iota(steps.begin(), steps.end(), 0);
  for (const json& record : records) {
    SCOPED_TRACE(record["policy"].get<std::string>() + " " + record["target"].dump());
    const double target = record["target"];
    const bool dense = record["policy"] == "dense";
    const Options options = dense ? DenseOptions(target) : PaperOptions(target);
    Reference both;
    ASSERT_EQ(record["per_layer"].size(), 2U);
    for (size_t i = 0; i < 2; ++i) {
      const Reference layer = ReferenceOf(trace, i, options, steps);
      EXPECT_EQ(record["per_layer"][i]["layer"], trace.info.layers[i].layer);
      ExpectFields(record["per_layer"][i], layer, target);
      both.Append(layer);
    }
    ExpectFields(record, both, target);
    ASSERT_EQ(record["per_file"].size(), 1U);
    ExpectFields(record["per_file"][0], both, target);
    EXPECT_EQ(record["per_file"][0]["file"], path);
    EXPECT_EQ(record["per_file"][0]["layers"], json({2, 5}));

    const double reached = record["target_reached_share"];
    EXPECT_LE(record["target_reached_share_95"]["low"], reached);
    EXPECT_GE(record["target_reached_share_95"]["high"], reached);
    const json& bytes = record["bytes_read_fraction"];
    EXPECT_NEAR(bytes["total"].get<double>(),
                bytes["clusters"].get<double>() + bytes["codes"].get<double>() +
                    bytes["rows"].get<double>(),
                1e-12);
    for (const char* name : {"p_hat_mean", "p_hat_min", "p_hat_overclaims"}) {
      EXPECT_TRUE(record[name].is_null()) << name;
    }
    EXPECT_EQ(record["extended_share"], 0);
    if (dense) {
      EXPECT_EQ(reached, 1);
      EXPECT_EQ(record["bytes_read_fraction"]["total"], 1);
      EXPECT_EQ(record["index_bytes_fraction"], 0);
      EXPECT_LT(record["output_error_p99"], 1e-5);
    } else {
      // Otherwise the comparison says little.
      EXPECT_LT(record["tokens_union"], 0.9 * record["tokens_visible"].get<double>());
      EXPECT_LT(record["tokens"], record["tokens_union"]);
      EXPECT_GT(record["index_build_ms"], 0);
    }
  }
}

TEST_F(QualityTest, SomeStepsOfSomeLayers) {
  const MadeTrace trace(2, kDepth, kSteps);
  const std::string path = Make("a.safetensors", trace);
  const json records = Records({path, "--policies", kPaper, "--targets", "0.8", "--layers", "5",
                                "--steps", "12", "--every", "5"});
  ASSERT_EQ(records.size(), 1U);
  ASSERT_EQ(records[0]["per_layer"].size(), 1U);
  EXPECT_EQ(records[0]["per_layer"][0]["layer"], 5);
  ExpectFields(records[0], ReferenceOf(trace, 1, PaperOptions(0.8), {0, 5, 10}), 0.8);
}

TEST_F(QualityTest, DependsNeitherOnThreadsNorOnCompany) {
  const std::string path = Make("a.safetensors", MadeTrace(3, kDepth, kSteps));
  const std::string policies = std::string("tactic:dense-below=0,") + kPaper;
  const json all = Timeless(
      Records({path, "--policies", policies, "--targets", "0.6,0.8,0.9", "--threads", "1"}));
  for (const char* threads : {"2", "3", "0"}) {
    EXPECT_EQ(all, Timeless(Records({path, "--policies", policies, "--targets", "0.6,0.8,0.9",
                                     "--threads", threads})));
  }
  const json alone = Timeless(Records({path, "--policies", kPaper, "--targets", "0.8"}));
  ASSERT_EQ(all.size(), 6U);
  ASSERT_EQ(alone.size(), 1U);
  EXPECT_EQ(all[3], alone[0]);
}

TEST_F(QualityTest, FilesArePooled) {
  const std::string a = Make("a.safetensors", MadeTrace(4, kDepth, kSteps));
  const std::string b = Make("b.safetensors", MadeTrace(5, kDepth + 90, 4));
  const std::vector<std::string> rest = {"--policies", kPaper, "--targets", "0.8"};
  const auto run = [&](std::vector<std::string> files) {
    files.insert(files.end(), rest.begin(), rest.end());
    return Timeless(Records(files))[0];
  };
  const json timed = Records({a, b, "--policies", kPaper, "--targets", "0.8"})[0];
  EXPECT_DOUBLE_EQ(timed["index_build_ms"], (timed["per_file"][0]["index_build_ms"].get<double>() +
                                             timed["per_file"][1]["index_build_ms"].get<double>()) /
                                                2);
  const json both = run({a, b}), only_a = run({a}), only_b = run({b});
  ASSERT_EQ(both["per_file"].size(), 2U);
  EXPECT_EQ(both["per_file"][0], only_a["per_file"][0]);
  EXPECT_EQ(both["per_file"][1], only_b["per_file"][0]);
  Reference pooled;
  for (const auto& [seed, depth, steps] : {std::tuple{4U, kDepth, kSteps}, {5U, kDepth + 90, 4}}) {
    const MadeTrace trace(seed, depth, steps);
    std::vector<int> all(static_cast<size_t>(steps));
    std::iota(all.begin(), all.end(), 0);
    for (size_t layer = 0; layer < 2; ++layer) {
      pooled.Append(ReferenceOf(trace, layer, PaperOptions(0.8), all));
    }
  }
  ExpectFields(both, pooled, 0.8);
}

TEST_F(QualityTest, CsvHasTheSameNumbers) {
  const std::string a = Make("a.safetensors", MadeTrace(6, kDepth, 3));
  const std::string b = Make("b, \"c\".safetensors", MadeTrace(7, kDepth, 3));
  const std::string csv = folder_.path("out.csv");
  const json records = Records(
      {a, b, "--policies", std::string("dense,") + kPaper, "--targets", "0.8", "--csv", csv});
  std::vector<std::string> lines;
  std::istringstream stream(ReadFile(csv));
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  // A header; for each policy all, two layers, and the same for each file.
  ASSERT_EQ(lines.size(), 1U + 2 * 9);
  const auto cells = [](const std::string& line) {
    std::vector<std::string> row;
    std::istringstream cells_of(line);
    for (std::string cell; std::getline(cells_of, cell, ',');) row.push_back(cell);
    if (line.ends_with(',')) row.emplace_back();
    return row;
  };
  const std::vector<std::string> header = cells(lines[0]);
  const auto expect_row = [&](const std::string& line, const json& record,
                              const std::string& layer) {
    const std::vector<std::string> row = cells(line);
    ASSERT_EQ(row.size(), header.size());
    EXPECT_EQ(row[3], layer);
    for (size_t i = 4; i < row.size(); ++i) {
      std::string name = header[i];
      std::replace(name.begin(), name.end(), '.', '/');
      const json value = record.at(json::json_pointer("/" + name));
      if (value.is_null()) {
        EXPECT_EQ(row[i], "") << name;
      } else {
        EXPECT_EQ(std::stod(row[i]), value.get<double>()) << name;
      }
    }
  };
  expect_row(lines[1], records[0], "-1");
  expect_row(lines[2], records[0]["per_layer"][0], "2");
  expect_row(lines[3], records[0]["per_layer"][1], "5");
  expect_row(lines[4], records[0]["per_file"][0], "-1");
  expect_row(lines[10], records[1], "-1");
  EXPECT_NE(lines[7].find("b, \"\"c\"\".safetensors\","), std::string::npos) << lines[7];
}

TEST_F(QualityTest, TableHasADashWhereThereIsNothing) {
  const std::string path = Make("a.safetensors", MadeTrace(8, kDepth, 2));
  const Outcome outcome = RunTactic({"quality", path, "--policies", kPaper, "--targets", "0.9"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find(kPaper), std::string::npos);
  EXPECT_NE(outcome.out.find(" - "), std::string::npos) << "p_hat of mode paper";
  EXPECT_EQ(outcome.out.find("nan"), std::string::npos) << outcome.out;
  EXPECT_EQ(outcome.err, "");
}

TEST_F(QualityTest, ATargetOfOneIsAll) {
  const std::string path = Make("a.safetensors", MadeTrace(9, kDepth, 2));
  const json records =
      Records({path, "--policies", std::string("dense,") + kPaper, "--targets", "1"});
  for (const json& record : records) {
    EXPECT_EQ(record["tokens_over_optimal"], 1);
    EXPECT_EQ(record["target_reached_share"], 1);
  }
}

TEST_F(QualityTest, StopsWhenInterrupted) {
  // Far more than can be done by then.
  const std::string path = Make("a.safetensors", MadeTrace(10, 3000, 3000));
  const Outcome outcome = RunTactic(
      {"quality", path, "--json", folder_.path("out.json"), "--csv", folder_.path("out.csv")},
      {.signal = SIGINT, .after_s = 2});
  EXPECT_EQ(outcome.exit_code, 130) << outcome.err;
  EXPECT_NE(outcome.err.find("interrupted"), std::string::npos);
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(folder_.Files().size(), 1U);
}

TEST_F(QualityTest, BadInput) {
  const std::string path = Make("a.safetensors", MadeTrace(1, 40, 2));
  const std::string other = Make("b.safetensors", MadeTrace(2, 40, 2));
  std::ofstream(folder_.path("text")) << "This is a text, not a trace.";
  MadeTrace infinite(1, 40, 2);
  infinite.layers[0].q[3] = std::numeric_limits<float>::infinity();
  const std::string broken = Make("broken", infinite);
  const auto expect_error = [](std::vector<std::string> arguments, int exit_code,
                               const std::vector<std::string>& parts) {
    arguments.insert(arguments.begin(), "quality");
    const Outcome outcome = RunTactic(arguments);
    EXPECT_EQ(outcome.exit_code, exit_code) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    for (const std::string& part : parts) {
      EXPECT_NE(outcome.err.find(part), std::string::npos)
          << "no '" << part << "' in: " << outcome.err;
    }
  };
  expect_error({}, kExitUsage, {"FILE"});
  expect_error({"/nowhere/x"}, kExitInput, {"'/nowhere/x'", "No such file"});
  expect_error({folder_.path("text")}, kExitInput, {"text' is not a trace"});
  expect_error({path, path}, kExitUsage, {"more than once"});
  expect_error({path, "--layers", "3"}, kExitUsage, {"--layers", "3", "a.safetensors"});
  expect_error({path, "--layers", "x"}, kExitUsage, {"--layers is 'x'"});
  expect_error({path, "--targets", "0.9,1.5"}, kExitUsage, {"target is 1.5"});
  expect_error({path, "--targets", "0"}, kExitUsage, {"target is 0"});
  expect_error({path, "--targets", "nan"}, kExitUsage, {"target is nan"});
  expect_error({path, "--targets", "much"}, kExitUsage, {"--targets"});
  expect_error({path, "--policies", "dense,paper:sinks=x"}, kExitUsage,
               {"'paper:sinks=x'", "sinks is 'x'"});
  expect_error({path, "--steps", "-1"}, kExitUsage, {"--steps"});
  expect_error({path, "--every", "0"}, kExitUsage, {"--every"});
  expect_error({path, "--json", "/nowhere/x"}, kExitUsage, {"--json", "'/nowhere/x'"});
  expect_error({path, "--csv", "/nowhere/x"}, kExitUsage, {"--csv", "'/nowhere/x'"});
  expect_error({path, broken, "--json", folder_.path("out.json")}, kExitInput,
               {"broken', layer 2", "not all finite"});
  EXPECT_EQ(folder_.Files().size(), 4U) << "results of a failed run";
}

}  // namespace
}  // namespace tactic::app
