// Ctrl-C: stops soon, with exit code 130 and without partial files.
#include <gtest/gtest.h>

#include <csignal>

#include "subprocess.h"

namespace tactic::app {
namespace {

// Enough to be reading a prompt that takes far longer.
constexpr double kReadingSeconds = 2;
// A few tokens.
constexpr size_t kSomeText = 20;

TEST(Interrupt, WhileAPromptIsRead) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  const Outcome outcome =
      RunTactic({"bench", "--depths", "32768", "--policies", "dense", "--cache-dir",
                 folder.path("cache"), "--json", folder.path("bench.json")},
                {.signal = SIGINT, .after_s = kReadingSeconds});
  EXPECT_EQ(outcome.exit_code, 130) << outcome.err;
  EXPECT_NE(outcome.err.find("interrupted"), std::string::npos);
  EXPECT_TRUE(folder.Files().empty());
}

TEST(Interrupt, WhileTextIsGenerated) {
  TACTIC_REQUIRE_MODEL();
  const TemporaryFolder folder;
  const Outcome outcome =
      RunTactic({"run", "--raw", "-p", "Once upon a time", "-n", "100000", "--temp", "2",
                 "--policy", "stock", "--ctx", "32768", "--json", folder.path("run.json")},
                {.signal = SIGINT, .after_bytes = kSomeText});
  EXPECT_EQ(outcome.exit_code, 130) << outcome.err;
  EXPECT_FALSE(outcome.out.empty()) << "what was generated until then is printed";
  EXPECT_NE(outcome.err.find("tok/s"), std::string::npos);
  EXPECT_TRUE(folder.Files().empty());
}

}  // namespace
}  // namespace tactic::app
