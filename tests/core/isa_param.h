// IsaTest: runs a test once per instruction set that this machine supports.
#ifndef TACTIC_TESTS_CORE_ISA_PARAM_H_
#define TACTIC_TESTS_CORE_ISA_PARAM_H_

#include <algorithm>
#include <string>

#include "gtest/gtest.h"
#include "tactic/isa.h"

namespace tactic {

// f32 lanes of the vectors that the kernels in use have for rows of `dim` elements (load-inl.h).
inline int KernelLanes(int dim) {
  const std::string isa = IsaName();
  // "scalar" has 1 or 4, depending on the compiler; fewer lanes are the longer chains.
  const int widest = isa.starts_with("avx3") ? 16 : isa == "avx2" ? 8 : isa == "scalar" ? 1 : 4;
  return dim % 16 == 0 ? widest : std::min(widest, 8);
}

class IsaTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { ASSERT_TRUE(SetIsa(GetParam()).ok()); }
  void TearDown() override { ASSERT_TRUE(SetIsa(SupportedIsas().front()).ok()); }
};

}  // namespace tactic

#define TACTIC_INSTANTIATE_FOR_ISAS(Suite)                                         \
  INSTANTIATE_TEST_SUITE_P(Isa, Suite, testing::ValuesIn(tactic::SupportedIsas()), \
                           [](const auto& test) { return test.param; })

#endif  // TACTIC_TESTS_CORE_ISA_PARAM_H_
