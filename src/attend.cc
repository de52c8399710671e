// Stages attend and combine: exact attention over the lists, then the merge of the threads' states.
#include "src/attend.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/segment.h"

namespace tactic {
namespace {

// Calls f(cells) for every row list of that kind of one KV head.
template <class F>
void ForLists(Step& step, int request, int kv_head, RowKind kind, const F& f) {
  const RequestPlan& r = step.requests[request];
  if (kind == RowKind::kForced) {
    f(r.forced);
  } else if (r.dense()) {
    f(r.request.cells);
  } else {
    for (int part = 0; part < r.parts; ++part) {
      const uint32_t count = step.Counts(request, kv_head)[part];
      if (count == 0) continue;
      const Share segments = step.Part(r, part);
      int64_t first = segments.begin;
      while (!r.segments[first]) ++first;
      f(std::span<const uint32_t>(step.Rows(r, kv_head) + r.segments[first]->first(), count));
    }
  }
}

// Log-sum-exp over every visible key: the denominator of the exact mass. Reads all keys; for measured steps only.
double FullLse(Step& step, const RequestPlan& r, int q_head) {
  constexpr size_t kChunk = 512;
  float logits[kChunk];
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0;
  const std::span<const uint32_t> cells = r.request.cells;
  for (size_t begin = 0; begin < cells.size(); begin += kChunk) {
    const size_t n = std::min(kChunk, cells.size() - begin);
    cpu::ScoreRows(step.Queries(r, q_head, 1), step.Keys(r, q_head / step.group()), cells.data() + begin, n, logits,
                   kChunk);
    const double block = *std::max_element(logits, logits + n);
    if (block > max) {
      sum *= std::exp(max - block);
      max = block;
    }
    for (size_t i = 0; i < n; ++i) sum += std::exp(logits[i] - max);
  }
  return max + std::log(sum);
}

void CombineHead(Step& step, int request, int q_head) {
  const RequestPlan& r = step.requests[request];
  const int kv_head = q_head / step.group();
  const int dim = step.shape.value_dim;
  float total[LayerShape::kMaxDim + 2];
  ClearState(total, dim);
  for (int slot = 0; slot < 2 * step.threads; ++slot) {
    if (!step.Used(request, kv_head, slot)) continue;
    MergeState(step.States(request, kv_head, slot) + (q_head % step.group()) * step.StateStride(), dim, total);
  }
  // No visible row, no output: zero, as an engine gives for a row that is masked throughout.
  const float norm = StateEmpty(total, dim) ? 0.0f : 1.0f / StateSum(total, dim);
  float* out = r.request.out + q_head * r.request.out_stride;
  for (int i = 0; i < dim; ++i) out[i] = total[i] * norm;

  HeadReport& report = step.reports[step.Query(request, q_head)];
  report.union_rows = 0;
  for (RowKind kind : {RowKind::kForced, RowKind::kSelected}) {
    ForLists(step, request, kv_head, kind, [&](std::span<const uint32_t> cells) { report.union_rows += std::ssize(cells); });
  }
  if (r.dense()) report.own_rows = report.union_rows;
  if (!step.params.measure_mass) return;
  if (r.dense()) {
    report.own_mass = report.union_mass = 1;
    return;
  }
  const double full = FullLse(step, r, q_head);
  const double read = StateMax(total, dim) + std::log(static_cast<double>(StateSum(total, dim)));
  report.union_mass = std::min(1.0, std::exp(read - full));
  report.own_mass = std::min(1.0, std::exp(step.own_lse[step.Query(request, q_head)] - full));
}

}  // namespace

void AttendLists(Step& step, int thread, RowKind kind) {
  const int slot = 2 * thread + (kind == RowKind::kForced ? 0 : 1);
  int64_t total = 0;
  for (int request = 0; request < step.num_requests(); ++request) {
    for (int h = 0; h < step.shape.kv_heads; ++h) {
      step.Used(request, h, slot) = 0;
      ForLists(step, request, h, kind, [&](std::span<const uint32_t> cells) { total += std::ssize(cells); });
    }
  }
  const Share share(total, thread, step.threads);
  int64_t row = 0;
  for (int request = 0; request < step.num_requests(); ++request) {
    const RequestPlan& r = step.requests[request];
    for (int h = 0; h < step.shape.kv_heads; ++h) {
      ForLists(step, request, h, kind, [&](std::span<const uint32_t> cells) {
        const int64_t begin = std::max<int64_t>(share.begin - row, 0);
        const int64_t end = std::min<int64_t>(share.end - row, std::ssize(cells));
        row += std::ssize(cells);
        if (begin >= end) return;
        float* states = step.States(request, h, slot);
        if (!step.Used(request, h, slot)) {
          step.Used(request, h, slot) = 1;
          for (int g = 0; g < step.group(); ++g) ClearState(states + g * step.StateStride(), step.shape.value_dim);
        }
        cpu::AttendRows(step.Queries(r, h * step.group(), step.group()), step.Keys(r, h), step.Values(r, h),
                        cells.data() + begin, static_cast<size_t>(end - begin), states, step.StateStride());
      });
    }
  }
}

void AttendStage(Step& step, int thread) { AttendLists(step, thread, RowKind::kSelected); }

void CombineStage(Step& step, int thread) {
  const Share share(static_cast<int64_t>(step.num_requests()) * step.shape.q_heads, thread, step.threads);
  for (int64_t unit = share.begin; unit < share.end; ++unit) {
    CombineHead(step, static_cast<int>(unit / step.shape.q_heads), static_cast<int>(unit % step.shape.q_heads));
  }
}

}  // namespace tactic
