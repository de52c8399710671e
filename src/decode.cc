// The decode step: lays out the work of one layer and runs the stages. The only file that names
// them all.
#include "tactic/decode.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "src/attend.h"
#include "src/budget_paper.h"
#include "src/check.h"
#include "src/check_request.h"
#include "src/segment.h"
#include "src/step.h"
#include "src/work_units.h"
#include "tactic/isa.h"

namespace tactic {
namespace {

// Shares of rows per thread. Four bound the wait for a core of half the speed to an eighth of the
// work; more cost states.
constexpr int kChunksPerThread = 4;

Status CheckRequest(const LayerShape& shape, const Options& options, const DecodeRequest& request) {
  if (request.q == nullptr || request.out == nullptr) {
    return Status::InvalidArgument("q or out is null; expected [q_heads] rows each");
  }
  if (shape.q_heads > 1) {
    TACTIC_RETURN_IF_ERROR(
        CheckStride("q_stride", request.q_stride, static_cast<size_t>(shape.head_dim)));
    TACTIC_RETURN_IF_ERROR(
        CheckStride("out_stride", request.out_stride, static_cast<size_t>(shape.value_dim)));
  }
  TACTIC_RETURN_IF_ERROR(CheckRows("keys", request.keys, shape.head_dim));
  TACTIC_RETURN_IF_ERROR(CheckRows("values", request.values, shape.value_dim));
  if (request.index == nullptr) return Status::Ok();
  if (!(request.index->shape() == shape)) {
    return Status::InvalidArgument("index belongs to a layer of another shape");
  }
  if (std::ssize(request.cells) > request.index->size()) {
    return Status::InvalidArgument("cells has " + std::to_string(request.cells.size()) +
                                   " positions; expected at most the index's " +
                                   std::to_string(request.index->size()));
  }
  const Options& built = request.index->options();
  if (options.mode != Mode::kDense && built.mode != options.mode) {
    return Status::InvalidArgument(std::string("index was built for mode ") + ModeName(built.mode) +
                                   "; expected " + ModeName(options.mode));
  }
  if (built.sinks != options.sinks || built.recent != options.recent ||
      built.cluster_size != options.cluster_size || built.MaxSegment() != options.MaxSegment() ||
      built.index != options.index || built.bits != options.bits) {
    return Status::InvalidArgument(
        "index was built with other values of sinks, recent, cluster_size, segment_size, index or "
        "bits");
  }
  return Status::Ok();
}

// Appends the cells that `r` reads whatever the query: those of no usable segment's clusters.
void AppendForced(const RequestPlan& r, std::vector<uint32_t>* out) {
  int64_t covered = 0;
  const auto append = [&](int64_t end) {
    for (; covered < end; ++covered) out->push_back(r.request.cells[covered]);
  };
  for (const auto& segment : r.segments) {
    if (!segment) continue;
    append(segment->first());
    covered = segment->end();
  }
  for (const CodedSegment& coded : r.coded) {
    append(coded.segment->first());
    covered = coded.segment->first() + coded.tokens;
  }
  append(std::ssize(r.request.cells));
}

// Appends the segments that a request of mode tactic with `tokens` visible positions uses; the keys
// of those it uses already are numbered below `*keys`.
void AppendCoded(const SequenceIndex& index, int64_t tokens, std::vector<CodedSegment>* out,
                 int64_t* keys) {
  const auto add = [&](const Segment& segment, int clusters, int64_t members, bool pages) {
    out->push_back({&segment, clusters, members, *keys, pages});
    // Lists of keys are written in whole blocks.
    *keys += (members + kCodeBlock + kKeyUnit - 1) / kKeyUnit * kKeyUnit;
  };
  const bool pages = index.options().index == IndexKind::kPages;
  int64_t closed = 0;  // end of the closed segments
  for (int j = 0; j < index.UsableSegments(tokens); ++j) {
    const Segment* segment = index.segments()[j].get();
    if (segment != nullptr) closed = segment->end();
    if (segment == nullptr || segment->always()) continue;
    add(*segment, index.slots(), segment->end() - segment->first(), pages);
  }
  const int open = index.UsablePages(tokens);
  // An open segment that was built while the sequence was shorter may overlap with a closed one.
  if (open > 0 && index.open()->first() >= closed && !index.open()->always())
    add(*index.open(), open, int64_t{open} * Options::kPage, true);
}

template <class T>
void Grow(std::vector<T>* buffer, int64_t size) {
  if (std::ssize(*buffer) < size) buffer->resize(static_cast<size_t>(size));
}

// Memory of the buffers.
template <class... T>
size_t Bytes(const std::vector<T>&... buffers) {
  return (... + (buffers.capacity() * sizeof(T)));
}

// Buffers of mode tactic.
void PlanCoded(Step& step, int64_t clusters, int64_t keys) {
  CodedStep& coded = step.coded;
  const LayerShape& shape = step.shape;
  const int64_t queries = int64_t{step.num_requests()} * shape.q_heads;
  const int64_t pairs = int64_t{step.num_requests()} * shape.kv_heads;
  coded.unverified = 0;
  coded.heads.assign(static_cast<size_t>(queries), CodedHead());
  if (coded.group_capacity < pairs) {
    coded.groups = std::make_unique<CodedGroup[]>(static_cast<size_t>(pairs));
    coded.group_capacity = pairs;
  }
  for (int request = 0; request < step.num_requests(); ++request) {
    const RequestPlan& r = step.requests[request];
    for (int h = 0; h < shape.kv_heads; ++h) {
      CodedGroup& group = coded.groups[step.Pair(request, h)];
      for (std::atomic<int>& waiting : group.waiting) waiting = r.parts;
      group.waiting[0] += step.chunks;
      group.round_next = r.parts;
      group.rounds = 0;
      coded.unverified += r.coded.empty() ? 0 : 1;
      group.everything = false;
      group.scored = 0;
      group.scanned = 0;
      group.means = 0;
    }
  }
  Grow(&coded.packed, queries * (CodeQueryDim(shape.head_dim) / 4));
  Grow(&coded.masses, clusters * shape.q_heads);
  Grow(&coded.tokens, clusters * shape.q_heads);
  Grow(&coded.floors, clusters * shape.q_heads);
  Grow(&coded.kept, clusters * shape.kv_heads);
  // A vector of any member may read past the last key.
  Grow(&coded.keys, keys * shape.q_heads + kKeyUnit);
  Grow(&coded.logits, keys * shape.q_heads);
  Grow(&coded.row_keys, keys * shape.q_heads);
  Grow(&coded.numbers, keys * shape.kv_heads);
  Grow(&coded.read, keys * shape.kv_heads / kKeyUnit + 1);
  Grow(&coded.blocks, keys * shape.kv_heads / kCodeBlock);
  Grow(&coded.block_counts, pairs * step.max_parts);
  Grow(&coded.bins, pairs * step.max_parts * shape.group());
  Grow(&coded.sums, pairs * step.max_parts * shape.group());
  Grow(&coded.part_masses, pairs * step.max_parts * shape.group());
}

}  // namespace

class DecodeStep::Impl : public Step {};

DecodeStep::DecodeStep() : impl_(std::make_unique<Impl>()) {}
DecodeStep::~DecodeStep() = default;
DecodeStep::DecodeStep(DecodeStep&&) noexcept = default;
DecodeStep& DecodeStep::operator=(DecodeStep&&) noexcept = default;

Status DecodeStep::Plan(const LayerShape& shape, const Options& options, const DecodeParams& params,
                        std::span<const DecodeRequest> requests, int threads) {
  TACTIC_RETURN_IF_ERROR(IsaStatus());
  TACTIC_RETURN_IF_ERROR(shape.Validate());
  TACTIC_RETURN_IF_ERROR(options.Validate());
  TACTIC_RETURN_IF_ERROR(CheckThreads(threads));
  TACTIC_RETURN_IF_ERROR(CheckParams(params));
  for (size_t i = 0; i < requests.size(); ++i) {
    Status status = CheckRequest(shape, options, requests[i]);
    if (!status.ok())
      return Status(status.code(), "request " + std::to_string(i) + ": " + status.message());
  }

  Step& step = *impl_;
  step.shape = shape;
  step.options = options;
  step.params = params;
  step.threads = threads;
  step.chunks = threads == 1 ? 1 : kChunksPerThread * threads;
  step.next_forced = 0;
  step.next_selected = 0;
  for (std::atomic<int>& next : step.coded.next) next = 0;
  step.requests.clear();
  step.forced_cells.clear();
  step.coded.segments.clear();
  step.max_parts = 1;
  int64_t clusters = 0;
  int64_t rows = 0;
  int64_t keys = 0;
  int64_t most_clusters = 0;
  int64_t most_tokens = 0;
  // Units per thread: enough for an even split of what differs between KV heads and segments. More
  // threads wait for the last unit of one: with 32 instead of 8, the thread with most has 4 instead
  // of 8 % more than the mean (8 threads, 8 KV heads, 32K tokens; balance_test.cc).
  constexpr int kFewThreads = 2;
  const int64_t units = (options.mode != Mode::kTactic ? 4
                         : threads <= kFewThreads      ? 8
                                                       : 32) *
                        int64_t{threads};
  for (const DecodeRequest& request : requests) {
    RequestPlan r;
    r.request = request;
    const int64_t tokens = std::ssize(request.cells);
    const bool indexed = request.index != nullptr && tokens >= options.dense_below;
    if (indexed && options.mode == Mode::kPaper) {
      r.segments = request.index->segments().first(
          static_cast<size_t>(request.index->UsableSegments(tokens)));
    }
    if (indexed && options.mode == Mode::kTactic) {
      const size_t before = step.coded.segments.size();
      AppendCoded(*request.index, tokens, &step.coded.segments, &r.keys);
      r.coded = std::span(step.coded.segments).subspan(before);  // its length; see below
    }
    if (!r.dense()) {
      step.slots = request.index->slots();
      r.clusters = r.num_segments() * step.slots;
      r.first_cluster = clusters;
      clusters += r.clusters;
      r.row_capacity = r.coded.empty() ? r.segments.back()->end() : r.keys;
      r.first_key = keys;
      keys += r.keys;
      r.first_row = rows;
      rows += r.row_capacity * shape.kv_heads;
      const int64_t pairs = std::ssize(requests) * shape.kv_heads;
      r.parts =
          static_cast<int>(std::clamp<int64_t>((units + pairs - 1) / pairs, 1, r.num_segments()));
      step.max_parts = std::max(step.max_parts, r.parts);
      most_clusters = std::max(most_clusters, r.clusters);
      most_tokens = std::max(most_tokens, tokens);
    }
    step.requests.push_back(r);
  }
  // Spans into forced_cells in a second pass, once it has stopped growing; the first keeps their
  // lengths.
  size_t first_coded = 0;
  for (RequestPlan& r : step.requests) {
    r.coded = std::span(step.coded.segments).subspan(first_coded, r.coded.size());
    first_coded += r.coded.size();
    const size_t begin = step.forced_cells.size();
    if (!r.dense()) AppendForced(r, &step.forced_cells);
    r.forced = std::span(step.forced_cells).subspan(begin);
  }
  size_t begin = 0;
  for (RequestPlan& r : step.requests) {
    const size_t count = r.forced.size();
    r.forced = r.dense() ? r.request.cells : std::span(step.forced_cells).subspan(begin, count);
    begin += count;
  }

  const int64_t pairs = std::ssize(requests) * shape.kv_heads;
  Grow(&step.scores, clusters * shape.q_heads);
  Grow(&step.taken, clusters * shape.q_heads);
  Grow(&step.sizes, clusters * shape.kv_heads);
  Grow(&step.rows, rows);
  Grow(&step.counts, pairs * step.max_parts);
  Grow(&step.used, pairs * step.num_slots());
  // A caller may leave out phases that have nothing to do, so what they used last time must not
  // count.
  std::fill(step.used.begin(), step.used.end(), uint8_t{0});
  Grow(&step.states,
       pairs * step.num_slots() * shape.group() * static_cast<int64_t>(step.StateStride()));
  step.reports.assign(requests.size() * shape.q_heads, HeadReport());
  step.own_lse.assign(requests.size() * shape.q_heads, 0.0);
  step.samples.assign(requests.size() * shape.q_heads, 0u);
  step.centroids.assign(requests.size() * shape.kv_heads, 0);
  if (options.mode == Mode::kTactic) PlanCoded(step, clusters, keys);
  int64_t samples = 0;
  int64_t head = 0;
  if (most_tokens > 0 && options.mode == Mode::kPaper) {
    const CurvePlan plan = CurvePlan::Make(
        std::max<int64_t>(most_tokens, 4 * CurvePlan::kSmallestWindow), options.head_share,
        options.near_window, options.far_window, options.window_share);
    samples = plan.Samples();
    head = plan.head;
  }
  // Mode tactic: the sizes of a segment's clusters, and what a group does not read of each.
  if (options.mode == Mode::kTactic) samples = int64_t{step.slots + 1} * shape.group();
  int64_t scores = 0;
  for (const CodedSegment& segment : step.coded.segments)
    scores = std::max(scores, (segment.tokens + 2 * kCodeBlock) * shape.group());
  if (std::ssize(step.scratch) < threads) step.scratch.resize(threads);
  for (Step::Scratch& scratch : step.scratch) {
    Grow(&scratch.order, most_clusters);
    Grow(&scratch.bucket_of, most_clusters);
    Grow(&scratch.cells, samples);
    Grow(&scratch.logits, samples);
    Grow(&scratch.scores, scores);
    Grow(&scratch.prefix, head);
  }
  return Status::Ok();
}

void DecodeStep::RunPhase(Phase phase, int thread) {
  const bool coded = impl_->options.mode == Mode::kTactic;
  switch (phase) {
    case Phase::kRank:
      return coded ? FilterStage(*impl_, thread) : RankStage(*impl_, thread);
    case Phase::kBudget:
      return coded ? ScanStage(*impl_, thread) : BudgetStage(*impl_, thread);
    case Phase::kSelect:
      return coded ? VerifyStage(*impl_) : SelectStage(*impl_, thread);
    case Phase::kAttend:
      return coded ? TailStage(*impl_, thread) : AttendStage(*impl_, thread);
    case Phase::kCombine:
      return CombineStage(*impl_, thread);
  }
}

void DecodeStep::Run() {
  TACTIC_CHECK(impl_->threads == 1);
  for (int phase = 0; phase < kPhases; ++phase) RunPhase(static_cast<Phase>(phase), 0);
}

DecodeStats DecodeStep::stats() const {
  Step& step = *impl_;
  DecodeStats stats;
  const LayerShape& shape = step.shape;
  for (int request = 0; request < step.num_requests(); ++request) {
    const RequestPlan& r = step.requests[request];
    const auto key_bytes = static_cast<int64_t>(RowBytes(r.request.keys.type, shape.head_dim));
    const int64_t row_bytes =
        key_bytes + static_cast<int64_t>(RowBytes(r.request.values.type, shape.value_dim));
    const int64_t tokens = std::ssize(r.request.cells);
    stats.rows_dense += tokens * shape.kv_heads;
    stats.bytes_dense += tokens * shape.kv_heads * row_bytes;
    for (int h = 0; h < shape.kv_heads; ++h) {
      const int64_t rows = step.reports[step.Query(request, h * shape.group())].union_rows;
      stats.rows_read += rows;
      stats.bytes_rows += rows * row_bytes;
      const int64_t centroids = step.centroids[step.Pair(request, h)];
      if (r.coded.empty()) {
        stats.bytes_clusters += 2 * centroids * shape.head_dim;
        continue;
      }
      // Centroid, its scale, spreads, size; mean of values and its scale. A row's member number.
      const CodedGroup& group = step.coded.groups[step.Pair(request, h)];
      stats.bytes_clusters += centroids * (shape.head_dim + 2 + Codes::kRuns + 1 + 4);
      stats.bytes_clusters += group.means * (shape.value_dim + 2);
      stats.bytes_codes += group.scanned + 2 * (rows - std::ssize(r.forced));
    }
    for (int h = 0; h < shape.q_heads; ++h)
      stats.bytes_rows += step.samples[step.Query(request, h)] * key_bytes;
  }
  stats.bytes_read = stats.bytes_clusters + stats.bytes_codes + stats.bytes_rows;
  return stats;
}

std::span<const HeadReport> DecodeStep::head_reports() const { return impl_->reports; }

std::vector<uint32_t> DecodeStep::SelectedCells(int request, int kv_head) const {
  Step& step = *impl_;
  const RequestPlan& r = step.requests[request];
  std::vector<uint32_t> chosen(r.forced.begin(), r.forced.end());
  for (int part = 0; part < (r.dense() ? 0 : r.parts); ++part) {
    const std::span<const uint32_t> rows = PartRows(step, request, kv_head, part);
    chosen.insert(chosen.end(), rows.begin(), rows.end());
  }
  // By position: the order of the request's own list.
  std::vector<uint32_t> position_of(
      r.request.cells.empty()
          ? 0
          : 1 + *std::max_element(r.request.cells.begin(), r.request.cells.end()));
  for (size_t p = 0; p < r.request.cells.size(); ++p)
    position_of[r.request.cells[p]] = static_cast<uint32_t>(p);
  std::sort(chosen.begin(), chosen.end(),
            [&](uint32_t a, uint32_t b) { return position_of[a] < position_of[b]; });
  return chosen;
}

std::vector<int64_t> DecodeStep::UnitBytes(Phase phase) const {
  TACTIC_CHECK(impl_->options.mode == Mode::kTactic);
  return WorkUnits(*impl_, phase);
}

size_t DecodeStep::WorkspaceBytes() const {
  const Step& step = *impl_;
  const CodedStep& coded = step.coded;
  size_t bytes = Bytes(step.scores, step.states, step.used, step.taken, step.sizes, step.counts,
                       step.rows, step.forced_cells, coded.segments, coded.heads, coded.packed,
                       coded.masses, coded.tokens, coded.floors, coded.kept, coded.keys,
                       coded.logits, coded.row_keys, coded.numbers, coded.read, coded.blocks,
                       coded.block_counts, coded.bins, coded.sums, coded.part_masses) +
                 static_cast<size_t>(coded.group_capacity) * sizeof(CodedGroup);
  for (const Step::Scratch& s : step.scratch)
    bytes += Bytes(s.order, s.bucket_of, s.cells, s.logits, s.scores, s.prefix);
  return bytes;
}

}  // namespace tactic
