// What a step selects, as lists: ascending, each row once, complete where a segment is missing,
// whatever the split into parts. That it is the right set: decode tests.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "tests/core/judge.h"
#include "tests/core/world.h"

namespace tactic {
namespace {

WorldSpec Spec() {
  WorldSpec spec;
  spec.shape = {6, 2, 32, 32};
  spec.params.scale = 0.18f;
  spec.lengths = {1500};
  spec.options.dense_below = 0;
  spec.options.segment_size = 64;
  spec.options.sinks = 5;
  spec.options.recent = 40;
  return spec;
}

TEST(Select, ListsAscendAndNameEachRowOnce) {
  for (int threads : {1, 2, 3, 8, 20}) {
    World world(Spec());
    ASSERT_TRUE(world.Run(threads).ok());
    for (int h = 0; h < 2; ++h) {
      const std::vector<int64_t> rows = world.Selected(0, h);
      EXPECT_TRUE(std::is_sorted(rows.begin(), rows.end()));
      EXPECT_EQ(std::adjacent_find(rows.begin(), rows.end()), rows.end());
      for (int64_t p = 0; p < 5; ++p) EXPECT_EQ(rows[p], p) << "sinks";
      EXPECT_EQ(rows.back(), 1499);
      EXPECT_LT(rows.size(), 1500u) << "otherwise this tests nothing";
    }
  }
}

// Segments that were invalidated and not rebuilt yet: at the beginning, in the middle, many, last.
TEST(Select, AMissingSegmentIsReadCompletely) {
  Tally tally;
  for (const std::vector<int>& missing :
       {std::vector<int>{0}, {5}, {3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, {21}, {0, 21}, {20, 21}}) {
    for (int threads : {1, 3}) {
      World world(Spec());
      for (int j : missing) ASSERT_TRUE(world.index(0).Invalidate(64 * j, 64 * j + 1).ok());
      ASSERT_TRUE(world.Run(threads).ok());
      const std::vector<int64_t> rows = world.Selected(0, 1);
      for (int j : missing) {
        for (int64_t p = 64 * j; p < 64 * (j + 1); ++p) {
          ASSERT_TRUE(std::binary_search(rows.begin(), rows.end(), p)) << p;
        }
      }
      Judge(world, threads, &tally).JudgeAll();
    }
  }
}

TEST(Select, WithoutAnySegmentEverythingIsRead) {
  World world(Spec());
  ASSERT_TRUE(world.index(0).Invalidate(0, 1500).ok());
  ASSERT_TRUE(world.Run(2).ok());
  EXPECT_EQ(world.Selected(0, 0).size(), 1500u);
}

}  // namespace
}  // namespace tactic
