// `tactic trace` on the bundled model and on one with sliding windows.
#include <gtest/gtest.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "defaults.h"
#include "exit_code.h"
#include "model.h"
#include "state_blob.h"
#include "subprocess.h"
#include "text.h"
#include "tiny_gemma.h"
#include "tiny_model.h"
#include "trace_file.h"

namespace tactic::app {
namespace {

constexpr int kDepth = 600;
constexpr int kSteps = 3;

using Arguments = std::vector<std::string>;

Arguments With(Arguments arguments, const Arguments& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

Arguments SmallRun(const TemporaryFolder& folder, const std::string& output) {
  return {"trace", "--depth", std::to_string(kDepth), "--steps",           std::to_string(kSteps),
          "-o",    output,    "--cache-dir",          folder.path("cache")};
}

std::unique_ptr<TraceFile> OpenTrace(const std::string& path) {
  std::unique_ptr<TraceFile> trace;
  const Status status = TraceFile::Open(path, &trace);
  EXPECT_TRUE(status.ok()) << status.message();
  return trace;
}

std::vector<int> LayersOf(const TraceFile& trace) {
  std::vector<int> layers;
  for (const TraceLayer& layer : trace.info().layers) layers.push_back(layer.layer);
  return layers;
}

// Row i of all KV heads as it lies in a cache.
std::string Row(const RowsView& rows, const LayerShape& shape, int dim, int64_t i) {
  std::string row;
  const size_t bytes = RowBytes(rows.type, static_cast<size_t>(dim));
  for (int head = 0; head < shape.kv_heads; ++head) {
    const uint8_t* data = rows.Head(head) + static_cast<size_t>(i) * rows.row_stride;
    row.append(reinterpret_cast<const char*>(data), bytes);
  }
  return row;
}

std::vector<llama_token> TokensOf(const std::string& text) {
  std::unique_ptr<Model> model;
  EXPECT_TRUE(Model::Load({DefaultModelPath(), "", true}, &model).ok());
  std::vector<llama_token> tokens;
  EXPECT_TRUE(model->Tokenize(text, true, false, &tokens).ok());
  return tokens;
}

TEST(Trace, HoldsTheTextAndTheCacheOfTheRun) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  const Outcome outcome = RunTactic(
      With(SmallRun(folder, folder.path("a")), {"--layers", "16,0,15-16", "--json", "-"}));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("3 layers, 600 tokens read and 3 decoded"), std::string::npos)
      << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["command"], "trace");
  EXPECT_EQ(json["depth"], kDepth);
  EXPECT_EQ(json["layers"], nlohmann::json({0, 15, 16}));

  const auto trace = OpenTrace(folder.path("a"));
  ASSERT_NE(trace, nullptr);
  EXPECT_EQ(LayersOf(*trace), (std::vector<int>{0, 15, 16}));
  EXPECT_EQ(trace->info().depth, kDepth);
  EXPECT_EQ(trace->info().steps, kSteps);
  EXPECT_EQ(trace->info().text, "moby_dick.txt");
  EXPECT_GT(trace->info().rope_freq_base, 0);
  EXPECT_FALSE(trace->info().generated);

  std::string book;
  ASSERT_TRUE(ReadText(FindProjectFile(kDefaultBook), "book", &book).ok());
  const std::vector<llama_token> tokens = TokensOf(book);
  EXPECT_EQ(std::vector<llama_token>(trace->token_ids().begin(), trace->token_ids().end()),
            std::vector<llama_token>(tokens.begin(), tokens.begin() + kDepth + kSteps + 1));

  // The state that was saved before the steps holds the same keys and values.
  std::vector<std::string> files = folder.Files();
  std::erase(files, "a");
  ASSERT_EQ(files.size(), 1U);
  const std::string saved = ReadFile(folder.path("cache/" + files[0]));
  const size_t header = 12 + kDepth * sizeof(llama_token);
  const std::vector<uint8_t> blob(saved.begin() + static_cast<std::ptrdiff_t>(header), saved.end());
  std::vector<BlobCache> caches;
  ASSERT_TRUE(ParseStateBlob(blob, &caches).ok());
  ASSERT_EQ(caches.size(), 1U);
  for (size_t index = 0; index < trace->info().layers.size(); ++index) {
    const TraceLayer& layer = trace->info().layers[index];
    const LayerShape& shape = layer.shape;
    for (const bool key : {true, false}) {
      const BlobTensor& tensor =
          (key ? caches[0].keys : caches[0].values)[static_cast<size_t>(layer.layer)];
      const RowsView rows = key ? trace->Keys(index) : trace->Values(index);
      for (int i = 0; i < kDepth; ++i) {
        const auto* at = reinterpret_cast<const char*>(blob.data()) + tensor.data +
                         static_cast<size_t>(i) * tensor.row_bytes;
        ASSERT_EQ(Row(rows, shape, key ? shape.head_dim : shape.value_dim, i),
                  std::string(at, tensor.row_bytes))
            << "layer " << layer.layer << " position " << i;
      }
    }
  }
}

TEST(Trace, ReadsATextOnlyOnce) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  const Outcome first = RunTactic(With(SmallRun(folder, folder.path("a")), {"--layers", "3"}));
  ASSERT_EQ(first.exit_code, 0) << first.err;
  const Outcome second = RunTactic(With(SmallRun(folder, folder.path("b")), {"--layers", "3"}));
  ASSERT_EQ(second.exit_code, 0) << second.err;
  EXPECT_NE(second.err.find("600 tokens, 600 of them from a saved state"), std::string::npos)
      << second.err;
  EXPECT_TRUE(ReadFile(folder.path("a")) == ReadFile(folder.path("b")));
  EXPECT_EQ(folder.Files().size(), 3U);
}

TEST(Trace, SkipsTheStartOfAText) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  const std::string text =
      "It was the best of times, it was the worst of times, it was the age of wisdom, it was the "
      "age of foolishness, it was the epoch of belief, it was the epoch of incredulity.";
  std::ofstream(folder.path("text")) << text;
  const Outcome outcome =
      RunTactic({"trace", "-f", folder.path("text"), "--skip", "10", "--steps", "5", "-o",
                 folder.path("a"), "--no-cache", "--layers", "0", "--kv-type", "bf16"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const std::vector<llama_token> tokens = TokensOf(text);
  const auto trace = OpenTrace(folder.path("a"));
  ASSERT_NE(trace, nullptr);
  EXPECT_EQ(trace->info().skip, 10);
  EXPECT_EQ(trace->info().depth, std::ssize(tokens) - 10 - 5 - 1) << "all of the text";
  EXPECT_EQ(trace->info().layers[0].key_type, ElementType::kBF16);
  EXPECT_EQ(std::vector<llama_token>(trace->token_ids().begin(), trace->token_ids().end()),
            std::vector<llama_token>(tokens.begin() + 10, tokens.end()));
}

TEST(Trace, GeneratesWhatRunSays) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  std::ofstream(folder.path("text")) << "<|im_start|>user\nWhat is the capital of France?"
                                        "<|im_end|>\n<|im_start|>assistant\n";
  const Outcome traced = RunTactic({"trace", "--generate", "-f", folder.path("text"), "--steps",
                                    "64", "-o", folder.path("a"), "--no-cache", "--layers", "0"});
  ASSERT_EQ(traced.exit_code, 0) << traced.err;
  const Outcome run = RunTactic(
      {"run", "--raw", "-f", folder.path("text"), "--temp", "0", "-n", "64", "--policy", "stock"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto trace = OpenTrace(folder.path("a"));
  ASSERT_NE(trace, nullptr);
  EXPECT_TRUE(trace->info().generated);
  EXPECT_LT(trace->info().steps, 64) << "a short answer ends by itself";
  EXPECT_NE(traced.err.find("the answer ends after"), std::string::npos) << traced.err;
  std::unique_ptr<Model> model;
  ASSERT_TRUE(Model::Load({DefaultModelPath(), "", true}, &model).ok());
  std::string said;
  for (const int32_t token : trace->token_ids().subspan(static_cast<size_t>(trace->info().depth))) {
    said += model->Piece(token);
  }
  EXPECT_EQ(said + "\n", run.out);
}

TEST(Trace, LeavesSlidingLayersOut) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  WriteTinyGemma(DefaultModelPath(), folder.path("gemma"));
  const auto run = [&](const std::string& output, const Arguments& more) {
    return RunTactic(With({"trace", "-m", folder.path("gemma"), "--no-cache", "--steps", "3", "-o",
                           folder.path(output)},
                          more));
  };
  const Outcome outcome = run("a", {"--depth", "600"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("layers 0, 2 slide over a window"), std::string::npos) << outcome.err;
  const auto trace = OpenTrace(folder.path("a"));
  ASSERT_NE(trace, nullptr);
  EXPECT_EQ(LayersOf(*trace), (std::vector<int>{1, 3}));
  EXPECT_EQ(trace->info().sliding_layers, (std::vector<int>{0, 2}));
  EXPECT_EQ(trace->info().layers[0].softcap, kTinyGemmaSoftcap);

  const Outcome sliding = run("b", {"--depth", "600", "--layers", "0"});
  EXPECT_EQ(sliding.exit_code, kExitInput);
  EXPECT_NE(sliding.err.find("no layer of --layers 0 sees the whole sequence"), std::string::npos)
      << sliding.err;
  // Within the window they are like the others.
  const Outcome shallow = run("c", {"--depth", "50"});
  ASSERT_EQ(shallow.exit_code, 0) << shallow.err;
  EXPECT_EQ(OpenTrace(folder.path("c"))->info().layers.size(), 4U);
}

TEST(Trace, InterruptedLeavesNoFile) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  const Outcome outcome = RunTactic(
      {"trace", "--depth", "32768", "--cache-dir", folder.path("cache"), "-o", folder.path("a")},
      {.signal = SIGINT, .after_s = 2});
  EXPECT_EQ(outcome.exit_code, 130) << outcome.err;
  EXPECT_NE(outcome.err.find("interrupted"), std::string::npos);
  EXPECT_TRUE(folder.Files().empty());
}

void ExpectError(const Arguments& arguments, int exit_code, const std::vector<std::string>& parts) {
  const Outcome outcome = RunTactic(With({"trace"}, arguments));
  EXPECT_EQ(outcome.exit_code, exit_code) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  for (const std::string& part : parts) {
    EXPECT_NE(outcome.err.find(part), std::string::npos)
        << "no '" << part << "' in: " << outcome.err;
  }
}

TEST(TraceBadInput, OutputIsCheckedFirst) {
  ExpectError({}, kExitUsage, {"--output is required"});
  ExpectError({"-m", "/nowhere/x.gguf", "-o", "/nowhere/a"}, kExitUsage,
              {"--output: cannot write '/nowhere/a'", "No such file"});
  ExpectError({"-o", "/tmp"}, kExitUsage, {"--output", "directory"});
  ExpectError({"-o", "/dev/null"}, kExitUsage, {"--output: '/dev/null' is not a regular file"});
}

TEST(TraceBadInput, Numbers) {
  const TemporaryFolder folder;
  for (const std::string option : {"--steps=0", "--steps=x", "--depth=-1", "--skip=-1"}) {
    ExpectError({"-o", folder.path("a"), option}, kExitUsage, {option.substr(0, 6)});
  }
}

TEST(TraceBadInput, BeyondTheText) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  std::ofstream(folder.path("short")) << "A short text.";
  const Arguments shared = {"-o", folder.path("a"), "-f", folder.path("short"), "--no-cache"};
  ExpectError(With(shared, {"--depth", "2", "--steps", "10"}), kExitUsage,
              {"--depth and --steps ask for 13 tokens", "--file has 4 behind --skip 0"});
  ExpectError(With(shared, {"--steps", "10"}), kExitUsage, {"--file has 4"});
  ExpectError(With(shared, {"--steps", "1", "--skip", "100"}), kExitUsage,
              {"--file has 0 behind --skip 100"});
  ExpectError({"-o", folder.path("a"), "-f", "/nowhere/t"}, kExitInput, {"--file", "'/nowhere/t'"});
  EXPECT_EQ(folder.Files().size(), 1U);
}

TEST(TraceBadInput, DepthBeyondContext) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  ExpectError({"-o", folder.path("a"), "--depth", "600", "--ctx", "512"}, kExitUsage,
              {"--ctx is 512", "at least 624"});
}

TEST(TraceBadInput, Layers) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  for (const std::string layers : {"0,x", "5-3", "-1", "30", ""}) {
    ExpectError({"-o", folder.path("a"), "--depth", "100", "--layers=" + layers}, kExitUsage,
                {"--layers"});
  }
}

TEST(TraceBadInput, CacheThatCannotBeTraced) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  for (const std::string type : {"f32", "q8_0", "q4_0"}) {
    ExpectError({"-o", folder.path("a"), "--depth", "100", "--kv-type", type}, kExitUsage,
                {"--kv-type is " + type, "expected f16 or bf16"});
  }
}

TEST(TraceBadInput, ModelWithoutAttention) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  WriteTinyMamba(DefaultModelPath(), folder.path("mamba"));
  ExpectError({"-o", folder.path("a"), "-m", folder.path("mamba"), "--depth", "64"}, kExitInput,
              {"mamba", "rolled back"});
}

}  // namespace
}  // namespace tactic::app
