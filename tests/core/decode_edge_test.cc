// Decode steps at the edges: degenerate sequences and queries, values that are not finite, rows at
// the end of their allocation, bad requests.
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tactic/decode.h"
#include "tests/core/judge.h"
#include "tests/core/world.h"

namespace tactic {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

WorldSpec Spec(int length, const std::function<void(WorldSpec&)>& change = {}) {
  WorldSpec spec;
  spec.shape = {4, 2, 32, 32};
  spec.params.scale = 0.18f;
  spec.lengths = {length};
  spec.options.dense_below = 0;
  spec.options.segment_size = 128;
  spec.options.sinks = 4;
  spec.options.recent = 32;
  if (change) change(spec);
  return spec;
}

// The rows of all heads without the gaps between them.
std::vector<float> OutputsOf(const World& world, int request = 0) {
  std::vector<float> all;
  for (int h = 0; h < world.spec().shape.q_heads; ++h) {
    const std::span<const float> out = world.Out(request, h);
    all.insert(all.end(), out.begin(), out.end());
  }
  return all;
}

TEST(DecodeEdge, TargetOneReadsEverythingAsDenseDoes) {
  World paper(Spec(1000, [](WorldSpec& spec) { spec.options.target = 1; }));
  World dense(Spec(1000, [](WorldSpec& spec) { spec.options.mode = Mode::kDense; }));
  for (int threads : {1, 3}) {
    ASSERT_TRUE(paper.Run(threads).ok());
    ASSERT_TRUE(dense.Run(threads).ok());
    for (const World* world : {&paper, &dense}) {
      for (int h = 0; h < 2; ++h) EXPECT_EQ(world->Selected(0, h).size(), 1000u);
      EXPECT_EQ(world->Report(0, 3).own_rows, 1000);
      Tally tally;
      Judge(*world, threads, &tally).JudgeAll();
    }
  }
}

TEST(DecodeEdge, NoIndexIsDense) {
  World world(Spec(700));
  ASSERT_TRUE(world.Run(2, /*dense=*/true).ok());
  EXPECT_EQ(world.Selected(0, 0).size(), 700u);
  EXPECT_EQ(world.step().stats().rows_read, 1400);
  EXPECT_EQ(world.step().stats().bytes_read, world.step().stats().bytes_dense);
}

TEST(DecodeEdge, NoVisibleRowGivesZeros) {
  for (int threads : {1, 3}) {
    World world(Spec(300, [](WorldSpec& spec) { spec.tokens = {{0, 300}, {0, 0}, {0, 300}}; }));
    ASSERT_TRUE(world.Run(threads).ok());
    EXPECT_EQ(OutputsOf(world, 0), std::vector<float>(4 * 32, 0.0f));
    EXPECT_EQ(OutputsOf(world, 2), std::vector<float>(4 * 32, 0.0f));
    EXPECT_EQ(world.Report(0, 0).union_rows, 0);
    Tally tally;
    Judge(world, threads, &tally).JudgeAll();
  }
}

TEST(DecodeEdge, NoRequestIsAStepToo) {
  DecodeStep step;
  ASSERT_TRUE(step.Plan({4, 2, 32, 32}, Options::For(Mode::kPaper), DecodeParams(), {}, 1).ok());
  step.Run();
  EXPECT_EQ(step.stats().rows_read, 0);
  EXPECT_TRUE(step.head_reports().empty());
}

TEST(DecodeEdge, EqualKeysAndZeroQueries) {
  Tally tally;
  for (bool zero_query : {false, true}) {
    for (KeyKind keys : {KeyKind::kEqual, KeyKind::kClustered}) {
      World world(Spec(900, [&](WorldSpec& spec) { spec.keys = keys; }));
      if (zero_query) std::fill(world.q(0).begin(), world.q(0).end(), 0.0f);
      ASSERT_TRUE(world.Run(2).ok());
      Judge(world, 2, &tally).JudgeAll();
    }
  }
}

TEST(DecodeEdge, OneHugeKeyTakesAllTheWeight) {
  for (float size : {1e4f, 6e4f, 1e18f, 1e37f}) {
    World world(Spec(900, [](WorldSpec& spec) { spec.key_type = ElementType::kF32; }));
    const int64_t position = 200;
    const uint32_t cell = world.cells(0)[position];
    for (int h = 0; h < 2; ++h) {
      std::vector<float> key(32, 0.0f);
      key[3] = size;
      world.keys().Set(cell, h, key);
    }
    for (float& x : world.q(0)) x = std::isnan(x) ? x : std::fabs(x) + 0.1f;
    ASSERT_TRUE(world.index(0).Invalidate(position, position + 1).ok());
    world.Build(0);
    ASSERT_TRUE(world.Run(2).ok());
    for (int h = 0; h < 4; ++h) {
      const oracle::Row want = world.values().Get(cell, h / 2);
      for (int x = 0; x < 32; ++x) EXPECT_EQ(world.Out(0, h)[x], want[x]) << size;
    }
    // The same size the other way: no weight at all, and no trace of it.
    for (int h = 0; h < 2; ++h) {
      std::vector<float> key(32, 0.0f);
      key[3] = -size;
      world.keys().Set(cell, h, key);
    }
    ASSERT_TRUE(world.index(0).Invalidate(position, position + 1).ok());
    world.Build(0);
    ASSERT_TRUE(world.Run(2).ok());
    Tally tally;
    Judge(world, 2, &tally).JudgeAll();
  }
}

// What dense attention makes of such a key, sparse attention must not hide: wherever it stands.
TEST(DecodeEdge, AKeyThatIsNotFiniteGivesWhatDenseAttentionGives) {
  for (const std::string& isa : SupportedIsas()) {
    ASSERT_TRUE(SetIsa(isa).ok());
    for (float bad : {std::nanf(""), kInf, -kInf}) {
      // A sink, the first and last of a segment, its middle, the open end, the newest.
      for (int64_t position : {2, 4, 127, 128, 200, 255, 389, 399}) {
        WorldSpec spec = Spec(400, [&](WorldSpec& s) {
          s.key_type = position % 2 == 0 ? ElementType::kF16 : ElementType::kF32;
          s.options.target = 0.5;
          s.params.measure_mass = true;
        });
        World paper(spec);
        spec.options.mode = Mode::kDense;
        World dense(spec);
        for (World* world : {&paper, &dense}) {
          std::vector<float> key(32, 0.25f);
          key[7] = bad;
          world->keys().Set(world->cells(0)[position], 1, key);
          ASSERT_TRUE(world->index(0).Invalidate(position, position + 1).ok());
          world->Build(0);
          ASSERT_TRUE(world->Run(1 + position % 3).ok());
        }
        for (int h = 0; h < 4; ++h) {
          for (int x = 0; x < 32; ++x) {
            ASSERT_EQ(std::isnan(paper.Out(0, h)[x]), std::isnan(dense.Out(0, h)[x]))
                << isa << " " << bad << " at " << position << " head " << h;
          }
          ASSERT_EQ(std::isnan(paper.Report(0, h).union_mass), std::isnan(dense.Out(0, h)[0]));
          // The other KV head knows nothing of it.
          if (h < 2) {
            ASSERT_FALSE(std::isnan(paper.Out(0, h)[0]));
          }
        }
        const std::vector<int64_t> read = paper.Selected(0, 1);
        EXPECT_TRUE(std::find(read.begin(), read.end(), position) != read.end())
            << isa << " " << bad << " at " << position;
      }
    }
  }
  ASSERT_TRUE(SetIsa(SupportedIsas().front()).ok());
}

// A softcap makes an infinite logit an ordinary one, as in dense attention; a NaN stays.
TEST(DecodeEdge, ASoftcapKeepsNansAndCapsInfinities) {
  for (const std::string& isa : SupportedIsas()) {
    ASSERT_TRUE(SetIsa(isa).ok());
    for (float bad : {std::nanf(""), kInf, -kInf}) {
      for (int64_t position : {2, 200, 399}) {
        World world(Spec(400, [](WorldSpec& s) { s.params.softcap = 5; }));
        std::vector<float> key(32, 0.0f);
        key[7] = bad;
        for (int h = 0; h < 2; ++h) world.keys().Set(world.cells(0)[position], h, key);
        ASSERT_TRUE(world.index(0).Invalidate(position, position + 1).ok());
        world.Build(0);
        ASSERT_TRUE(world.Run(1).ok());
        for (int h = 0; h < 4; ++h) {
          ASSERT_EQ(std::isnan(world.Out(0, h)[0]), std::isnan(bad)) << isa << " " << bad;
        }
      }
    }
  }
  ASSERT_TRUE(SetIsa(SupportedIsas().front()).ok());
}

TEST(DecodeEdge, AQueryThatIsNotFiniteGivesNan) {
  for (float bad : {std::nanf(""), kInf}) {
    World world(Spec(900));
    world.q(0)[5] = bad;  // of query head 0
    ASSERT_TRUE(world.Run(2).ok());
    EXPECT_TRUE(std::isnan(world.Out(0, 0)[0]));
    EXPECT_EQ(world.Selected(0, 0).size(), 900u) << "there is no order to cut off";
    EXPECT_FALSE(std::isnan(world.Out(0, 1)[0]));
    EXPECT_FALSE(std::isnan(world.Out(0, 3)[0]));
  }
}

TEST(DecodeEdge, CellsThatAreNotListedAreNeverRead) {
  // Every second cell is NaN; the sequence consists of the others.
  const LayerShape shape{4, 2, 32, 32};
  constexpr int kLength = 700;
  std::mt19937 random(3);
  for (ElementType type : kAllTypes) {
    Rows keys(type, 32, 2, 2 * kLength, 1);
    Rows values(type, 32, 2, 2 * kLength, 1);
    std::vector<uint32_t> cells;
    for (uint32_t c = 1; c < 2 * kLength; c += 2) cells.push_back(c);
    for (uint32_t c : cells) {
      for (int h = 0; h < 2; ++h) {
        keys.Set(c, h, RandomRow(32, random));
        values.Set(c, h, RandomRow(32, random));
      }
    }
    Options options = Options::For(Mode::kPaper);
    options.dense_below = 0;
    options.segment_size = 128;
    SequenceIndex index(shape, options);
    index.Append(kLength);
    const int units = index.PlanBuild();
    for (int unit = 0; unit < units; ++unit) index.BuildUnit(unit, keys.View(), keys.View(), cells);
    const std::vector<float> q = RandomRow(4 * 32, random);
    std::vector<float> out(4 * 32, std::nanf(""));
    DecodeRequest request;
    request.q = q.data();
    request.q_stride = 32;
    request.keys = keys.View();
    request.values = values.View();
    request.cells = cells;
    request.index = &index;
    request.out = out.data();
    request.out_stride = 32;
    for (Mode mode : {Mode::kPaper, Mode::kDense}) {
      options.mode = mode;
      DecodeStep step;
      ASSERT_TRUE(step.Plan(shape, options, {0.18f, 0, false}, {&request, 1}, 1).ok());
      step.Run();
      for (float x : out) ASSERT_TRUE(std::isfinite(x)) << ElementTypeName(type);
      for (uint32_t cell : step.SelectedCells(0, 1)) ASSERT_EQ(cell % 2, 1u);
    }
  }
}

// --- bad requests -----------------------------------------------------------------------------

TEST(DecodeEdge, ABadRequestIsNamed) {
  struct Bad {
    const char* message;
    std::function<void(WorldSpec&, DecodeRequest&, int&)> change;
  };
  const RowsView none;
  SequenceIndex other_shape({4, 2, 64, 32}, Spec(1).options);
  Options other_options = Spec(1).options;
  ++other_options.cluster_size;
  SequenceIndex other_clusters({4, 2, 32, 32}, other_options);
  other_options = Spec(1).options;
  other_options.recent = 33;
  SequenceIndex other_recent({4, 2, 32, 32}, other_options);
  other_clusters.Append(1000);
  other_recent.Append(1000);
  const std::vector<uint32_t> many_cells(301, 0);
  const std::vector<Bad> cases = {
      {"q or out is null", [](auto&, auto& r, int&) { r.q = nullptr; }},
      {"q or out is null", [](auto&, auto& r, int&) { r.out = nullptr; }},
      {"keys.data is null", [&](auto&, auto& r, int&) { r.keys = none; }},
      {"values.data is null", [&](auto&, auto& r, int&) { r.values = none; }},
      {"keys.type is 9", [](auto&, auto& r, int&) { r.keys.type = static_cast<ElementType>(9); }},
      {"expected a multiple of 32 for q4_0",
       [](WorldSpec& s, auto& r, int&) {
         s.shape.value_dim = 40;
         r.out_stride = 40;
         r.values.type = ElementType::kQ4_0;
       }},
      {"q_stride is 31; expected at least 32", [](auto&, auto& r, int&) { r.q_stride = 31; }},
      {"out_stride is 0; expected at least 32", [](auto&, auto& r, int&) { r.out_stride = 0; }},
      {"index belongs to a layer of another shape",
       [&](auto&, auto& r, int&) { r.index = &other_shape; }},
      {"cluster_size", [&](auto&, auto& r, int&) { r.index = &other_clusters; }},
      {"recent", [&](auto&, auto& r, int&) { r.index = &other_recent; }},
      {"segment_size", [](WorldSpec& s, auto&, int&) { s.options.segment_size = 64; }},
      {"threads is 0; expected at least 1", [](auto&, auto&, int& threads) { threads = 0; }},
      {"scale is 0", [](WorldSpec& s, auto&, int&) { s.params.scale = 0; }},
      {"scale is inf", [](WorldSpec& s, auto&, int&) { s.params.scale = kInf; }},
      {"scale is nan", [](WorldSpec& s, auto&, int&) { s.params.scale = std::nanf(""); }},
      {"softcap is -1", [](WorldSpec& s, auto&, int&) { s.params.softcap = -1; }},
      {"softcap is inf", [](WorldSpec& s, auto&, int&) { s.params.softcap = kInf; }},
      {"head_dim is 12", [](WorldSpec& s, auto&, int&) { s.shape.head_dim = 12; }},
      {"target is 2", [](WorldSpec& s, auto&, int&) { s.options.target = 2; }},
      {"cells has 301 positions; expected at most the index's 300",
       [&](auto&, auto& r, int&) { r.cells = many_cells; }},
  };
  for (const Bad& bad : cases) {
    World world(Spec(300));
    WorldSpec& spec = world.mutable_spec();
    std::vector<DecodeRequest> requests = world.Requests();
    int threads = 1;
    bad.change(spec, requests[0], threads);
    DecodeStep step;
    const Status status = step.Plan(spec.shape, spec.options, spec.params, requests, threads);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad.message;
    EXPECT_NE(status.message().find(bad.message), std::string::npos) << status.message();
  }
  // Errors of one request say which.
  World world(Spec(300));
  std::vector<DecodeRequest> requests = world.Requests();
  requests.push_back(requests[0]);
  requests[1].q = nullptr;
  DecodeStep step;
  const Status status =
      step.Plan(world.spec().shape, world.spec().options, world.spec().params, requests, 1);
  EXPECT_EQ(status.message().find("request 1: "), 0u) << status.message();
}

}  // namespace
}  // namespace tactic
