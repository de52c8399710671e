// Exact attention over the forced rows and over the selected lists, then the merge of the threads'
// states.
#include "src/attend.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/coded_units.h"
#include "src/segment.h"

namespace tactic {
namespace {

int64_t SelectedRows(Step& step, int request, int kv_head) {
  const RequestPlan& r = step.requests[request];
  int64_t rows = 0;
  for (int part = 0; part < (r.dense() ? 0 : r.parts); ++part)
    rows += step.Counts(request, kv_head)[part];
  return rows;
}

// The states of `slot`, emptied before their first use.
float* UseStates(Step& step, int request, int kv_head, int slot) {
  float* states = step.States(request, kv_head, slot);
  if (step.Used(request, kv_head, slot)) return states;
  step.Used(request, kv_head, slot) = 1;
  for (int g = 0; g < step.group(); ++g)
    ClearState(states + g * step.StateStride(), step.shape.value_dim);
  return states;
}

// Attends to `cells` for one KV head; `next` comes after them.
void AttendInto(Step& step, int request, int kv_head, int slot, std::span<const uint32_t> cells,
                const cpu::NextRows& next = {}) {
  const RequestPlan& r = step.requests[request];
  float* states = UseStates(step, request, kv_head, slot);
  cpu::AttendRows(step.Queries(r, kv_head * step.group(), step.group()), step.Keys(r, kv_head),
                  step.Values(r, kv_head), cells.data(), cells.size(), states, step.StateStride(),
                  next);
}

// The part of `list`, whose first row has number `first` among all, that lies in `share`.
std::span<const uint32_t> Within(const Share& share, int64_t first,
                                 std::span<const uint32_t> list) {
  const int64_t begin = std::clamp<int64_t>(share.begin - first, 0, std::ssize(list));
  const int64_t end = std::clamp<int64_t>(share.end - first, begin, std::ssize(list));
  return list.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
}

// Log-sum-exp over every visible key: the denominator of the exact mass. Reads all keys; for
// measured steps only.
double FullLse(Step& step, const RequestPlan& r, int q_head) {
  constexpr size_t kChunk = 512;
  float logits[kChunk];
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0;
  const std::span<const uint32_t> cells = r.request.cells;
  for (size_t begin = 0; begin < cells.size(); begin += kChunk) {
    const size_t n = std::min(kChunk, cells.size() - begin);
    cpu::ScoreRows(step.Queries(r, q_head, 1), step.Keys(r, q_head / step.group()),
                   cells.data() + begin, n, logits, kChunk);
    const double block = *std::max_element(logits, logits + n);
    if (block > max) {
      sum *= std::exp(max - block);
      max = block;
    }
    for (size_t i = 0; i < n; ++i) sum += std::exp(logits[i] - max);
  }
  return max + std::log(sum);
}

// Elements of the output in `slice`; with the first slice, also what is reported of the head.
void CombineSlice(Step& step, int request, int q_head, int slice) {
  const RequestPlan& r = step.requests[request];
  const int kv_head = q_head / step.group();
  const int dim = step.shape.value_dim;
  const Share share(dim, slice, step.CombineSlices());
  const auto begin = static_cast<int>(share.begin), end = static_cast<int>(share.end);
  float total[LayerShape::kMaxDim + 2];
  ClearState(total, dim);
  const auto merge = [&](int first_slot, int end_slot) {
    for (int slot = first_slot; slot < end_slot; ++slot) {
      if (!step.Used(request, kv_head, slot)) continue;
      MergeState(step.States(request, kv_head, slot) + (q_head % step.group()) * step.StateStride(),
                 dim, begin, end, total);
    }
  };
  merge(0, 2 * step.chunks);
  const double read = StateMax(total, dim) + std::log(static_cast<double>(StateSum(total, dim)));
  merge(2 * step.chunks, step.num_slots());  // what was not read, by its means
  // No visible row, no output: zero, as an engine gives for a row that is masked throughout.
  const float norm = StateEmpty(total, dim) ? 0.0f : 1.0f / StateSum(total, dim);
  float* out = r.request.out + q_head * r.request.out_stride;
  for (int i = begin; i < end; ++i) out[i] = total[i] * norm;
  if (slice > 0) return;

  HeadReport& report = step.reports[step.Query(request, q_head)];
  report.union_rows = std::ssize(r.forced) + SelectedRows(step, request, kv_head);
  if (r.dense()) {
    report.own_rows = report.union_rows;
    if (step.options.mode == Mode::kTactic) report.p_hat = 1;
  }
  if (q_head % step.group() == 0) {
    int64_t& centroids = step.centroids[step.Pair(request, kv_head)];  // 0 from Plan
    for (const auto& segment : r.segments) {
      if (segment) centroids += segment->head(kv_head).count;
    }
    if (!r.coded.empty()) centroids = GroupOf(step, request, kv_head).scored;
  }
  if (!step.params.measure_mass) return;
  if (r.dense()) {
    report.own_mass = report.union_mass = 1;
    return;
  }
  const double full = FullLse(step, r, q_head);
  // Rounding aside at most 1; in this order of arguments a NaN stays.
  report.union_mass = std::min(std::exp(read - full), 1.0);
  report.own_mass = std::min(std::exp(step.own_lse[step.Query(request, q_head)] - full), 1.0);
}

// KV head kv_head's share of the rows of `cells`, whose turn it is after as many others: of all
// heads' rows in the order of memory, which reads faster than a head's own. Null where they do not
// lie one after the other.
const uint8_t* NextShare(const RowsView& rows, int dim, int kv_heads, int kv_head,
                         std::span<const uint32_t> cells) {
  const size_t bytes = RowBytes(rows.type, static_cast<size_t>(dim));
  if (cells.empty() || cells.back() - cells.front() != cells.size() - 1) return nullptr;
  const size_t first = cells.front() * rows.row_stride;
  if (rows.row_stride == bytes) return rows.Head(kv_head) + first;
  if (rows.head_stride != bytes || rows.row_stride != bytes * static_cast<size_t>(kv_heads))
    return nullptr;
  return rows.data + first + static_cast<size_t>(kv_head) * cells.size() * bytes;
}

void AttendForcedShare(Step& step, int chunk) {
  const int slot = 2 * chunk;
  int64_t total = 0;
  for (int request = 0; request < step.num_requests(); ++request) {
    total += std::ssize(step.requests[request].forced);
  }
  const int chunks = ForcedChunks(step, total);
  if (chunk >= chunks) return;
  const Share share(total, chunk, chunks);
  int64_t row = 0;
  for (int request = 0; request < step.num_requests(); ++request) {
    const std::span<const uint32_t> forced = step.requests[request].forced;
    std::span<const uint32_t> mine = Within(share, row, forced);
    row += std::ssize(forced);
    const RowsView& keys = step.requests[request].request.keys;
    const RowsView& values = step.requests[request].request.values;
    const size_t cells = CellBlock(keys.row_stride + values.row_stride);
    while (!mine.empty()) {
      const auto block = mine.first(std::min(cells, mine.size()));
      mine = mine.subspan(block.size());
      const auto next = mine.first(mine.size() < block.size() ? 0 : block.size());
      const LayerShape& shape = step.shape;
      for (int h = 0; h < shape.kv_heads; ++h) {
        AttendInto(step, request, h, slot, block,
                   {NextShare(keys, shape.head_dim, shape.kv_heads, h, next),
                    NextShare(values, shape.value_dim, shape.kv_heads, h, next)});
      }
    }
  }
}

// `attend` adds a stretch of a part's rows, of which the first is number `from`, to a slot's
// states.
template <class F>
void AttendSelectedChunk(Step& step, int chunk, const F& attend) {
  const int slot = 2 * chunk + 1;
  int64_t total = 0;
  for (int request = 0; request < step.num_requests(); ++request) {
    for (int h = 0; h < step.shape.kv_heads; ++h) {
      total += SelectedRows(step, request, h);
    }
  }
  const Share share(total, chunk, step.chunks);
  int64_t row = 0;
  for (int request = 0; request < step.num_requests(); ++request) {
    const RequestPlan& r = step.requests[request];
    for (int h = 0; h < step.shape.kv_heads; ++h) {
      for (int part = 0; part < (r.dense() ? 0 : r.parts); ++part) {
        const std::span<const uint32_t> rows = PartRows(step, request, h, part);
        const std::span<const uint32_t> mine = Within(share, row, rows);
        row += std::ssize(rows);
        if (!mine.empty()) attend(request, h, part, slot, mine.data() - rows.data(), mine);
      }
    }
  }
}

// The next chunk that no thread has claimed yet, or step.chunks.
int ClaimChunk(const Step& step, std::atomic<int>& next) {
  return std::min(next.fetch_add(1, std::memory_order_relaxed), step.chunks);
}

template <class F>
void AttendSelected(Step& step, const F& attend) {
  for (int chunk = ClaimChunk(step, step.next_selected); chunk < step.chunks;
       chunk = ClaimChunk(step, step.next_selected)) {
    AttendSelectedChunk(step, chunk, attend);
  }
}

}  // namespace

std::span<const uint32_t> PartRows(Step& step, int request, int kv_head, int part) {
  const RequestPlan& r = step.requests[request];
  const uint32_t count = step.Counts(request, kv_head)[part];
  if (count == 0) return {};
  const Share segments = step.Part(r, part);
  if (!r.coded.empty()) return {step.Rows(r, kv_head) + r.coded[segments.begin].first_key, count};
  int64_t first = segments.begin;
  while (!r.segments[first]) ++first;
  return {step.Rows(r, kv_head) + r.segments[first]->first(), count};
}

bool AttendForcedChunk(Step& step) {
  const int chunk = ClaimChunk(step, step.next_forced);
  if (chunk == step.chunks) return false;
  AttendForcedShare(step, chunk);
  return true;
}

void AttendStage(Step& step, int) {
  AttendSelected(step, [&](int request, int kv_head, int, int slot, ptrdiff_t,
                           std::span<const uint32_t> cells) {
    AttendInto(step, request, kv_head, slot, cells);
  });
}

void AttendSelectedScored(Step& step) {
  AttendSelected(step, [&](int request, int kv_head, int part, int slot, ptrdiff_t from,
                           std::span<const uint32_t> cells) {
    const RequestPlan& r = step.requests[request];
    const float* logits =
        Logits(step, r, kv_head * step.group()) + PartKeys(step, r, part).begin + from;
    cpu::AttendScored(logits, static_cast<size_t>(r.keys), step.group(), step.Values(r, kv_head),
                      cells.data(), cells.size(), UseStates(step, request, kv_head, slot),
                      step.StateStride());
  });
}

void CombineStage(Step& step, int thread) {
  const int slices = step.CombineSlices();
  const int64_t heads = int64_t{step.num_requests()} * step.shape.q_heads;
  const Share share(heads * slices, thread, step.threads);
  for (int64_t unit = share.begin; unit < share.end; ++unit) {
    const int64_t head = unit / slices;
    CombineSlice(step, static_cast<int>(head / step.shape.q_heads),
                 static_cast<int>(head % step.shape.q_heads), static_cast<int>(unit % slices));
  }
}

}  // namespace tactic
