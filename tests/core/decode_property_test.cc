// Properties of decode steps: monotone in the target, repeatable, independent of what a step object
// did before.
#include <algorithm>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tactic/decode.h"
#include "tests/core/judge.h"
#include "tests/core/world.h"

namespace tactic {
namespace {

WorldSpec Spec(uint32_t seed) {
  WorldSpec spec;
  spec.shape = {8, 2, 64, 32};
  spec.lengths = {1800, 700};
  spec.tokens = {{0, 0}, {1, 0}, {0, 3}};
  spec.options.dense_below = 0;
  spec.options.segment_size = 128;
  spec.keys = seed % 2 == 0 ? KeyKind::kClustered : KeyKind::kHeavyTailed;
  spec.seed = seed;
  return spec;
}

// Without the NaN between the heads, which compare unequal.
std::vector<float> Outputs(const World& world) {
  std::vector<float> all;
  for (int r = 0; r < std::ssize(world.spec().tokens); ++r) {
    for (int h = 0; h < world.spec().shape.q_heads; ++h) {
      const std::span<const float> out = world.Out(r, h);
      all.insert(all.end(), out.begin(), out.end());
    }
  }
  return all;
}

TEST(DecodeProperty, AHigherTargetNeverReadsFewerRows) {
  for (uint32_t seed = 1; seed <= 4; ++seed) {
    World world(Spec(seed));
    std::vector<int64_t> before(3 * 8, 0);
    for (double target : {0.01, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0}) {
      world.mutable_spec().options.target = target;
      ASSERT_TRUE(world.Run(2).ok());
      for (int r = 0; r < 3; ++r) {
        for (int h = 0; h < 8; ++h) {
          const int64_t rows = world.Report(r, h).own_rows;
          EXPECT_GE(rows, before[r * 8 + h]) << "target " << target;
          EXPECT_LE(rows, world.Report(r, h).union_rows);
          before[r * 8 + h] = rows;
        }
      }
    }
    EXPECT_EQ(before[0], 1800) << "target 1 reads everything";
  }
}

TEST(DecodeProperty, ARunRepeatsBitForBit) {
  for (int threads : {1, 2, 3, 6}) {
    World world(Spec(5));
    ASSERT_TRUE(world.Run(threads).ok());
    const std::vector<float> first = Outputs(world);
    for (int repeat = 0; repeat < 5; ++repeat) {
      ASSERT_TRUE(world.Run(threads).ok());
      ASSERT_EQ(Outputs(world), first) << threads << " threads";
    }
    World again(Spec(5));
    ASSERT_TRUE(again.Run(threads).ok());
    ASSERT_EQ(Outputs(again), first) << "another step object";
  }
}

// Thread counts change the order of sums, within the bound that Judge applies to each of them, and
// nothing else.
TEST(DecodeProperty, ThreadCountsAgreeWithinRounding) {
  Tally tally;
  for (int threads : {1, 2, 4, 9}) {
    World world(Spec(6));
    ASSERT_TRUE(world.Run(threads).ok());
    Judge(world, threads, &tally).JudgeAll();
  }
  EXPECT_EQ(tally.budget_differs, 0);
}

// Buffers are kept and not cleared: a step that did something larger or else before must not show.
TEST(DecodeProperty, AStepObjectCarriesNothingOver) {
  World large(Spec(7));
  WorldSpec small_spec = Spec(8);
  small_spec.shape = {3, 3, 32, 64};
  small_spec.params.scale = 0.18f;
  small_spec.lengths = {500};
  small_spec.tokens = {{0, 0}};
  small_spec.options.segment_size = 64;
  World small(small_spec);
  DecodeStep reused;
  for (int repeat = 0; repeat < 2; ++repeat) {
    for (World* world : {&large, &small}) {
      ASSERT_TRUE(world->Run(1).ok());
      const std::vector<float> want = Outputs(*world);
      const std::vector<DecodeRequest> requests = world->Requests();
      const WorldSpec& spec = world->spec();
      ASSERT_TRUE(reused.Plan(spec.shape, spec.options, spec.params, requests, 1).ok());
      reused.Run();
      EXPECT_EQ(Outputs(*world), want);
      EXPECT_EQ(reused.stats().bytes_read, world->step().stats().bytes_read);
      for (int h = 0; h < spec.shape.kv_heads; ++h) {
        EXPECT_EQ(reused.SelectedCells(0, h), world->step().SelectedCells(0, h));
      }
    }
  }
  const size_t bytes = reused.WorkspaceBytes();
  DecodeStep moved = std::move(reused);
  EXPECT_EQ(moved.WorkspaceBytes(), bytes);
}

// What a step cost may be asked for when its requests are gone.
TEST(DecodeProperty, StatsOutliveTheRequests) {
  DecodeStep step;
  DecodeStats during;
  {
    World world(Spec(10));
    const std::vector<DecodeRequest> requests = world.Requests();
    const WorldSpec& spec = world.spec();
    ASSERT_TRUE(step.Plan(spec.shape, spec.options, spec.params, requests, 1).ok());
    step.Run();
    during = step.stats();
  }
  const DecodeStats after = step.stats();
  EXPECT_EQ(after.rows_read, during.rows_read);
  EXPECT_EQ(after.bytes_read, during.bytes_read);
  EXPECT_EQ(after.bytes_dense, during.bytes_dense);
  EXPECT_EQ(step.head_reports().size(), 3u * 8);
}

TEST(DecodeProperty, AFailedPlanLeavesTheStepUsable) {
  World world(Spec(9));
  ASSERT_TRUE(world.Run(1).ok());
  const std::vector<float> want = Outputs(world);
  DecodeStep step;
  std::vector<DecodeRequest> requests = world.Requests();
  const WorldSpec& spec = world.spec();
  Options bad = spec.options;
  bad.target = 7;
  EXPECT_FALSE(step.Plan(spec.shape, bad, spec.params, requests, 1).ok());
  ASSERT_TRUE(step.Plan(spec.shape, spec.options, spec.params, requests, 1).ok());
  step.Run();
  EXPECT_EQ(Outputs(world), want);
}

}  // namespace
}  // namespace tactic
