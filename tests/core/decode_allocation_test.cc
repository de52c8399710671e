// A warm decode step allocates nothing. In an executable of its own: it counts every operator new.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>

#include "gtest/gtest.h"
#include "tests/core/world.h"

namespace {
std::atomic<int64_t> allocations = 0;

void* Allocate(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
}  // namespace

// Not inlined: GCC warns of free() where it sees that but not the malloc() of the pair.
#define REPLACED [[gnu::noinline]]
REPLACED void* operator new(std::size_t size) { return Allocate(size); }
REPLACED void* operator new[](std::size_t size) { return Allocate(size); }
REPLACED void operator delete(void* memory) noexcept { std::free(memory); }
REPLACED void operator delete[](void* memory) noexcept { std::free(memory); }
REPLACED void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
REPLACED void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace tactic {
namespace {

class DecodeAllocation : public testing::TestWithParam<Mode> {};

TEST_P(DecodeAllocation, AWarmStepAllocatesNothing) {
  const Mode mode = GetParam();
  WorldSpec spec;
  spec.shape = {8, 2, 64, 64};
  spec.lengths = {2000, 500, 10};
  spec.tokens = {{0, 0}, {1, 0}, {2, 0}};
  spec.options = Options::For(mode);
  spec.options.segment_size = 128;
  spec.options.dense_below = 300;
  World world(spec);
  const std::vector<DecodeRequest> requests = world.Requests();
  std::unique_ptr<ThreadTeam> team;
  ASSERT_TRUE(ThreadTeam::Create(2, &team).ok());
  DecodeStep step;
  for (bool measure : {true, false}) {
    const DecodeParams params{0.125f, 0, measure};
    for (int repeat = 0; repeat < 3; ++repeat) {
      const int64_t before = allocations;
      const Status status = step.Plan(spec.shape, spec.options, params, requests, 2);
      RunStep(&step, team.get());
      const int64_t during = allocations - before;
      ASSERT_TRUE(status.ok());
      if (repeat > 0) {
        EXPECT_EQ(during, 0);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, DecodeAllocation,
                         testing::Values(Mode::kDense, Mode::kPaper, Mode::kTactic),
                         [](const auto& test) { return std::string(ModeName(test.param)); });

}  // namespace
}  // namespace tactic
