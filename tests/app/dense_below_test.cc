#include "dense_below.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "arguments.h"
#include "subprocess.h"

namespace tactic::app {
namespace {

using nlohmann::json;

constexpr char kFile[] = "dense_below.json";

CalibrationRequest Request(Mode mode = Mode::kTactic) {
  return {{9, 3, 64, 64}, Options::For(mode), 2};
}

// Finds `tokens` and counts how often it was asked.
CalibrationCache::Measure Counting(int64_t tokens, int* calls) {
  return [=](const CalibrationRequest&, Calibration* found) {
    ++*calls;
    *found = {tokens, true, {{512, 1e-3, 2e-3}, {1024, 2e-3, 2e-3}}};
    return Status::Ok();
  };
}

TEST(CalibrationCache, MeasuresOnceForEachKey) {
  const TemporaryFolder folder;
  int calls = 0;
  const CalibrationCache cache(folder.path("new"), Counting(1500, &calls));
  EXPECT_EQ(cache.Tokens(Request()), 1500);
  EXPECT_EQ(cache.Tokens(Request()), 1500);
  EXPECT_EQ(calls, 1);
  const std::function<void(CalibrationRequest*)> changes[] = {
      [](CalibrationRequest* r) { r->threads = 3; },
      [](CalibrationRequest* r) { r->shape = {8, 2, 64, 64}; },
      [](CalibrationRequest* r) { r->key_type = ElementType::kF32; },
      [](CalibrationRequest* r) { r->value_type = ElementType::kQ8_0; },
      [](CalibrationRequest* r) { r->options.target = 0.8; },
      [](CalibrationRequest* r) { r->options.bits = 2; },
      [](CalibrationRequest* r) { r->options.mode = Mode::kPaper; },
  };
  for (const auto& change : changes) {
    CalibrationRequest other = Request();
    change(&other);
    const int before = calls;
    EXPECT_EQ(cache.Tokens(other), 1500);
    EXPECT_EQ(cache.Tokens(other), 1500);
    EXPECT_EQ(calls, before + 1) << CalibrationKey(other);
  }
  CalibrationRequest same = Request();
  same.options.dense_below = 7;  // what is asked for is no part of the question
  EXPECT_EQ(cache.Tokens(same), 1500);
  EXPECT_EQ(calls, 8);
  // Another program finds all of it.
  int others = 0;
  EXPECT_EQ(CalibrationCache(folder.path("new"), Counting(1, &others)).Tokens(same), 1500);
  EXPECT_EQ(others, 0);
  EXPECT_EQ(folder.Files(), std::vector<std::string>{kFile}) << "no temporary file is left";
}

TEST(CalibrationCache, TheKeySaysWhatItIsFor) {
  const json key = CalibrationKey(Request());
  for (const char* field :
       {"version", "cpu", "isa", "threads", "shape", "key_type", "value_type", "mode", "options"}) {
    EXPECT_TRUE(key.contains(field)) << field;
  }
  EXPECT_FALSE(key["options"].contains("dense-below"));
  EXPECT_EQ(key["options"]["target"], 0.9);
}

TEST(CalibrationCache, DamagedFilesAreMeasuredAgainAndReplaced) {
  for (const std::string text :
       {"", "{", "7", "{\"a\": 1}", "[1, null, {}, {\"key\": 3, \"tokens\": 5}]"}) {
    const TemporaryFolder folder;
    std::ofstream(folder.path(kFile)) << text;
    int calls = 0;
    const CalibrationCache cache(folder.path(), Counting(99, &calls));
    EXPECT_EQ(cache.Tokens(Request()), 99) << text;
    EXPECT_EQ(cache.Tokens(Request()), 99) << text;
    EXPECT_EQ(calls, 1) << text;
    EXPECT_TRUE(json::parse(ReadFile(folder.path(kFile))).is_array());
  }
  const TemporaryFolder folder;
  for (const json& tokens : {json(-1), json(1e30), json("many"), json(), json(int64_t{1} << 40)}) {
    std::ofstream(folder.path(kFile))
        << json::array({{{"key", CalibrationKey(Request())}, {"tokens", tokens}}});
    int calls = 0;
    EXPECT_EQ(CalibrationCache(folder.path(), Counting(99, &calls)).Tokens(Request()), 99);
    EXPECT_EQ(calls, 1) << tokens;
    EXPECT_EQ(json::parse(ReadFile(folder.path(kFile))).size(), 1U) << "the bad one is replaced";
  }
}

TEST(CalibrationCache, AFolderThatCannotBeWrittenCostsTheNextRunASecond) {
  const TemporaryFolder folder;
  std::ofstream(folder.path("file")) << "not a folder";
  for (const std::string& path : {folder.path("file"), std::string("/proc/nowhere")}) {
    int calls = 0;
    const CalibrationCache cache(path, Counting(99, &calls));
    EXPECT_EQ(cache.Tokens(Request()), 99);
    EXPECT_EQ(cache.Tokens(Request()), 99);
    EXPECT_EQ(calls, 2);
  }
  EXPECT_EQ(ReadFile(folder.path("file")), "not a folder");
}

TEST(CalibrationCache, WithoutAFolderNothingIsKept) {
  int calls = 0;
  const CalibrationCache cache("", Counting(99, &calls));
  EXPECT_EQ(cache.Tokens(Request()), 99);
  EXPECT_EQ(cache.Tokens(Request()), 99);
  EXPECT_EQ(calls, 2);
  EXPECT_FALSE(std::filesystem::exists(kFile));
}

TEST(CalibrationCache, WhatCannotBeMeasuredIsLeftAsItWas) {
  const TemporaryFolder folder;
  const CalibrationCache cache(folder.path(), [](const CalibrationRequest&, Calibration*) {
    return Status::ResourceExhausted("no memory");
  });
  EXPECT_FALSE(cache.Tokens(Request()));
  EXPECT_TRUE(folder.Files().empty());
}

TEST(DenseBelowArgument, IsANumberOrAuto) {
  const auto parse = [](const std::string& line, AlgorithmArgs* args) {
    CLI::App app;
    AddAlgorithmArgs(&app, args);
    app.parse(line);
    llama::HookOptions options;
    EXPECT_TRUE(ResolveAlgorithm(*args, llama::Policy::kTactic, &options).ok());
    return options.tactic.dense_below;
  };
  AlgorithmArgs none, automatic, number, bad;
  EXPECT_EQ(parse("", &none), Options().dense_below);
  EXPECT_FALSE(none.dense_below_given);
  EXPECT_EQ(parse("--dense-below auto", &automatic), Options().dense_below);
  EXPECT_FALSE(automatic.dense_below_given);
  EXPECT_EQ(parse("--dense-below 77", &number), 77);
  EXPECT_TRUE(number.dense_below_given);
  for (const char* value : {"7k", "never", "1.5", "99999999999", "''"}) {
    EXPECT_THROW(parse(std::string("--dense-below ") + value, &bad), CLI::ParseError) << value;
  }
}

// The whole way once: measured at the first run, taken from the file by the second.
TEST(DenseBelow, IsKeptBetweenRuns) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  const auto run = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {
        "bench", "--depths",  "1500", "--fill",   "random", "--policies",  "tactic",     "--json",
        "-",     "--repeats", "1",    "--tokens", "1",      "--cache-dir", folder.path()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = RunTactic(arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    const bool measured = outcome.err.find("reads densely below") != std::string::npos;
    return std::pair(json::parse(outcome.out)[0]["dense_below"].get<int>(), measured);
  };
  EXPECT_EQ(run({"--dense-below", "1234"}), std::pair(1234, false));
  EXPECT_TRUE(folder.Files().empty());
  const auto [tokens, measured] = run({});
  EXPECT_TRUE(measured);
  EXPECT_GE(tokens, kShortestCalibrated);
  EXPECT_LE(tokens, 2 * kLongestCalibrated);
  EXPECT_EQ(folder.Files(), std::vector<std::string>{kFile});
  EXPECT_EQ(run({}), std::pair(tokens, false));
}

}  // namespace
}  // namespace tactic::app
