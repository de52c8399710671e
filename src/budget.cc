// Stage budget: per query head, how far down the cluster order it must read to reach the target
// mass (mode paper).
#include <algorithm>
#include <cmath>

#include "src/budget_paper.h"
#include "src/check.h"
#include "src/cluster_order.h"
#include "src/mass.h"
#include "src/segment.h"
#include "src/step.h"

namespace tactic {
namespace {

// Cells of members [begin, end) of cluster `id`, written to `out`; returns its end.
uint32_t* MemberCells(const Step& step, const RequestPlan& r, int kv_head, uint32_t id,
                      uint32_t begin, uint32_t end, uint32_t* out) {
  const Segment& segment = *r.segments[id / step.slots];
  const Clusters& clusters = segment.head(kv_head);
  const uint16_t* members = clusters.members.data() + clusters.starts[id % step.slots];
  const uint32_t* cells = r.request.cells.data() + segment.first();
  for (uint32_t i = begin; i < end; ++i) *out++ = cells[members[i]];
  return out;
}

// Log-sum-exp of logits over the cells that `taken` selects, on top of `mass`: for measured steps
// only.
double SelectedLse(Step& step, const RequestPlan& r, int q_head, Mass mass) {
  const int kv_head = q_head / step.group();
  const uint32_t* taken = step.Taken(r, q_head);
  constexpr uint32_t kChunk = 512;
  uint32_t cells[kChunk];
  float logits[kChunk];
  for (int64_t id = 0; id < r.clusters; ++id) {
    for (uint32_t begin = 0; begin < taken[id]; begin += kChunk) {
      const uint32_t n = std::min(kChunk, taken[id] - begin);
      MemberCells(step, r, kv_head, static_cast<uint32_t>(id), begin, begin + n, cells);
      cpu::ScoreRows(step.Queries(r, q_head, 1), step.Keys(r, kv_head), cells, n, logits, kChunk);
      const float max = *std::max_element(logits, logits + n);
      double sum = 0;
      for (uint32_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(logits[i]) - max);
      mass.Add(max, sum);
    }
  }
  return mass.max + std::log(mass.sum);
}

// The exact exponentials the fit needs: the head's ranks, then the two windows, relative to the
// largest of all logits known. Returns false when one of them is not finite.
bool SampleCurve(Step& step, const RequestPlan& r, int q_head, const CurvePlan& plan,
                 Step::Scratch& scratch, ClusterOrder& order, Mass* forced) {
  const int kv_head = q_head / step.group();
  uint32_t* out = scratch.cells.data();
  const auto visit = [&](uint32_t id, uint32_t begin, uint32_t end) {
    out = MemberCells(step, r, kv_head, id, begin, end, out);
  };
  order.Visit(0, plan.head, visit);
  order.Visit(plan.near.first, plan.near.first + plan.near.width, visit);
  order.Visit(plan.far.first, plan.far.first + plan.far.width, visit);
  const auto n = static_cast<size_t>(plan.Samples());
  TACTIC_CHECK(out == scratch.cells.data() + n);
  float* logits = scratch.logits.data();
  cpu::ScoreRows(step.Queries(r, q_head, 1), step.Keys(r, kv_head), scratch.cells.data(), n, logits,
                 n);
  float max = forced->max;
  for (size_t i = 0; i < n; ++i) {
    if (!std::isfinite(logits[i])) return false;
    max = std::max(max, logits[i]);
  }
  cpu::ExpShifted(logits, n, max);
  forced->sum *= std::exp(static_cast<double>(forced->max) - max);
  forced->max = max;
  return std::isfinite(forced->sum);
}

double Mean(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum / static_cast<double>(n);
}

// Ranks that query head `q_head` reads.
int64_t Budget(Step& step, const RequestPlan& r, int q_head, const Mass& forced,
               Step::Scratch& scratch, ClusterOrder& order, uint32_t* samples) {
  *samples = 0;
  const int64_t n = order.num_tokens();
  if (step.options.target >= 1 || n < 4 * CurvePlan::kSmallestWindow) return n;
  const CurvePlan plan = CurvePlan::Make(n, step.options.head_share, step.options.near_window,
                                         step.options.far_window, step.options.window_share);
  *samples = static_cast<uint32_t>(plan.Samples());
  Mass fixed = forced.sum > 0 ? forced : Mass();
  if (!SampleCurve(step, r, q_head, plan, scratch, order, &fixed)) return n;
  const float* weights = scratch.logits.data();
  double sum = 0;
  for (int64_t i = 0; i < plan.head; ++i) scratch.prefix[i] = sum += weights[i];
  const double near = Mean(weights + plan.head, plan.near.width);
  const double far = Mean(weights + plan.head + plan.near.width, plan.far.width);
  return PrefixForTarget(FitCurve(plan, n, sum, near, far), scratch.prefix.data(), fixed.sum,
                         step.options.target);
}

void BudgetHead(Step& step, int request, int q_head, Step::Scratch& scratch) {
  const RequestPlan& r = step.requests[request];
  HeadReport& report = step.reports[step.Query(request, q_head)];
  uint32_t* taken = step.Taken(r, q_head);
  const uint32_t* sizes = step.Sizes(r, q_head / step.group());
  ClusterOrder order(step.Scores(r, q_head), sizes, static_cast<int>(r.clusters),
                     scratch.order.data(), scratch.bucket_of.data());
  const Mass forced = ForcedMass(step, request, q_head);
  uint32_t samples = 0;
  int64_t selected = 0;
  if (order.ordered()) {
    // A prefix may not end among the members of a cluster that has to be read: which of them is the
    // reason is not known.
    selected =
        std::max(Budget(step, r, q_head, forced, scratch, order, &samples), order.must_read());
    std::fill_n(taken, r.clusters, 0u);
    order.VisitPrefix(selected, [taken](uint32_t id, uint32_t members) { taken[id] = members; });
  } else {  // a NaN query or centroid: read everything, the result is what dense attention gives
    for (int64_t id = 0; id < r.clusters; ++id) selected += taken[id] = sizes[id];
  }
  step.samples[step.Query(request, q_head)] = samples;
  report.own_rows = selected + std::ssize(r.forced);
  if (step.params.measure_mass)
    step.own_lse[step.Query(request, q_head)] = SelectedLse(step, r, q_head, forced);
}

}  // namespace

void BudgetStage(Step& step, int thread) {
  const Share share(static_cast<int64_t>(step.num_requests()) * step.shape.q_heads, thread,
                    step.threads);
  for (int64_t unit = share.begin; unit < share.end; ++unit) {
    const int request = static_cast<int>(unit / step.shape.q_heads);
    if (!step.requests[request].dense()) {
      BudgetHead(step, request, static_cast<int>(unit % step.shape.q_heads), step.scratch[thread]);
    }
  }
}

}  // namespace tactic
