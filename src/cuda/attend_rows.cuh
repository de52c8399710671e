// Stage attend of mode tactic: rows that were chosen one by one, whose logits are known.
//
// Where a tile's rows are takes three reads, each of which needs the one before: the entry of the
// list, the block of the cache, and what is there. So a warp looks two tiles ahead.
#ifndef TACTIC_SRC_CUDA_ATTEND_ROWS_CUH_
#define TACTIC_SRC_CUDA_ATTEND_ROWS_CUH_

#include "src/cuda/step.cuh"
#include "src/cuda/tile_share.cuh"

namespace tactic::cuda {

// One row of mode tactic's list, forced ones first: its entry, which has to be read before it can
// be looked at.
struct RowEntry {
  uint32_t row;  // of a forced one: its number
  int span;      // -1: it is a forced one

  __device__ __forceinline__ static RowEntry Find(const Step& step, const Unit& unit,
                                                  const SpanLists& list, int i) {
    if (i < unit.forced) return {static_cast<uint32_t>(i), -1};
    const int span = LastBefore(list.before, list.spans, i);
    return {__ldcg(step.rows + (FirstRow(step, unit.number, span) + i - list.before[span])), span};
  }
};

// Where what it says is.
struct RowPlace {
  int64_t offset;  // in keys and in values: elements
  const float* logits;

  __device__ __forceinline__ static RowPlace Of(const Step& step, const Unit& unit,
                                                const RowEntry& entry) {
    if (entry.span < 0) {
      const auto i = static_cast<int>(entry.row);
      return {step.cache.Offset(unit.rows, unit.ForcedRow(i, step.sinks)),
              step.forced_logits + (int64_t{unit.number} * step.forced_room + i) * step.group};
    }
    const int position = entry.span * step.span_keys + PlaceOfRow(entry.row);
    return {
        step.cache.Offset(unit.rows, position),
        OfHeads(step, step.logits, FirstRow(step, unit.number, entry.span) + SlotOfRow(entry.row))};
  }
  __device__ __forceinline__ const float* LogitsOf(int lane) const {
    const auto at = static_cast<long long>(reinterpret_cast<uintptr_t>(logits));
    return reinterpret_cast<const float*>(__shfl_sync(kAllLanes, at, lane));
  }
};

// The values of a tile's rows: where row i is is in lane i.
template <class Row, int kDim>
__device__ __forceinline__ void LoadValues(const Step& step, int64_t offset,
                                           ValueTile<Row, kDim>& values) {
  const int lane = threadIdx.x & 31;
  const int t = lane & 3;
  const auto* all = static_cast<const uint8_t*>(step.cache.values);
  const uint8_t* rows[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    rows[i] = all + __shfl_sync(kAllLanes, offset, 2 * t + i % 2 + i / 2 * 8) * Row::kBytes;
  values.Load(rows, lane);
}

template <class Row, int kDim, int kHeadTiles>
__device__ void AttendRows(const Step& step, const Unit& unit, const SpanLists& list, int begin,
                           int end, SoftmaxTile<kDim, kHeadTiles>& state) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  int tile = begin + static_cast<int>(threadIdx.x >> 5);
  if (tile >= end) return;
  // Ahead: where the next tile's rows are, row i in lane i, and the entries of the one after it.
  const auto find = [&](int of) {
    return RowEntry::Find(step, unit, list, min(of * kTileRows + (lane & 15), list.total - 1));
  };
  RowPlace now = RowPlace::Of(step, unit, find(tile));
  RowEntry next = find(tile + kBlockWarps);
  ValueTile<Row, kDim> values;
  for (; tile < end; tile += kBlockWarps) {
    LoadValues(step, now.offset, values);
    float s[kHeadTiles][4];
    LoadLogits(
        step.group,
        [&](int i) {
          const float* logits = now.LogitsOf(r + 8 * i);
          return tile * kTileRows + r + 8 * i < list.total ? logits : nullptr;
        },
        s);
    now = RowPlace::Of(step, unit, next);
    next = find(tile + 2 * kBlockWarps);
    state.Add(s, values);
  }
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_ATTEND_ROWS_CUH_
