// Stage attend of mode tactic: what was not read, by the means of its clusters' values.
#ifndef TACTIC_SRC_CUDA_ATTEND_TAIL_CUH_
#define TACTIC_SRC_CUDA_ATTEND_TAIL_CUH_

#include "src/cuda/step.cuh"
#include "src/cuda/tile_share.cuh"

namespace tactic::cuda {

// A row of the tail, before what it needs of memory is looked at: number `i` of a span's kept
// clusters, then of its segments.
struct TailEntry {
  int span;
  int i;
  int kept;         // clusters of the span
  uint8_t cluster;  // number i of them

  __device__ __forceinline__ static TailEntry Find(const Step& step, const Unit& unit,
                                                   const SpanLists& list, int tile, int row) {
    const int span = LastBefore(list.before, list.spans, tile);
    const int i = (tile - list.before[span]) * kTileRows + row;
    const int64_t base = int64_t{unit.number} * step.spans + span;
    return {span, i, __ldcg(step.kept_counts + base),
            __ldcg(step.kept_list + base * step.span_slots + min(i, step.span_slots - 1))};
  }
};

// Which mean it is, and where its masses are: of members that were not read, or, of a segment, of
// all clusters that were skipped.
struct TailRow {
  int mean;  // of the unit's
  int mass;  // of the unit's in step.unread; below 0: ~ that in step.skipped; kAbsent

  static constexpr int kAbsent = INT32_MIN;

  __device__ __forceinline__ static TailRow Of(const Step& step, const Unit& unit,
                                               const TailEntry& entry) {
    const int span = entry.span;
    if (entry.i < entry.kept) {
      const int mean = span * (step.span_slots + step.span_segments) + entry.cluster +
                       SegmentOf(step, entry.cluster);
      return {mean, (span * step.span_slots + entry.cluster) * step.group};
    }
    const int of_span = entry.i - entry.kept;
    if (of_span >= SegmentsOfSpan(step, unit, span)) return {0, kAbsent};
    const int segment = span * step.span_segments + of_span;
    return {segment * (step.slots + 1) + step.slots, ~(segment * step.group)};
  }
};

// Masses of rows r and r + 8 for the heads of a lane, relative to the anchors.
template <int kHeadTiles>
struct TailMasses {
  float of[kHeadTiles][4];

  // `row`: that of lane i is row i's.
  __device__ __forceinline__ TailMasses(const Step& step, const Unit& unit, const TailRow& row) {
    const int r = static_cast<int>(threadIdx.x & 31) >> 2;
    const int64_t first = int64_t{unit.number} * step.segments * step.group;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int mass = __shfl_sync(kAllLanes, row.mass, r + 8 * i);
      const float* from =
          mass >= 0 ? step.unread + first * step.slots + mass : step.skipped + first + ~mass;
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = LaneHead(n, h);
          of[n][2 * i + h] =
              mass != TailRow::kAbsent && head < step.group ? __ldcg(from + head) : 0.0f;
        }
      }
    }
  }
};

// Means of values, for members that were not read and for clusters that were skipped: tiles [begin,
// end) of the list, the first of them by warp `turn` modulo the block's.
template <int kDim, int kHeadTiles>
__device__ void AddTail(const Step& step, const Unit& unit, const SpanLists& list, int begin,
                        int end, int turn, SoftmaxTile<kDim, kHeadTiles>& state) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  const int t = lane & 3;
  const float to_mean = 1 / step.value_unit;
  int tile = begin + WarpInTurn(turn);
  if (tile >= end) return;
  const LaneAnchors<kHeadTiles> anchors(step, unit);
  const auto* means = reinterpret_cast<const uint8_t*>(unit.means);
  // Ahead: the next tile's masses, and the entries of the one after it.
  const auto find = [&](int of) {
    return TailEntry::Find(step, unit, list, min(of, list.total - 1), lane & 15);
  };
  TailRow row = TailRow::Of(step, unit, find(tile));
  TailMasses<kHeadTiles> masses(step, unit, row);
  TailEntry next = find(tile + kBlockWarps);
  for (; tile < end; tile += kBlockWarps) {
    const auto mean_of = [&](int i) { return __shfl_sync(kAllLanes, row.mean, i); };
    const uint8_t* rows[4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      rows[k] = means + static_cast<int64_t>(mean_of(2 * t + k % 2 + k / 2 * 8)) * kDim;
    ValueTile<RowI8, kDim> values;
    values.Load(rows, lane);
    const uint16_t low = __ldg(unit.mean_scales + mean_of(r));
    const uint16_t high = __ldg(unit.mean_scales + mean_of(r + 8));
    float s[kHeadTiles][4];
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float mass = masses.of[n][k];
        s[n][k] = mass > 0 ? log2f(mass) + anchors.of[n][k & 1] : kNone;
      }
    }
    row = TailRow::Of(step, unit, next);
    masses = TailMasses<kHeadTiles>(step, unit, row);
    next = find(tile + 2 * kBlockWarps);
    state.Add(s, values, __half2float(__ushort_as_half(low)) * to_mean,
              __half2float(__ushort_as_half(high)) * to_mean);
  }
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_ATTEND_TAIL_CUH_
