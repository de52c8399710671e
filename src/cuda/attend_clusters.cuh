// Stage attend of mode paper: tiles of clusters, whose logits stage sample has left or which are
// fresh.
#ifndef TACTIC_SRC_CUDA_ATTEND_CLUSTERS_CUH_
#define TACTIC_SRC_CUDA_ATTEND_CLUSTERS_CUH_

#include "src/cuda/attend_rows.cuh"
#include "src/cuda/step.cuh"
#include "src/cuda/tile_list.cuh"
#include "src/cuda/tile_share.cuh"

namespace tactic::cuda {

// Sixteen rows of mode paper whose logits are known, or fewer: forced ones, or a listed tile.
struct ScoredTile {
  TilePlace place;  // a span of -1: forced ones, from number tile.word on

  __device__ __forceinline__ static ScoredTile Find(const Step& step, const Unit& unit,
                                                    const SpanLists& list, int from, int i) {
    if (i < list.before[0]) return {{{static_cast<uint32_t>(i * kTileRows)}, -1}};
    return {TilePlace::Find(step, unit, list, max(0, from), i)};
  }
  __device__ __forceinline__ bool IsForced() const { return place.span < 0; }
  __device__ __forceinline__ int First() const { return static_cast<int>(place.tile.word); }
  __device__ __forceinline__ int Rows(const Unit& unit) const {
    return IsForced() ? min(kTileRows, unit.forced - First()) : place.tile.Rows();
  }
  // Where row `i` of 16, or the last there is, begins in keys and in values: elements.
  __device__ __forceinline__ int64_t Offset(const Step& step, const Unit& unit, int i) const {
    const int position = IsForced() ? unit.ForcedRow(min(First() + i, unit.forced - 1), step.sinks)
                                    : place.Position(step, unit, i);
    return step.cache.Offset(unit.rows, position);
  }
  __device__ __forceinline__ const float* Logits(const Step& step, const Unit& unit) const {
    if (!IsForced()) return place.Logits(step, unit);
    return step.forced_logits + (int64_t{unit.number} * step.forced_room + First()) * step.group;
  }
};

template <class Row, int kDim, int kHeadTiles>
__device__ void AttendScored(const Step& step, const Unit& unit, const SpanLists& list, int begin,
                             int end, SoftmaxTile<kDim, kHeadTiles>& state) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  int tile = begin + static_cast<int>(threadIdx.x >> 5);
  if (tile >= end) return;
  // Ahead as in AttendRows.
  const auto find = [&](int from, int of) {
    return ScoredTile::Find(step, unit, list, from, min(of, list.total - 1));
  };
  ScoredTile now = find(0, tile);
  ScoredTile next = find(now.place.span, tile + kBlockWarps);
  int64_t offset = now.Offset(step, unit, lane & 15);
  ValueTile<Row, kDim> values;
  for (; tile < end; tile += kBlockWarps) {
    LoadValues(step, offset, values);
    const float* logits = now.Logits(step, unit);
    float s[kHeadTiles][4];
    LoadLogits(
        step.group,
        [&](int i) {
          const int row = r + 8 * i;
          return row < now.Rows(unit) ? logits + row * step.group : nullptr;
        },
        s);
    now = next;
    next = find(now.place.span, tile + 2 * kBlockWarps);
    offset = now.Offset(step, unit, lane & 15);
    state.Add(s, values);
  }
}

// Logits of a fresh tile, and its mass for the heads whose own it is.
template <class Row, int kDim, int kHeadTiles>
__device__ __forceinline__ void ScoreFresh(const Step& step, const FreshTile& tile,
                                           const LaneAnchors<kHeadTiles>& anchors,
                                           const uint4* query, const KeyTile<Row, kDim>& keys,
                                           float (&s)[kHeadTiles][4], float (&own)[kHeadTiles][2]) {
  QueryTile<kDim, kHeadTiles> q;
  q.Read(query, threadIdx.x & 31);
  keys.Score(q, s);
  const int r = static_cast<int>(threadIdx.x & 31) >> 2;
  const int rows = tile.place.tile.Rows();
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = LaneHead(n, h);
      const bool is_own = (tile.owners >> head & 1) != 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& logit = s[n][2 * i + h];
        logit = r + 8 * i < rows && head < step.group ? Capped(logit * step.key_unit, step.softcap)
                                                      : kNone;
        if (is_own) own[n][h] += Exp2(logit - anchors.of[n][h]);
      }
    }
  }
}

// Tiles [begin, end) of the list, the first of them by warp `turn` modulo the block's.
template <class Row, int kDim, int kHeadTiles>
__device__ void AttendFresh(const Step& step, const Unit& unit, const SpanLists& list,
                            const uint4* query, int begin, int end, int turn,
                            SoftmaxTile<kDim, kHeadTiles>& state, float (&own)[kHeadTiles][2]) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  int tile = begin + WarpInTurn(turn);
  if (tile >= end) return;
  const auto* all_keys = static_cast<const uint8_t*>(step.cache.keys);
  const auto find = [&](int from, int of) {
    return FreshTile::Find(step, unit, list, from, min(of, list.total - 1));
  };
  const auto offset_of = [&](const FreshTile& of) {
    return step.cache.Offset(unit.rows, of.place.Position(step, unit, lane & 15));
  };
  const LaneAnchors<kHeadTiles> anchors(step, unit);
  // Ahead as in AttendRows.
  FreshTile now = find(0, tile);
  FreshTile next = find(now.place.span, tile + kBlockWarps);
  int64_t offset = offset_of(now);
  ValueTile<Row, kDim> values;
  for (; tile < end; tile += kBlockWarps) {
    const auto row = [&](int i) {
      return all_keys + __shfl_sync(kAllLanes, offset, i) * Row::kBytes;
    };
    KeyTile<Row, kDim> keys;
    keys.Load(row(r), row(r + 8), lane);
    float s[kHeadTiles][4];
    ScoreFresh<Row, kDim>(step, now, anchors, query, keys, s, own);
    // Not before, beside the keys: for rows of 128 elements there are no registers for both.
    LoadValues(step, offset, values);
    now = next;
    next = find(now.place.span, tile + 2 * kBlockWarps);
    offset = offset_of(now);
    state.Add(s, values);
  }
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_ATTEND_CLUSTERS_CUH_
