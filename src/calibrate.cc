#include "tactic/calibrate.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include "src/check_request.h"
#include "src/crossover.h"
#include "src/planted_layer.h"
#include "tactic/decode.h"
#include "tactic/isa.h"
#include "tactic/sequence_index.h"
#include "tactic/thread_team.h"

namespace tactic {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kQueries = 4;
constexpr int kRepeats = 5;  // of each query
constexpr int kFewestRepeats = 2;
// Share of all time that the steps of one length may take before their repeats are cut short.
constexpr double kStepsShare = 0.125;
// The mode wins when its time is at most this share of dense's: less cannot be told apart, and
// dense is exact. From kClearWin on longer sequences need not be tried.
constexpr double kWin = 0.97;
constexpr double kClearWin = 0.75;
// What the next length costs: it has to be filled and indexed with as many tokens as there are.
constexpr double kGrowth = 2;

// Between two visits to a layer a model reads all its weights, so that no row is left in L2.
class CacheSweep {
 public:
  explicit CacheSweep(int threads)
      : share_(std::max(kBytes / static_cast<size_t>(threads), kLeast)), memory_(kBytes, 1) {}
  void Run(int thread) {
    const size_t begin = static_cast<size_t>(thread) * share_ % kBytes;
    const size_t end = std::min(begin + share_, kBytes);
    constexpr size_t kLine = 64;
    uint32_t sum = 0;
    for (size_t i = begin; i < end; i += kLine) sum += memory_[i];
    sum_.fetch_add(sum, std::memory_order_relaxed);
  }

 private:
  static constexpr size_t kBytes = size_t{32} << 20;
  static constexpr size_t kLeast = size_t{4} << 20;  // more than any L2
  const size_t share_;
  std::vector<uint8_t> memory_;
  std::atomic<uint32_t> sum_ = 0;  // so that no compiler leaves the reads out
};

// A layer that grows, and steps over it: dense ones are those of the same mode for a sequence below
// dense_below.
class Rig {
 public:
  explicit Rig(const CalibrationRequest& request, ThreadTeam* team)
      : request_(request),
        team_(team),
        layer_(request.shape, request.key_type, request.value_type, kLongestCalibrated, kQueries),
        index_(request.shape, request.options),
        sweep_(team->size()),
        cells_(kLongestCalibrated),
        out_(static_cast<size_t>(request.shape.q_heads * request.shape.value_dim)) {
    std::iota(cells_.begin(), cells_.end(), 0u);
  }

  Status Measure(CalibrationPoint* point) {
    Grow(point->tokens);
    double least[2][kQueries];
    for (auto& of : least) std::fill_n(of, kQueries, std::numeric_limits<double>::infinity());
    const Clock::time_point begin = Clock::now();
    // The first turn grows the buffers.
    for (int turn = -1; turn < kRepeats; ++turn) {
      for (int query = 0; query < (turn < 0 ? 1 : kQueries); ++query) {
        for (const bool dense : {true, false}) {
          double seconds = 0;
          TACTIC_RETURN_IF_ERROR(Step(query, dense, &seconds));
          // The least: whatever else ran on the machine only adds.
          if (turn >= 0) least[dense][query] = std::min(least[dense][query], seconds);
        }
      }
      const double spent = std::chrono::duration<double>(Clock::now() - begin).count();
      if (turn + 1 >= kFewestRepeats && spent > kStepsShare * request_.seconds) break;
    }
    point->dense = std::accumulate(least[true], least[true] + kQueries, 0.0) / kQueries;
    point->mode = std::accumulate(least[false], least[false] + kQueries, 0.0) / kQueries;
    return Status::Ok();
  }

 private:
  void Grow(int64_t tokens) {
    ForAll(request_.shape.kv_heads, [&](int h) { layer_.Grow(h, tokens); });
    if (index_.size() == 0) index_.SetQueryNorms(layer_.QueryNorms());
    index_.Append(tokens - index_.size());
    ForAll(index_.PlanBuild(),
           [&](int unit) { index_.BuildUnit(unit, layer_.keys(), layer_.values(), cells_); });
  }

  // f(0) .. f(units - 1) on all threads, which may run out of memory but must not throw.
  template <class F>
  void ForAll(int units, const F& f) {
    std::atomic<int> next = 0;
    std::atomic<bool> failed = false;
    team_->Run([&](int) {
      try {
        for (int unit = next++; unit < units; unit = next++) f(unit);
      } catch (const std::bad_alloc&) {
        failed = true;
      }
    });
    if (failed) throw std::bad_alloc();
  }

  Status Step(int query, bool dense, double* seconds) {
    const LayerShape& shape = request_.shape;
    const DecodeRequest request = {layer_.Query(query),
                                   static_cast<size_t>(shape.head_dim),
                                   layer_.keys(),
                                   layer_.values(),
                                   std::span(cells_).first(static_cast<size_t>(index_.size())),
                                   &index_,
                                   out_.data(),
                                   static_cast<size_t>(shape.value_dim)};
    Options options = request_.options;
    options.dense_below = dense ? std::numeric_limits<int>::max() : 0;
    DecodeStep& step = steps_[dense];
    Status planned;
    // In one go, as an engine's threads are awake between the nodes of a graph.
    team_->Run([&](int thread) {
      sweep_.Run(thread);
      team_->Barrier();
      const Clock::time_point begin = Clock::now();
      if (thread == 0) {
        planned =
            step.Plan(shape, options, {layer_.scale(), 0, false}, {&request, 1}, team_->size());
      }
      team_->Barrier();
      for (int phase = 0; phase < kPhases && planned.ok(); ++phase) {
        step.RunPhase(static_cast<Phase>(phase), thread);
        team_->Barrier();
      }
      if (thread == 0) *seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    });
    return planned;
  }

  const CalibrationRequest& request_;
  ThreadTeam* team_;
  PlantedLayer layer_;
  SequenceIndex index_;
  CacheSweep sweep_;
  std::vector<uint32_t> cells_;
  std::vector<float> out_;
  DecodeStep steps_[2];
};

Status Check(const CalibrationRequest& request) {
  TACTIC_RETURN_IF_ERROR(IsaStatus());
  TACTIC_RETURN_IF_ERROR(request.shape.Validate());
  TACTIC_RETURN_IF_ERROR(request.options.Validate());
  TACTIC_RETURN_IF_ERROR(CheckThreads(request.threads));
  if (request.options.mode == Mode::kDense) {
    return Status::InvalidArgument("mode is dense; expected one that selects: paper or tactic");
  }
  if (!(request.seconds > 0)) {
    return Status::InvalidArgument("seconds is " + std::to_string(request.seconds) +
                                   "; expected a positive number");
  }
  const uint8_t row = 0;  // there are no rows yet: their types are what is checked
  TACTIC_RETURN_IF_ERROR(CheckRows("keys", {&row, request.key_type}, request.shape.head_dim));
  return CheckRows("values", {&row, request.value_type}, request.shape.value_dim);
}

}  // namespace

Status FindCrossover(const CrossoverSearch& search, Calibration* result) {
  *result = {};
  const double begin = search.now();
  for (int64_t tokens = search.first; tokens <= search.last; tokens *= 2) {
    const double start = search.now();
    CalibrationPoint point = {tokens, 0, 0};
    TACTIC_RETURN_IF_ERROR(search.measure(&point));
    result->points.push_back(point);
    if (!(point.mode <= kWin * point.dense)) {
      result->found = false;
    } else if (!result->found) {
      result->found = true;
      result->tokens = tokens;
    }
    if (point.mode <= kClearWin * point.dense) break;
    const double end = search.now();
    if (end - begin + kGrowth * (end - start) > search.seconds) break;
  }
  if (!result->found) result->tokens = 2 * result->points.back().tokens;
  return Status::Ok();
}

Status Calibrate(const CalibrationRequest& request, Calibration* calibration) {
  TACTIC_RETURN_IF_ERROR(Check(request));
  std::unique_ptr<ThreadTeam> team;
  TACTIC_RETURN_IF_ERROR(ThreadTeam::Create(request.threads, &team));
  const Clock::time_point begin = Clock::now();
  try {
    Rig rig(request, team.get());
    // Below, its fit has too few ranks.
    constexpr int64_t kShortestPaper = 1024;
    return FindCrossover(
        {request.options.mode == Mode::kPaper ? kShortestPaper : kShortestCalibrated,
         kLongestCalibrated, request.seconds,
         [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); },
         [&](CalibrationPoint* point) { return rig.Measure(point); }},
        calibration);
  } catch (const std::bad_alloc&) {
    return Status::ResourceExhausted("there is no memory for the calibration's layer of " +
                                     std::to_string(kLongestCalibrated) + " tokens");
  }
}

}  // namespace tactic
