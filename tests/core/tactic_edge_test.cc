// Mode tactic at the edges: the extremes of its options, keys, values and queries that are equal,
// huge or not finite, and layouts that leave no room for mistakes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "src/threshold.h"
#include "tactic/decode.h"
#include "tests/core/isa_param.h"
#include "tests/core/tactic_judge.h"
#include "tests/core/tactic_world.h"

namespace tactic {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> OutputsOf(const World& world, int request = 0) {
  std::vector<float> all;
  for (int h = 0; h < world.spec().shape.q_heads; ++h) {
    const std::span<const float> out = world.Out(request, h);
    all.insert(all.end(), out.begin(), out.end());
  }
  return all;
}

void Rebuild(World* world, int64_t begin, int64_t end) {
  ASSERT_TRUE(world->index(0).Invalidate(begin, end).ok());
  world->Build(0);
}

TEST(TacticEdge, TargetOneReadsEverythingAsDenseDoes) {
  for (IndexKind kind : {IndexKind::kClusters, IndexKind::kPages}) {
    World world(TacticSpec({1100}, [&](WorldSpec& spec) {
      spec.shape = {4, 2, 64, 64};
      spec.options.target = 1;
      spec.options.dense_share = 1;
      spec.options.index = kind;
      spec.params.measure_mass = true;
    }));
    TacticTally tally;
    for (int threads : {1, 3}) {
      ASSERT_TRUE(world.Run(threads).ok());
      TacticJudge(world, threads, &tally).JudgeAll();
      EXPECT_EQ(world.step().stats().rows_read, 2200);
      for (int h = 0; h < 4; ++h) {
        EXPECT_EQ(world.Report(0, h).own_rows, 1100);
        EXPECT_NEAR(world.Report(0, h).own_mass, 1, 1e-5);
      }
    }
    EXPECT_EQ(tally.everything, 8);
  }
}

// Logits so far apart that two bits place them wrongly by dozens: what was read first is next to
// nothing, and one round does not find the rest.
TEST(TacticEdge, CodesThatSayTooLittleAreGivenUp) {
  TacticTally tally;
  for (uint32_t seed : {1, 2, 3}) {
    World world(TacticSpec({1500}, [&](WorldSpec& spec) {
      spec.seed = seed;
      spec.keys = KeyKind::kHeavyTailed;
      spec.params.scale = 1;
      spec.params.measure_mass = true;
      spec.options.bits = 2;
      spec.options.rounds = 1;
      spec.options.dense_share = 1;
    }));
    ASSERT_TRUE(world.Run(2).ok());
    TacticJudge(world, 2, &tally).JudgeAll();
    for (int h = 0; h < 4; ++h) {
      EXPECT_GE(world.Report(0, h).p_hat, world.spec().options.target - kLargestShortfall);
    }
  }
  EXPECT_GT(tally.gave_up, 0);
}

TEST(TacticEdge, NoVisibleRowGivesZeros) {
  World world(TacticSpec({300}, [](WorldSpec& spec) {
    spec.tokens = {{0, 300}, {0, 0}, {0, 300}};
    spec.options.dense_share = 1;
  }));
  for (int threads : {1, 3}) {
    ASSERT_TRUE(world.Run(threads).ok());
    EXPECT_EQ(OutputsOf(world, 0), std::vector<float>(4 * 64, 0.0f));
    EXPECT_EQ(OutputsOf(world, 2), std::vector<float>(4 * 64, 0.0f));
    EXPECT_EQ(world.Report(0, 0).p_hat, 1) << "nothing was left out";
  }
}

TEST(TacticEdge, EqualKeysAndZeroQueries) {
  for (bool zero_query : {false, true}) {
    for (KeyKind keys : {KeyKind::kEqual, KeyKind::kClustered}) {
      World world(TacticSpec({900}, [&](WorldSpec& spec) {
        spec.keys = keys;
        spec.options.dense_share = 1;
      }));
      if (zero_query) std::fill(world.q(0).begin(), world.q(0).end(), 0.0f);
      ASSERT_TRUE(world.Run(2).ok());
      for (int h = 0; h < 4; ++h) {
        const HeadReport& report = world.Report(0, h);
        EXPECT_GE(report.p_hat, 0.9) << "all tokens alike: P of them must be read";
        for (float x : world.Out(0, h)) EXPECT_TRUE(std::isfinite(x));
      }
    }
  }
}

// Thousands of clusters in a segment: more than any of the default options give.
TEST(TacticEdge, SmallClustersInALargeSegment) {
  World world(TacticSpec({9000}, [](WorldSpec& spec) {
    spec.shape = {2, 1, 8, 8};
    spec.params.scale = 0.35f;
    spec.options.segment_size = 8192;
    spec.options.cluster_size = 2;
    spec.options.kmeans_iterations = 1;
  }));
  TacticTally tally;
  ASSERT_TRUE(world.Run(2).ok());
  TacticJudge(world, 2, &tally).JudgeAll();
}

// Logits within a small cap: unread keys, skipped ones and the padding of blocks lie close
// together.
TEST(TacticEdge, ASmallSoftcapReadsEveryRowOnce) {
  TacticTally tally;
  for (float softcap : {0.5f, 1.0f, 3.0f}) {
    for (double target : {0.8, 0.95, 0.99}) {
      World world(TacticSpec({1500}, [&](WorldSpec& spec) {
        spec.shape = {4, 2, 64, 64};
        spec.params.softcap = softcap;
        spec.options.target = target;
        spec.options.dense_share = 1;
      }));
      ASSERT_TRUE(world.Run(2).ok());
      for (int h = 0; h < 2; ++h) {
        std::vector<int64_t> rows = world.Selected(0, h);
        EXPECT_EQ(std::adjacent_find(rows.begin(), rows.end()), rows.end());
        EXPECT_LE(rows.size(), 1500u);
      }
      TacticJudge(world, 2, &tally).JudgeAll();
      ASSERT_FALSE(HasFatalFailure()) << softcap << " " << target;
    }
  }
}

// A single key that takes all the weight must be found by its code, wherever it stands.
TEST(TacticEdge, OneHugeKeyTakesAllTheWeight) {
  for (float size : {1e3f, 6e4f, 1e18f, 1e37f}) {
    for (int64_t position : {2, 4, 200, 600, 899}) {
      for (float sign : {1.0f, -1.0f}) {
        World world(TacticSpec({900}, [](WorldSpec& spec) { spec.key_type = ElementType::kF32; }));
        World dense(TacticSpec({900}, [](WorldSpec& spec) {
          spec.key_type = ElementType::kF32;
          spec.options.mode = Mode::kDense;
        }));
        for (World* w : {&world, &dense}) {
          std::vector<float> key(64, 0.0f);
          key[3] = sign * size;
          w->keys().Set(w->cells(0)[position], 0, key);
          for (float& x : w->q(0)) x = std::isnan(x) ? x : std::fabs(x) + 0.1f;
          Rebuild(w, position, position + 1);
          ASSERT_TRUE(w->Run(2).ok());
        }
        for (int h = 0; h < 4; ++h) {
          const double mass_left = std::max(0.0, 1 - world.Report(0, h).p_hat);
          for (int x = 0; x < 64; ++x) {
            ASSERT_NEAR(world.Out(0, h)[x], dense.Out(0, h)[x],
                        sign > 0 ? 1e-5 : 10 * mass_left + 0.05)
                << size << " at " << position << " sign " << sign;
          }
        }
      }
    }
  }
}

// Queries so long that every exponential overflows. Codes say nothing of which key is largest then,
// and the report says that; the output is a value nevertheless, of some row.
TEST(TacticEdge, HugeQueriesAreReportedAndGiveValues) {
  for (float size : {1e4f, 1e12f, 1e19f, 1e30f}) {
    World world(TacticSpec({900}));
    float largest = 0;
    for (int64_t p = 0; p < 900; ++p) {
      for (double x : world.values().Get(world.cells(0)[p], 0))
        largest = std::max(largest, static_cast<float>(std::fabs(x)));
    }
    for (float& x : world.q(0)) x *= size;
    ASSERT_TRUE(world.Run(2).ok());
    for (float x : OutputsOf(world)) ASSERT_LE(std::fabs(x), largest * 1.001f) << size;
    for (int h = 0; h < 4; ++h) {
      const HeadReport& report = world.Report(0, h);
      EXPECT_TRUE(report.code_error > 100 || report.own_rows == 900) << report.code_error;
    }
  }
}

// f32 values that no 8-bit mean with an f16 scale can hold.
TEST(TacticEdge, HugeValuesStayFinite) {
  for (float size : {1e6f, 1e9f, 1e30f}) {
    World world(TacticSpec({900}, [](WorldSpec& spec) { spec.value_type = ElementType::kF32; }));
    World dense(TacticSpec({900}, [](WorldSpec& spec) {
      spec.value_type = ElementType::kF32;
      spec.options.mode = Mode::kDense;
    }));
    for (World* w : {&world, &dense}) {
      std::vector<float> value(64, 0.0f);
      value[5] = size;
      w->values().Set(w->cells(0)[100], 0, value);
      Rebuild(w, 100, 101);
      ASSERT_TRUE(w->Run(2).ok());
    }
    for (int h = 0; h < 4; ++h) {
      for (int x = 0; x < 64; ++x) {
        EXPECT_TRUE(std::isfinite(world.Out(0, h)[x])) << size << " column " << x;
        if (x == 5) continue;
        // What one value's size does to the others' rounding in 8 bits stays within its cluster.
        EXPECT_NEAR(world.Out(0, h)[x], dense.Out(0, h)[x], 0.5) << size << " column " << x;
      }
    }
  }
}

// What dense attention makes of such a key, value or query, mode tactic must not hide, nor spread.
TEST(TacticEdge, WhatIsNotFiniteGivesWhatDenseAttentionGives) {
  for (const std::string& isa : SupportedIsas()) {
    ASSERT_TRUE(SetIsa(isa).ok());
    for (float bad : {std::nanf(""), kInf, -kInf}) {
      for (int what : {0, 1, 2}) {  // key, value, query
        for (int64_t position : {2, 4, 255, 256, 300, 540, 599}) {
          if (what == 2 && position != 2) continue;
          WorldSpec spec = TacticSpec({600}, [&](WorldSpec& s) {
            s.shape = {4, 2, 32, 32};
            s.params.scale = 0.18f;
          });
          World world(spec);
          spec.options.mode = Mode::kDense;
          World dense(spec);
          for (World* w : {&world, &dense}) {
            std::vector<float> row(32, 0.25f);
            row[7] = bad;
            const uint32_t cell = w->cells(0)[position];
            if (what == 0) w->keys().Set(cell, 1, row);
            if (what == 1) w->values().Set(cell, 1, row);
            if (what == 2) w->q(0)[3] = bad;  // of query head 0
            Rebuild(w, position, position + 1);
            ASSERT_TRUE(w->Run(2).ok());
          }
          for (int h = 0; h < 4; ++h) {
            for (int x = 0; x < 32; ++x) {
              const float got = world.Out(0, h)[x];
              const float want = dense.Out(0, h)[x];
              const bool touched = what == 2 ? h == 0 : h >= 2;
              if (!touched) {
                ASSERT_TRUE(std::isfinite(got)) << "head " << h << " has nothing to do with it";
              } else if (!(what == 0 && bad == -kInf)) {
                ASSERT_EQ(std::isnan(got), std::isnan(want))
                    << isa << " what " << what << " " << bad << " at " << position << " head " << h;
                if (std::isinf(want)) {
                  ASSERT_EQ(got, want);
                }
              }
            }
          }
        }
      }
    }
    ASSERT_TRUE(SetIsa(SupportedIsas().front()).ok());
  }
}

}  // namespace
}  // namespace tactic
