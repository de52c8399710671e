// Mode paper: which clusters of a span are listed, and their rows.
#ifndef TACTIC_SRC_CUDA_SPAN_LIST_CUH_
#define TACTIC_SRC_CUDA_SPAN_LIST_CUH_

#include "src/cuda/step.cuh"

namespace tactic::cuda {

// A cluster of a span whose rows are listed.
struct Listed {
  int first;  // its first member's number in the span
  int rows;
  int at;       // of its first row in the list
  uint32_t as;  // what of its rows' entries is not their place
  int step;     // what that grows by from row to row
};

struct ListShared {
  PaperRanks ranks[kMaxGroup];
  uint64_t scratch[kBlockWarps];
  Listed listed[kMaxSlots];
};

// Four numbers that are counted over the clusters of a span in one scan, none above its positions.
static_assert(kMaxSlots * Options::kPage < 1 << 16);
__device__ __forceinline__ uint64_t Counts(int a, int b, int c, int d) {
  return static_cast<uint64_t>(static_cast<uint32_t>(d << 16 | c)) << 32 |
         static_cast<uint32_t>(b << 16 | a);
}
template <int kNumber>
__device__ __forceinline__ int CountOf(uint64_t counts) {
  return static_cast<int>(counts >> 16 * kNumber & 0xffff);
}

// Cluster `thread` of a span: its members, none if there is no such cluster, and its bins.
template <int kHeads>
struct SpanCluster {
  Members members;
  int bins[kHeads];

  __device__ __forceinline__ SpanCluster(const Step& step, const Unit& unit, int span) {
    const int cluster = threadIdx.x;
    const bool there = cluster < unit.SpanClusters(span, step.slots, step.span_slots);
    members = there ? MembersOf(step, unit, span, cluster) : Members{};
    const int64_t base = int64_t{unit.number} * step.spans + span;
    const float* scores = step.scores + (base * step.span_slots + cluster) * step.group;
#pragma unroll
    for (int g = 0; g < kHeads; ++g)
      bins[g] = there && g < step.group ? BinOf(__ldcg(scores + g)) : 0;
  }
  __device__ __forceinline__ int Rows() const { return members.end - members.begin; }
};

// Writes the rows of the first `count` clusters of the list to the span's entries, each its place
// in the span and what the cluster says.
__device__ __forceinline__ void ListRows(const Step& step, const Unit& unit, int span, int count,
                                         const ListShared& shared) {
  const uint16_t* members = unit.members + int64_t{span} * step.span_keys;
  uint32_t* to = step.rows + (int64_t{unit.number} * step.spans + span) * step.span_keys;
  for (int e = static_cast<int>(threadIdx.x >> 5); e < count; e += kBlockWarps) {
    const Listed of = shared.listed[e];
    const int segment = of.first - of.first % step.segment_size;
    for (int i = static_cast<int>(threadIdx.x & 31); i < of.rows; i += 32) {
      to[of.at + i] =
          of.as + static_cast<uint32_t>(i * of.step + segment + __ldg(members + of.first + i));
    }
  }
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_SPAN_LIST_CUH_
