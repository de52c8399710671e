// Units of work of mode tactic: parts of KV heads of requests, claimed by threads, and who comes
// last.
//
// What follows a stage for one KV head (a threshold after all its parts were scanned) is done by
// the thread that finishes the last of its units, so that no thread waits and no stage is added.
#ifndef TACTIC_SRC_CODED_UNITS_H_
#define TACTIC_SRC_CODED_UNITS_H_

#include <atomic>

#include "src/step.h"

namespace tactic {

enum CodedStage { kFilterUnits = 0, kScanUnits = 1, kVerifyUnits = 2, kTailUnits = 3 };

// Calls f(request, kv_head, part) for the parts that this thread gets hold of, KV head by KV head.
template <class F>
void ClaimParts(Step& step, CodedStage stage, const F& f) {
  std::atomic<int>& next = step.coded.next[stage];
  int unit = next.fetch_add(1, std::memory_order_relaxed);
  int first = 0;  // number of the request's first unit
  for (int request = 0; request < step.num_requests(); ++request) {
    const RequestPlan& r = step.requests[request];
    const int units = r.coded.empty() ? 0 : r.parts * step.shape.kv_heads;
    while (unit < first + units) {
      f(request, (unit - first) / r.parts, (unit - first) % r.parts);
      unit = next.fetch_add(1, std::memory_order_relaxed);
    }
    first += units;
  }
}

// Counts a unit of a KV head as done; true for the last one, which sees what all others wrote.
inline bool LastUnit(Step& step, CodedStage stage, int request, int kv_head) {
  CodedGroup& group = step.coded.groups[step.Pair(request, kv_head)];
  return group.waiting[stage].fetch_sub(1, std::memory_order_acq_rel) == 1;
}

// Where the request's arrays begin.
inline cpu::KeyLevel* Keys(Step& step, const RequestPlan& r, int q_head) {
  return step.coded.keys.data() + r.first_key * step.shape.q_heads + q_head * r.keys;
}
inline float* Logits(Step& step, const RequestPlan& r, int q_head) {
  return step.coded.logits.data() + r.first_key * step.shape.q_heads + q_head * r.keys;
}
inline cpu::KeyLevel* RowKeys(Step& step, const RequestPlan& r, int q_head) {
  return step.coded.row_keys.data() + r.first_key * step.shape.q_heads + q_head * r.keys;
}
inline uint32_t* Numbers(Step& step, const RequestPlan& r, int kv_head) {
  return step.coded.numbers.data() + r.first_key * step.shape.kv_heads + kv_head * r.keys;
}
inline uint64_t* Read(Step& step, const RequestPlan& r, int kv_head) {
  return step.coded.read.data() + (r.first_key * step.shape.kv_heads + kv_head * r.keys) / kKeyUnit;
}
inline uint32_t* Blocks(Step& step, const RequestPlan& r, int kv_head) {
  return step.coded.blocks.data() +
         (r.first_key * step.shape.kv_heads + kv_head * r.keys) / kCodeBlock;
}
inline uint32_t& BlockCount(Step& step, int request, int kv_head, int part) {
  return step.coded.block_counts[step.Pair(request, kv_head) * step.max_parts + part];
}
inline float* Masses(Step& step, const RequestPlan& r, int q_head) {
  return step.coded.masses.data() + r.first_cluster * step.shape.q_heads + q_head * r.clusters;
}
inline uint8_t* Kept(Step& step, const RequestPlan& r, int kv_head) {
  return step.coded.kept.data() + r.first_cluster * step.shape.kv_heads + kv_head * r.clusters;
}
inline CodedHead& HeadOf(Step& step, int request, int q_head) {
  return step.coded.heads[step.Query(request, q_head)];
}
inline CodedGroup& GroupOf(Step& step, int request, int kv_head) {
  return step.coded.groups[step.Pair(request, kv_head)];
}
// Number of query head `g` of a KV head's group in the arrays by part.
inline int64_t PartSlot(const Step& step, int request, int kv_head, int part, int g) {
  return (step.Pair(request, kv_head) * step.max_parts + part) * step.group() + g;
}
// Keys of a part: [begin, end) in the request's arrays.
inline Share PartKeys(const Step& step, const RequestPlan& r, int part) {
  Share keys = step.Part(r, part);
  const auto at = [&r](int64_t segment) {
    return segment < std::ssize(r.coded) ? r.coded[segment].first_key : r.keys;
  };
  keys.begin = at(keys.begin);
  keys.end = at(keys.end);
  return keys;
}

}  // namespace tactic

#endif  // TACTIC_SRC_CODED_UNITS_H_
