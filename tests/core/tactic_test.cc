// Whole decode steps in mode tactic against the oracle: prefixes of its orders, lengths that follow
// from codes and verification, p_hat, outputs with their tails; for all kinds of keys, sizes,
// groups, element types, thread counts and requests.
#include <cmath>
#include <functional>
#include <vector>

#include "gtest/gtest.h"
#include "tactic/decode.h"
#include "tests/core/isa_param.h"
#include "tests/core/tactic_judge.h"
#include "tests/core/tactic_world.h"

namespace tactic {
namespace {

void RunAndJudge(const WorldSpec& spec, int threads, TacticTally* tally) {
  World world(spec);
  const Status status = world.Run(threads);
  ASSERT_TRUE(status.ok()) << status.message();
  TacticJudge(world, threads, tally).JudgeAll();
}

using Tactic = IsaTest;

TEST_P(Tactic, ReadsWhatTheOracleReads) {
  TacticTally tally;
  for (KeyKind keys : {KeyKind::kClustered, KeyKind::kHeavyTailed}) {
    for (int bits : {2, 3, 4}) {
      for (double target : {0.5, 0.9, 0.99}) {
        RunAndJudge(TacticSpec({1500},
                               [&](WorldSpec& spec) {
                                 spec.shape = {4, 2, 64, 64};
                                 spec.keys = keys;
                                 spec.options.bits = bits;
                                 spec.options.target = target;
                                 spec.seed = static_cast<uint32_t>(bits + 100 * target);
                               }),
                    1, &tally);
        if (HasFatalFailure()) return;
      }
    }
  }
  tally.Print(GetParam().c_str());
  EXPECT_LE(tally.uncertain, tally.heads / 10);
}

TACTIC_INSTANTIATE_FOR_ISAS(Tactic);

TEST(Tactic, GroupsAndWidthsOfAllSizes) {
  TacticTally tally;
  uint32_t seed = 10;
  for (int group : {1, 3, 4, 8}) {
    for (int dim : {64, 80, 96, 128}) {
      for (double skip : {0.0, 1.0}) {
        RunAndJudge(TacticSpec({900},
                               [&](WorldSpec& spec) {
                                 spec.shape = {2 * group, 2, dim, dim == 80 ? 64 : dim};
                                 spec.options.skip_share *= skip;
                                 spec.options.skip_token *= skip;
                                 spec.keys =
                                     seed % 2 == 0 ? KeyKind::kClustered : KeyKind::kHeavyTailed;
                                 spec.params.scale = 1.2f / static_cast<float>(std::sqrt(dim));
                                 spec.seed = seed++;
                               }),
                    2, &tally);
        if (HasFatalFailure()) return;
      }
    }
  }
  tally.Print("groups and widths");
  EXPECT_LE(tally.uncertain, tally.heads / 10);
}

TEST(Tactic, ElementTypesAndLayouts) {
  TacticTally tally;
  uint32_t seed = 40;
  for (ElementType key_type : kAllTypes) {
    for (ElementType value_type : kAllTypes) {
      RunAndJudge(TacticSpec({700},
                             [&](WorldSpec& spec) {
                               const bool odd = seed % 2 == 0;
                               const int key_dim = odd && Legal(key_type, 72) ? 72 : 64;
                               const int value_dim = odd && Legal(value_type, 80) ? 80 : 128;
                               spec.shape = {6, 2, key_dim, value_dim};
                               spec.key_type = key_type;
                               spec.value_type = value_type;
                               spec.layout = odd ? Layout::kHeadMajor : Layout::kCellMajor;
                               spec.params.softcap = seed % 3 == 0 ? 20.0f : 0.0f;
                               spec.seed = seed++;
                             }),
                  2, &tally);
      if (HasFatalFailure()) return;
    }
  }
  tally.Print("element types");
}

TEST(Tactic, AnyNumberOfThreadsReadsTheSame) {
  TacticTally tally;
  std::vector<std::vector<int64_t>> selected;
  for (int threads : {1, 2, 3, 8}) {
    World world(TacticSpec({2500}, [](WorldSpec& spec) { spec.shape = {6, 2, 64, 48}; }));
    ASSERT_TRUE(world.Run(threads).ok());
    TacticJudge(world, threads, &tally).JudgeAll();
    if (HasFatalFailure()) return;
    // Sums in another order move a threshold by rounding: by a row in hundreds.
    for (int h = 0; h < 2; ++h) {
      selected.push_back(world.Selected(0, h));
      const auto first = static_cast<double>(selected[h].size());
      EXPECT_NEAR(static_cast<double>(selected.back().size()), first, 2 + first / 100);
    }
  }
  tally.Print("threads");
}

TEST(Tactic, ARunRepeatsBitForBit) {
  for (int threads : {1, 2, 3, 8}) {
    World world(TacticSpec({1800, 700}, [](WorldSpec& spec) { spec.shape = {8, 2, 64, 32}; }));
    std::vector<std::vector<float>> first;
    for (int repeat = 0; repeat < 6; ++repeat) {
      ASSERT_TRUE(world.Run(threads).ok());
      std::vector<std::vector<float>> outputs;
      for (int r = 0; r < 2; ++r) {
        for (int h = 0; h < 8; ++h) {
          const std::span<const float> out = world.Out(r, h);
          outputs.emplace_back(out.begin(), out.end());
        }
      }
      if (repeat == 0) first = outputs;
      ASSERT_EQ(outputs, first) << threads << " threads";
    }
  }
}

// A batch: sequences of different lengths, several tokens of one sequence (each sees its prefix and
// so many pages of the open segment), one that is read densely, one that sees nothing.
TEST(Tactic, RequestsOfDifferentLengthsInOneStep) {
  TacticTally tally;
  for (int threads : {1, 2, 5}) {
    for (IndexKind kind : {IndexKind::kClusters, IndexKind::kPages}) {
      RunAndJudge(TacticSpec({1800, 40, 900, 2500, 3},
                             [&](WorldSpec& spec) {
                               spec.shape = {4, 2, 64, 64};
                               spec.tokens = {{0, 2},    {0, 0},    {1, 0},   {2, 0},
                                              {3, 2499}, {3, 0},    {4, 3},   {4, 0},
                                              {3, 1300}, {3, 2100}, {2, 200}, {2, 40}};
                               spec.options.dense_below = 300;
                               spec.options.index = kind;
                             }),
                  threads, &tally);
      if (HasFatalFailure()) return;
    }
  }
  tally.Print("batches");
}

// Around every boundary: sinks, the newest, pages, segments.
TEST(Tactic, LengthsAroundEveryBoundary) {
  TacticTally tally;
  for (int length : {0,   1,   3,   4,   5,   67,  68,  69,  99,  100, 101, 131, 132, 133,
                     191, 192, 193, 223, 224, 225, 287, 288, 319, 320, 321, 351, 352, 353}) {
    for (int sinks : {0, 4, 140}) {
      RunAndJudge(TacticSpec({length},
                             [&](WorldSpec& spec) {
                               spec.shape = {2, 1, 32, 32};
                               spec.params.scale = 0.18f;
                               spec.options.segment_size = 128;
                               spec.options.sinks = sinks;
                               spec.options.dense_share = 1;
                               spec.options.target = 0.7;
                               spec.seed = static_cast<uint32_t>(length + 1);
                             }),
                  length % 2 + 1, &tally);
      ASSERT_FALSE(HasFatalFailure()) << length << " " << sinks;
    }
  }
  tally.Print("boundaries");
}

TEST(Tactic, OptionsOfTheSelection) {
  TacticTally tally;
  const std::vector<std::function<void(Options&)>> changes = {
      [](Options& o) { o.rounds = 0; },
      [](Options& o) { o.rounds = 16; },
      [](Options& o) { o.tail = false; },
      [](Options& o) { o.dense_share = 0.001; },
      [](Options& o) { o.dense_share = 1, o.target = 0.999; },
      [](Options& o) { o.unread_margin = 3, o.skipped_margin = 9; },
      [](Options& o) { o.skip_share = 1, o.skip_token = 1; },
      [](Options& o) { o.skip_share = o.skip_token = 0; },
      [](Options& o) { o.sinks = o.recent = 0; },
      [](Options& o) { o.cluster_size = 7; },
      [](Options& o) { o.index = IndexKind::kPages; },
      [](Options& o) { o.segment_size = 0, o.update_interval = 300; },
      [](Options& o) { o.bits = 2, o.bits_error = 0.1; },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    for (float softcap : {0.0f, 15.0f}) {
      RunAndJudge(TacticSpec({1200},
                             [&](WorldSpec& spec) {
                               spec.shape = {4, 2, 64, 64};
                               spec.params.softcap = softcap;
                               changes[i](spec.options);
                               spec.seed = static_cast<uint32_t>(i + 1);
                             }),
                  2, &tally);
      ASSERT_FALSE(HasFatalFailure()) << "change " << i << " softcap " << softcap;
    }
  }
  tally.Print("options");
}

}  // namespace
}  // namespace tactic
