#include "text.h"

#include <gtest/gtest.h>

namespace tactic::app {
namespace {

TEST(Text, WholeUtf8Prefix) {
  EXPECT_EQ(WholeUtf8Prefix(""), 0U);
  EXPECT_EQ(WholeUtf8Prefix("abc"), 3U);
  EXPECT_EQ(WholeUtf8Prefix("a\xC3\xA9"), 3U);     // é
  EXPECT_EQ(WholeUtf8Prefix("a\xC3"), 1U);         // its first half
  EXPECT_EQ(WholeUtf8Prefix("\xE2\x82\xAC"), 3U);  // €
  EXPECT_EQ(WholeUtf8Prefix("x\xE2\x82"), 1U);
  EXPECT_EQ(WholeUtf8Prefix("\xF0\x9F\x90\x8B"), 4U);  // a whale
  EXPECT_EQ(WholeUtf8Prefix("\xF0\x9F\x90"), 0U);
}

TEST(Text, InvalidBytesAreNotHeldBack) {
  EXPECT_EQ(WholeUtf8Prefix("\x80\x80\x80\x80\x80"), 5U);
  EXPECT_EQ(WholeUtf8Prefix("a\x80"), 2U);
}

TEST(Text, MissingFileIsNamed) {
  std::string text;
  const Status status = ReadText("/nowhere/a.txt", "--file", &text);
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_NE(status.message().find("--file: cannot read '/nowhere/a.txt'"), std::string::npos);
}

}  // namespace
}  // namespace tactic::app
