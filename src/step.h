// Step: the plan and the buffers of one layer's decode step, which its stages fill one after the
// other.
//
// decode.cc lays it out on one thread; then every thread runs its share of each stage (rank,
// budget, select, attend, combine). A stage writes only what its units own and reads only what
// earlier stages wrote. Nothing is allocated after the layout.
#ifndef TACTIC_SRC_STEP_H_
#define TACTIC_SRC_STEP_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "src/coded.h"
#include "src/cpu/kernels.h"
#include "src/softmax_state.h"
#include "tactic/decode.h"

namespace tactic {

// The consecutive share of [0, total) that part `thread` of `threads` has.
struct Share {
  int64_t begin;
  int64_t end;
  Share(int64_t total, int thread, int threads)
      : begin(total * thread / threads), end(total * (thread + 1) / threads) {}
};

// One request and where its data lies in the step's buffers.
struct RequestPlan {
  DecodeRequest request;
  // Usable segments; none for a dense request, whose rows are all forced.
  std::span<const std::shared_ptr<const Segment>> segments;  // mode paper
  std::span<const CodedSegment> coded;                       // mode tactic
  int64_t keys = 0;                                          // of the coded segments, padded
  int64_t first_key = 0;  // of KV head 0, scaled as first_cluster
  int64_t clusters = 0;   // segments * slots
  // Of KV head 0 in sizes, of q head 0 in scores and taken (scaled by heads before).
  int64_t first_cluster = 0;
  int64_t first_row = 0;     // of KV head 0 in rows
  int64_t row_capacity = 0;  // rows per KV head
  // Cells read whatever the query: sinks, recent, unclustered; dense: all.
  std::span<const uint32_t> forced;
  int parts = 1;  // the segments are split in this many runs, units of rank and select
  bool dense() const { return segments.empty() && coded.empty(); }
  int64_t num_segments() const { return std::ssize(coded) + std::ssize(segments); }
};

struct Step {
  LayerShape shape;
  Options options;
  DecodeParams params;
  int threads = 1;
  int slots = 0;
  std::vector<RequestPlan> requests;
  std::vector<uint32_t> forced_cells;  // of all requests, back to back

  // [request][q_head][cluster] resp. [request][kv_head][cluster]
  std::vector<float> scores;
  std::vector<uint32_t> taken;  // members read of every cluster, a prefix of its list
  std::vector<uint32_t> sizes;
  // [request][kv_head][part]: rows selected; the rows themselves at the first position of the part
  std::vector<uint32_t> counts;
  std::vector<uint32_t> rows;
  int max_parts = 1;
  CodedStep coded;  // mode tactic
  // Rows are attended to in `chunks` even shares, which threads claim as they get to them: a slow
  // core takes fewer. Each share has states of its own, so that who did what does not show in the
  // result.
  int chunks = 1;
  std::atomic<int> next_forced = 0;
  std::atomic<int> next_selected = 0;
  // [request][kv_head][num_slots]: forced and selected rows of each chunk, [group] states each;
  // `used` says which were touched
  std::vector<float> states;
  std::vector<uint8_t> used;
  // per thread
  struct Scratch {
    std::vector<uint32_t> order;
    std::vector<uint8_t> bucket_of;
    std::vector<uint32_t> cells;
    std::vector<float> logits;
    std::vector<float> scores;  // [group][keys of a segment]: those of their centroids
    std::vector<double> prefix;
  };
  std::vector<Scratch> scratch;
  // [request][q_head]
  std::vector<HeadReport> reports;
  std::vector<double> own_lse;    // log-sum-exp of the head's own selection; only when measuring
  std::vector<uint32_t> samples;  // keys read for the fit
  // [request][kv_head]: centroids scored. Kept, as all that stats() reports: it may be asked for
  // when the indexes have changed.
  std::vector<int64_t> centroids;

  int group() const { return shape.group(); }
  int num_requests() const { return static_cast<int>(requests.size()); }
  int64_t Pair(int request, int kv_head) const {
    return static_cast<int64_t>(request) * shape.kv_heads + kv_head;
  }
  int64_t Query(int request, int q_head) const {
    return static_cast<int64_t>(request) * shape.q_heads + q_head;
  }

  float* Scores(const RequestPlan& r, int q_head) {
    return scores.data() + r.first_cluster * shape.q_heads + q_head * r.clusters;
  }
  uint32_t* Taken(const RequestPlan& r, int q_head) {
    return taken.data() + r.first_cluster * shape.q_heads + q_head * r.clusters;
  }
  uint32_t* Sizes(const RequestPlan& r, int kv_head) {
    return sizes.data() + r.first_cluster * shape.kv_heads + kv_head * r.clusters;
  }
  uint32_t* Rows(const RequestPlan& r, int kv_head) {
    return rows.data() + r.first_row + kv_head * r.row_capacity;
  }
  uint32_t* Counts(int request, int kv_head) {
    return counts.data() + Pair(request, kv_head) * max_parts;
  }

  // A head's states are merged in so many slices of its elements, when there are more threads than
  // heads: whole cache lines each.
  int CombineSlices() const {
    constexpr int kPerThread = 4;
    constexpr int kLine = 16;  // floats
    const int heads = std::max(1, num_requests() * shape.q_heads);
    return std::clamp(kPerThread * threads / heads, 1, std::max(1, shape.value_dim / kLine));
  }

  size_t StateStride() const { return SoftmaxStateStride(shape.value_dim); }
  // Slot 2 * chunk: forced rows; 2 * chunk + 1: selected rows.
  // Then, in mode tactic, one for the tail of every part.
  int num_slots() const { return 2 * chunks + (options.mode == Mode::kTactic ? max_parts : 0); }
  float* States(int request, int kv_head, int slot) {
    return states.data() +
           ((Pair(request, kv_head) * num_slots() + slot) * group()) * StateStride();
  }
  uint8_t& Used(int request, int kv_head, int slot) {
    return used[Pair(request, kv_head) * num_slots() + slot];
  }

  cpu::QueryHeads Queries(const RequestPlan& r, int first_q_head, int heads) const {
    return {r.request.q + first_q_head * r.request.q_stride, r.request.q_stride, heads,
            params.scale, params.softcap};
  }
  cpu::HeadRows Keys(const RequestPlan& r, int kv_head) const {
    return {r.request.keys.Head(kv_head), r.request.keys.row_stride, r.request.keys.type,
            shape.head_dim};
  }
  cpu::HeadRows Values(const RequestPlan& r, int kv_head) const {
    return {r.request.values.Head(kv_head), r.request.values.row_stride, r.request.values.type,
            shape.value_dim};
  }
  // Segments of a part.
  Share Part(const RequestPlan& r, int part) const { return {r.num_segments(), part, r.parts}; }
};

// Calls f(request, kv_head, part) for thread `thread`'s share of the parts of all requests and KV
// heads.
template <class F>
void ForParts(const Step& step, int thread, const F& f) {
  int64_t units = 0;
  for (const RequestPlan& r : step.requests) {
    units += r.dense() ? 0 : static_cast<int64_t>(r.parts) * step.shape.kv_heads;
  }
  const Share share(units, thread, step.threads);
  int64_t unit = 0;
  for (int request = 0; request < step.num_requests(); ++request) {
    const RequestPlan& r = step.requests[request];
    if (r.dense()) continue;
    for (int h = 0; h < step.shape.kv_heads; ++h) {
      for (int part = 0; part < r.parts; ++part, ++unit) {
        if (unit >= share.begin && unit < share.end) f(request, h, part);
      }
    }
  }
}

// The stages; each runs thread `thread`'s share.
void RankStage(Step& step, int thread);
void BudgetStage(Step& step, int thread);
void SelectStage(Step& step, int thread);
void AttendStage(Step& step, int thread);
void CombineStage(Step& step, int thread);
// The same of mode tactic: score and filter clusters; scan codes and find thresholds; read keys and
// verify; attend to values and add the tail.
void FilterStage(Step& step, int thread);
void ScanStage(Step& step, int thread);
void VerifyStage(Step& step);
void TailStage(Step& step, int thread);

}  // namespace tactic

#endif  // TACTIC_SRC_STEP_H_
