#include "atomic_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "subprocess.h"

namespace tactic::app {
namespace {

TEST(AtomicFile, WritesAndReplaces) {
  const TemporaryFolder folder;
  ASSERT_TRUE(WriteFile(folder.path("a"), "one", "--x").ok());
  ASSERT_TRUE(WriteFile(folder.path("a"), "two", "--x").ok());
  EXPECT_EQ(ReadFile(folder.path("a")), "two");
  EXPECT_EQ(folder.Files().size(), 1U);
}

TEST(AtomicFile, CheckLeavesNothingBehind) {
  const TemporaryFolder folder;
  EXPECT_TRUE(CheckWritable(folder.path("a"), "--x").ok());
  EXPECT_TRUE(folder.Files().empty());
}

TEST(AtomicFile, CheckNamesArgumentAndPath) {
  const Status status = CheckWritable("/nowhere/a", "--x");
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("--x: cannot write '/nowhere/a'"), std::string::npos)
      << status.message();
}

TEST(AtomicFile, DevicesAreWrittenInPlace) {
  ASSERT_TRUE(CheckWritable("/dev/null", "--x").ok());
  ASSERT_TRUE(WriteFile("/dev/null", "gone", "--x").ok());
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST(AtomicFile, PendingFileVanishesUnlessCommitted) {
  const TemporaryFolder folder;
  {
    const PendingFile pending(folder.path("a"));
    std::ofstream(pending.temporary_path()) << "half";
  }
  EXPECT_TRUE(folder.Files().empty());
}

}  // namespace
}  // namespace tactic::app
