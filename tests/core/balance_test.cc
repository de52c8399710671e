// How evenly a step falls on 8, 16 and 64 threads, counted in the bytes of its real units, not
// timed: a thread takes the next unit as soon as it is free.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <numeric>
#include <queue>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "src/planted_layer.h"
#include "tactic/decode.h"
#include "tactic/thread_team.h"

namespace tactic {
namespace {

constexpr int64_t kTokens = 32768;
constexpr int kQueries = 4;

// Work of the thread that has most, when units are claimed in turn.
int64_t MostClaimed(const std::vector<int64_t>& units, int threads) {
  std::priority_queue<int64_t, std::vector<int64_t>, std::greater<>> free_at;
  for (int t = 0; t < threads; ++t) free_at.push(0);
  int64_t most = 0;
  for (const int64_t unit : units) {
    const int64_t end = free_at.top() + unit;
    free_at.pop();
    free_at.push(end);
    most = std::max(most, end);
  }
  return most;
}

// The same when each thread has an even number of neighbouring units.
int64_t MostGiven(const std::vector<int64_t>& units, int threads) {
  const auto n = std::ssize(units);
  int64_t most = 0;
  for (int t = 0; t < threads; ++t) {
    most = std::max(most, std::accumulate(units.begin() + n * t / threads,
                                          units.begin() + n * (t + 1) / threads, int64_t{0}));
  }
  return most;
}

// A layer of synthetic keys, indexed once for all numbers of threads.
class Layer {
 public:
  explicit Layer(const LayerShape& shape)
      : shape_(shape),
        options_(Options::For(Mode::kTactic)),
        layer_(shape, ElementType::kF16, ElementType::kF16, kTokens, kQueries),
        index_(shape, options_),
        cells_(kTokens),
        out_(static_cast<size_t>(shape.q_heads * shape.value_dim)) {
    std::iota(cells_.begin(), cells_.end(), 0u);
    index_.Append(kTokens);
    std::unique_ptr<ThreadTeam> team;
    EXPECT_TRUE(ThreadTeam::Create(2, &team).ok());
    team->Run([&](int thread) {
      for (int h = thread; h < shape_.kv_heads; h += 2) layer_.Grow(h, kTokens);
    });
    index_.SetQueryNorms(layer_.QueryNorms());
    const int units = index_.PlanBuild();
    team->Run([&](int thread) {
      for (int unit = thread; unit < units; unit += 2)
        index_.BuildUnit(unit, layer_.keys(), layer_.values(), cells_);
    });
  }

  const DecodeStep& Run(int query, int threads) {
    const auto dim = static_cast<size_t>(shape_.head_dim);
    const DecodeRequest request = {layer_.Query(query), dim,    layer_.keys(),
                                   layer_.values(),     cells_, &index_,
                                   out_.data(),         dim};
    const Status status =
        step_.Plan(shape_, options_, {layer_.scale(), 0, false}, {&request, 1}, threads);
    EXPECT_TRUE(status.ok()) << status.message();
    // One after the other: the first does what is claimed, each its share of the rest.
    for (int phase = 0; phase < kPhases; ++phase) {
      for (int t = 0; t < threads; ++t) step_.RunPhase(static_cast<Phase>(phase), t);
    }
    return step_;
  }

 private:
  LayerShape shape_;
  Options options_;
  PlantedLayer layer_;
  SequenceIndex index_;
  std::vector<uint32_t> cells_;
  std::vector<float> out_;
  DecodeStep step_;
};

// Most over mean, summed over the phases, each of which waits for its last thread. Parts are whole
// segments, of which a KV head has 32 here: where threads are so many that they get few of them
// each (32 KV heads / threads), the step is not within 5 %.
struct Limit {
  int threads;
  double step;
};
struct Case {
  int kv_heads;
  Limit limits[3];
};

class Balance : public testing::TestWithParam<Case> {};

TEST_P(Balance, OfTheThreads) {
  const int kv_heads = GetParam().kv_heads;
  constexpr int kGroup = 3;
  Layer layer({kGroup * kv_heads, kv_heads, 32, 32});
  for (const Limit& limit : GetParam().limits) {
    double most[kPhases] = {}, mean[kPhases] = {};
    for (int query = 0; query < kQueries; ++query) {
      const DecodeStep& step = layer.Run(query, limit.threads);
      for (int i = 0; i < kPhases; ++i) {
        const auto phase = static_cast<Phase>(i);
        const std::vector<int64_t> units = step.UnitBytes(phase);
        most[i] +=
            static_cast<double>(phase == Phase::kCombine ? MostGiven(units, limit.threads)
                                                         : MostClaimed(units, limit.threads));
        mean[i] += static_cast<double>(std::accumulate(units.begin(), units.end(), int64_t{0})) /
                   limit.threads;
      }
    }
    const double step =
        std::accumulate(most, most + kPhases, 0.0) / std::accumulate(mean, mean + kPhases, 0.0);
    std::printf("%2d KV heads, %2d threads: step %.3f;", kv_heads, limit.threads, step);
    for (int i = 0; i < kPhases; ++i)
      std::printf("  %.3f of %.1f KB", most[i] / mean[i], mean[i] / kQueries / 1e3);
    std::printf("\n");
    EXPECT_LE(step, limit.step) << kv_heads << " KV heads, " << limit.threads << " threads";
  }
}

INSTANTIATE_TEST_SUITE_P(KvHeads, Balance,
                         testing::Values(Case{3, {{8, 1.20}, {16, 1.45}, {64, 3.1}}},
                                         Case{8, {{8, 1.05}, {16, 1.15}, {64, 1.7}}},
                                         Case{32, {{8, 1.05}, {16, 1.05}, {64, 1.2}}}),
                         [](const auto& info) { return std::to_string(info.param.kv_heads); });

// Units are all of the work: together what the step says that it read.
TEST(UnitBytes, AddUpToWhatTheStepReads) {
  Layer layer({6, 2, 32, 32});
  for (const int threads : {1, 2, 8}) {
    const DecodeStep& step = layer.Run(0, threads);
    double sum = 0;
    for (const Phase phase : {Phase::kRank, Phase::kBudget, Phase::kSelect, Phase::kAttend}) {
      for (const int64_t unit : step.UnitBytes(phase)) sum += static_cast<double>(unit);
    }
    // But for empty slots of segments, which are scored, and the numbers of selected rows.
    const auto read = static_cast<double>(step.stats().bytes_read);
    EXPECT_NEAR(sum, read, read / 10) << threads;
  }
}

}  // namespace
}  // namespace tactic
