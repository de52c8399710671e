// Choosing an instruction set. What the environment variable does: forced_isa_probe.cc.
#include "tactic/isa.h"

#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace tactic {
namespace {

TEST(Isa, ScalarIsAlwaysThereAndLast) {
  const std::vector<std::string> names = SupportedIsas();
  ASSERT_FALSE(names.empty());
  EXPECT_EQ(names.back(), "scalar");
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), names.size());
}

TEST(Isa, SetIsaTakesEverySupportedName) {
  for (const std::string& name : SupportedIsas()) {
    EXPECT_TRUE(SetIsa(name).ok());
    EXPECT_EQ(IsaName(), name);
  }
  // Choosing one does not hide the others.
  EXPECT_TRUE(SetIsa(SupportedIsas().front()).ok());
  EXPECT_EQ(IsaName(), SupportedIsas().front());
}

TEST(Isa, AnUnknownNameIsAnErrorAndChangesNothing) {
  const std::string before = IsaName();
  for (const char* name : {"", "avx9000", "SCALAR", "scalar "}) {
    const Status status = SetIsa(name);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << name;
    EXPECT_NE(status.message().find("\"" + std::string(name) + "\""), std::string::npos);
    EXPECT_NE(status.message().find("scalar"), std::string::npos) << "lists what is known";
  }
  EXPECT_EQ(IsaName(), before);
}

}  // namespace
}  // namespace tactic
