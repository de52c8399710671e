// Bad input gives one clear sentence and a documented exit code, before any long work.
#include <gtest/gtest.h>

#include <fstream>

#include "defaults.h"
#include "exit_code.h"
#include "subprocess.h"
#include "tiny_model.h"

namespace tactic::app {
namespace {

void ExpectError(const std::vector<std::string>& arguments, int exit_code,
                 const std::vector<std::string>& parts) {
  const Outcome outcome = RunTactic(arguments);
  EXPECT_EQ(outcome.exit_code, exit_code) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  for (const std::string& part : parts) {
    EXPECT_NE(outcome.err.find(part), std::string::npos)
        << "no '" << part << "' in: " << outcome.err;
  }
}

TEST(BadInput, NoSubcommand) { ExpectError({}, kExitUsage, {"subcommand"}); }

TEST(BadInput, UnknownOption) { ExpectError({"run", "--nonsense"}, kExitUsage, {"--nonsense"}); }

TEST(BadInput, MissingModel) {
  ExpectError({"run", "-m", "/nowhere/x.gguf", "-p", "x"}, kExitInput,
              {"model '/nowhere/x.gguf'", "No such file"});
}

TEST(BadInput, ModelIsAFolder) {
  ExpectError({"info", "-m", "/tmp"}, kExitInput, {"'/tmp' is a folder"});
}

TEST(BadInput, NotGguf) {
  const TemporaryFolder folder;
  std::ofstream(folder.path("x.gguf")) << "This is a text, not a model.";
  ExpectError({"run", "-m", folder.path("x.gguf"), "-p", "x"}, kExitInput,
              {"x.gguf", "not a GGUF file"});
}

TEST(BadInput, TruncatedModel) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  std::string bytes(8 << 20, '\0');
  std::ifstream(DefaultModelPath(), std::ios::binary)
      .read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  std::ofstream(folder.path("cut.gguf"), std::ios::binary) << bytes;
  ExpectError({"run", "-m", folder.path("cut.gguf"), "-p", "x"}, kExitInput,
              {"cut.gguf", "expected a complete GGUF file"});
}

TEST(BadInput, MissingAdapter) {
  TACTIC_REQUIRE_MODEL();
  ExpectError({"run", "--lora", "/nowhere/a.gguf", "-p", "x"}, kExitInput,
              {"adapter '/nowhere/a.gguf'"});
}

TEST(BadInput, ModelAsAdapter) {
  TACTIC_REQUIRE_MODEL();
  ExpectError({"run", "--lora", DefaultModelPath(), "-p", "x"}, kExitInput,
              {"adapter", "cannot be loaded"});
}

TEST(BadInput, ContextLargerThanMemory) {
  TACTIC_REQUIRE_MODEL();
  ExpectError({"run", "-p", "x", "--ctx", "250000000"}, kExitUsage,
              {"250000000 tokens", "TiB", "available"});
  ExpectError({"bench", "--depths", "200000000", "--fill", "random"}, kExitUsage,
              {"TiB", "available"});
}

TEST(BadInput, TargetOutOfRange) {
  for (const std::string target : {"0", "1.5", "-1"}) {
    ExpectError({"run", "-p", "x", "--target=" + target}, kExitUsage, {"target"});
    ExpectError({"bench", "--target=" + target}, kExitUsage, {"target"});
    ExpectError({"demo", "--target=" + target}, kExitUsage, {"target"});
  }
}

TEST(BadInput, AlgorithmOutOfRange) {
  ExpectError({"run", "-p", "x", "--cluster-size", "0"}, kExitUsage, {"cluster_size"});
  ExpectError({"run", "-p", "x", "--rounds", "99"}, kExitUsage, {"policy tactic", "rounds is 99"});
  ExpectError({"run", "-p", "x", "--bits", "5"}, kExitUsage, {"--bits", "auto"});
  ExpectError({"run", "-p", "x", "--index", "trees"}, kExitUsage, {"--index", "pages"});
  ExpectError({"run", "-p", "x", "--tail", "maybe"}, kExitUsage, {"--tail", "off"});
}

TEST(BadInput, EveryPolicyMustAllowWhatIsGiven) {
  // A segment of 20 positions can hold a cluster of 16, but not one of 32.
  ExpectError({"bench", "--policies", "paper,tactic", "--segment-size", "20"}, kExitUsage,
              {"policy tactic", "segment_size is 20"});
}

TEST(BadInput, PromptLongerThanContext) {
  TACTIC_REQUIRE_MODEL();
  ExpectError({"run", "-f", FindProjectFile(kDefaultBook), "--ctx", "2048"}, kExitUsage,
              {"prompt has", "--ctx is 2048"});
}

TEST(BadInput, DepthBeyondContext) {
  TACTIC_REQUIRE_MODEL();
  ExpectError({"bench", "--depths", "4096", "--ctx", "2048"}, kExitUsage,
              {"--ctx is 2048", "--depths"});
}

TEST(BadInput, DepthBeyondText) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  std::ofstream(folder.path("short.txt")) << "A short text.";
  ExpectError({"bench", "--depths", "512", "-f", folder.path("short.txt")}, kExitUsage,
              {"--depths", "--file has"});
}

TEST(BadInput, NothingToRead) { ExpectError({"run"}, kExitUsage, {"--prompt", "--file"}); }

TEST(BadInput, EmptyFile) {
  const TemporaryFolder folder;
  std::ofstream(folder.path("empty.txt"));
  ExpectError({"run", "-f", folder.path("empty.txt")}, kExitUsage, {"empty"});
}

TEST(BadInput, UnreadableFile) {
  ExpectError({"run", "-f", "/nowhere/a.txt"}, kExitInput,
              {"--file", "'/nowhere/a.txt'", "No such file"});
  ExpectError({"run", "-f", "/tmp"}, kExitInput, {"--file", "directory"});
  ExpectError({"bench", "-f", "/nowhere/a.txt"}, kExitInput, {"'/nowhere/a.txt'"});
  ExpectError({"demo", "-f", "/nowhere/a.txt"}, kExitInput, {"'/nowhere/a.txt'"});
}

TEST(BadInput, UnknownPolicy) {
  ExpectError({"run", "-p", "x", "--policy", "best"}, kExitUsage,
              {"best", "stock", "dense", "paper", "tactic"});
  ExpectError({"bench", "--policies", "stock,best"}, kExitUsage,
              {"best", "stock", "dense", "paper", "tactic"});
}

TEST(BadInput, UnknownKvType) {
  ExpectError({"run", "-p", "x", "--kv-type-v", "q3"}, kExitUsage, {"--kv-type-v", "q3", "q8_0"});
}

TEST(BadInput, SyntheticFill) {
  ExpectError({"bench", "--fill", "synthetic", "--depths", "256,4096"}, kExitUsage,
              {"--depths has 256", "at least 512"});
  ExpectError({"bench", "--fill", "synthetic", "--fill-needed", "0"}, kExitUsage,
              {"--fill-needed"});
  ExpectError({"bench", "--fill", "random", "--fill-needed", "900"}, kExitUsage,
              {"--fill-needed", "--fill is random"});
  TACTIC_REQUIRE_MODEL();
  ExpectError({"bench", "--fill", "synthetic", "--depths", "512", "--kv-type", "q8_0"}, kExitUsage,
              {"--kv-type is q8_0", "f16 or bf16"});
}

TEST(BadInput, Depths) {
  ExpectError({"bench", "--depths", "4k"}, kExitUsage, {"--depths"});
  ExpectError({"bench", "--depths", "0"}, kExitUsage, {"--depths"});
  ExpectError({"bench", "--depths", "512,-1"}, kExitUsage, {"--depths"});
}

TEST(BadInput, JsonIsCheckedFirst) {
  for (const std::string command : {"run", "bench", "demo", "info"}) {
    // The model is missing, too: the path of the results is looked at before.
    ExpectError({command, "-m", "/nowhere/x.gguf", "--json", "/nowhere/x.json"}, kExitUsage,
                {"--json", "'/nowhere/x.json'"});
  }
  ExpectError({"info", "--json", "/tmp"}, kExitUsage, {"--json", "directory"});
}

TEST(BadInput, ModelWithoutAttention) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  WriteTinyMamba(DefaultModelPath(), folder.path("mamba.gguf"));
  ExpectError({"run", "--raw", "-m", folder.path("mamba.gguf"), "-p", "x"}, kExitInput,
              {"policy 'tactic'", "mamba.gguf"});
  ExpectError({"bench", "-m", folder.path("mamba.gguf"), "--depths", "64"}, kExitInput,
              {"mamba.gguf", "rolled back"});
  const Outcome stock = RunTactic(
      {"run", "--raw", "-m", folder.path("mamba.gguf"), "-p", "x", "-n", "2", "--policy", "stock"});
  EXPECT_EQ(stock.exit_code, kExitOk) << stock.err;
}

TEST(Help, DocumentsExitCodes) {
  const Outcome outcome = RunTactic({"--help"});
  EXPECT_EQ(outcome.exit_code, kExitOk);
  EXPECT_NE(outcome.out.find("Exit codes"), std::string::npos);
  EXPECT_NE(outcome.out.find("130"), std::string::npos);
}

}  // namespace
}  // namespace tactic::app
