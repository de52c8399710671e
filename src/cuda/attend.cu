// Stages attend and combine: softmax over the rows that were chosen, or over all of them.
//
// The logits of chosen rows are known, so only values are read; but for those that mode paper
// selects beyond its heads, which are scored here. A unit that is read densely takes the other path
// here: keys and values of all rows. Blocks share all tiles of all units evenly (tile_share.cuh).
// Each leaves a softmax state for each unit in its share; the block of a unit that ends last merges
// them, in order.
#include <algorithm>

#include "src/cuda/combine.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/step.cuh"
#include "src/cuda/tile_list.cuh"
#include "src/cuda/tile_share.cuh"

namespace tactic::cuda {
namespace {

struct AttendShared {
  int scratch[kBlockWarps];
  int flag;
  MergedHead merged[kMaxGroup];
  float factors[kBlockWarps * kMaxGroup];
};

// One row of mode tactic's list, forced ones first: its entry, which has to be read before it can be
// looked at.
struct RowEntry {
  uint32_t row;  // of a forced one: its number
  int span;      // -1: it is a forced one

  __device__ __forceinline__ static RowEntry Find(const Step& step, const Unit& unit,
                                                  const SpanLists& list, int i) {
    if (i < unit.forced) return {static_cast<uint32_t>(i), -1};
    const int span = LastBefore(list.before, list.spans, i);
    const int64_t first = (int64_t{unit.number} * step.spans + span) * step.span_keys;
    return {__ldcg(step.rows + first + (i - list.before[span])), span};
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
    const int64_t first = (int64_t{unit.number} * step.spans + entry.span) * step.span_keys;
    return {step.cache.Offset(unit.rows, position),
            step.logits + (first + SlotOfRow(entry.row)) * step.group};
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
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool there = tile * kTileRows + r + i * 8 < list.total;
      const float* logits = now.LogitsOf(r + i * 8);
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = LaneHead(n, h);
          s[n][2 * i + h] = there && head < step.group ? __ldcg(logits + head) : kNone;
        }
      }
    }
    now = RowPlace::Of(step, unit, next);
    next = find(tile + 2 * kBlockWarps);
    state.Add(s, values);
  }
}

// Sixteen rows of mode paper whose logits are known, or fewer: forced ones, or a listed tile.
struct ScoredTile {
  TilePlace place;  // a span of -1: forced ones, from number tile.word on

  __device__ __forceinline__ static ScoredTile Find(const Step& step, const Unit& unit,
                                                    const SpanLists& list, int from, int i) {
    if (i < list.before[0]) return {{{static_cast<uint32_t>(i * kTileRows)}, -1}};
    return {TilePlace::Find<false>(step, unit, list, max(0, from), i)};
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
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool there = r + 8 * i < now.Rows(unit);
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = LaneHead(n, h);
          s[n][2 * i + h] = there && head < step.group
                                ? __ldcg(logits + (r + 8 * i) * step.group + head)
                                : kNone;
        }
      }
    }
    now = next;
    next = find(now.place.span, tile + 2 * kBlockWarps);
    offset = now.Offset(step, unit, lane & 15);
    state.Add(s, values);
  }
}

// Logits of a fresh tile, and its mass for the heads whose own it is.
template <class Row, int kDim, int kHeadTiles>
__device__ __forceinline__ void ScoreFresh(const Step& step, const Unit& unit,
                                           const TilePlace& place, const uint4* query,
                                           const KeyTile<Row, kDim>& keys,
                                           float (&s)[kHeadTiles][4],
                                           float (&own)[kHeadTiles][2]) {
  QueryTile<kDim, kHeadTiles> q;
  q.Read(query, threadIdx.x & 31);
  keys.Score(q, s);
  const int r = static_cast<int>(threadIdx.x & 31) >> 2;
  const float* scores = place.Scores(step, unit);
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = min(LaneHead(n, h), step.group - 1);
      const int bin = BinOf(__ldcg(scores + head));
      const bool is_own =
          bin >= __ldcg(&step.ranks[int64_t{unit.number} * step.group + head].cut_bin);
      const float anchor = AnchorOf(step, unit, head);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& logit = s[n][2 * i + h];
        logit = r + 8 * i < place.tile.Rows() && LaneHead(n, h) < step.group
                    ? Capped(logit * step.key_unit, step.softcap)
                    : kNone;
        if (is_own) own[n][h] += Exp2(logit - anchor);
      }
    }
  }
}

template <class Row, int kDim, int kHeadTiles>
__device__ void AttendFresh(const Step& step, const Unit& unit, const SpanLists& list,
                            const uint4* query, int begin, int end,
                            SoftmaxTile<kDim, kHeadTiles>& state, float (&own)[kHeadTiles][2]) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  int tile = begin + static_cast<int>(threadIdx.x >> 5);
  if (tile >= end) return;
  const auto* all_keys = static_cast<const uint8_t*>(step.cache.keys);
  // Ahead as in AttendRows.
  const auto find = [&](int from, int of) {
    return TilePlace::Find<true>(step, unit, list, from, min(of, list.total - 1));
  };
  const auto offset_of = [&](const TilePlace& place) {
    return step.cache.Offset(unit.rows, place.Position(step, unit, lane & 15));
  };
  TilePlace now = find(0, tile);
  TilePlace next = find(now.span, tile + kBlockWarps);
  int64_t offset = offset_of(now);
  ValueTile<Row, kDim> values;
  for (; tile < end; tile += kBlockWarps) {
    const auto row = [&](int i) {
      return all_keys + __shfl_sync(kAllLanes, offset, i) * Row::kBytes;
    };
    KeyTile<Row, kDim> keys;
    keys.Load(row(r), row(r + 8), lane);
    LoadValues(step, offset, values);
    float s[kHeadTiles][4];
    ScoreFresh<Row, kDim>(step, unit, now, query, keys, s, own);
    now = next;
    next = find(now.span, tile + 2 * kBlockWarps);
    offset = offset_of(now);
    state.Add(s, values);
  }
}

// kAhead: the next tile's keys are loaded while this one's values are used, for which only a kernel
// that does nothing else has the registers.
template <class Row, int kDim, int kHeadTiles, bool kAhead>
__device__ void AttendAll(const Step& step, const Unit& unit, int begin, int end,
                          SoftmaxTile<kDim, kHeadTiles>& state) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  const int t = lane & 3;
  int tile = begin + static_cast<int>(threadIdx.x >> 5);
  if (tile >= end) return;
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<Row::kIsBF16>(step, unit, q);
  // A tile lies in one page, unless pages are smaller: then every row is looked up.
  const bool together = step.cache.block_table == nullptr || step.cache.page_mask >= kTileRows - 1;
  const auto stride = static_cast<int>(step.cache.row_stride);
  const auto offset = [&](int64_t first, int of, int i) {
    const int row = min(i, unit.tokens - 1 - of * kTileRows);
    return together ? first + row * stride
                    : step.cache.Offset(unit.rows, of * kTileRows + row);
  };
  const auto first_of = [&](int of) {
    return step.cache.Offset(unit.rows, of * kTileRows);
  };
  const auto* all_keys = static_cast<const uint8_t*>(step.cache.keys);
  const auto* all_values = static_cast<const uint8_t*>(step.cache.values);
  KeyTile<Row, kDim> keys;
  ValueTile<Row, kDim> values;
  const auto load_keys = [&](int64_t first, int of) {
    keys.Load(all_keys + offset(first, of, r) * Row::kBytes,
              all_keys + offset(first, of, r + 8) * Row::kBytes, lane);
  };
  int64_t first = first_of(tile);
  if (kAhead) load_keys(first, tile);
  for (; tile < end; tile += kBlockWarps) {
    if (!kAhead) load_keys(first, tile);
    const uint8_t* rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      rows[i] = all_values + offset(first, tile, 2 * t + i % 2 + i / 2 * 8) * Row::kBytes;
    values.Load(rows, lane);
    if (tile + kBlockWarps < end) first = first_of(tile + kBlockWarps);
    float s[kHeadTiles][4];
    keys.Score(q, s);
    if (kAhead && tile + kBlockWarps < end) load_keys(first, tile + kBlockWarps);
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const bool there = tile * kTileRows + r + k / 2 * 8 < unit.tokens;
        s[n][k] = there ? Capped(s[n][k] * step.key_unit, step.softcap) : kNone;
      }
    }
    state.Add(s, values);
  }
}

// Masses that a tile of means stands for, for rows r and r + 8 and the heads of a lane, relative to
// the anchors: of members that were not read, of the clusters that were kept, and, last of a
// segment, of all that were skipped.
// Nothing is looked at before it is asked for, so that all loads may be under way for long.
template <int kHeadTiles>
struct MeanMasses {
  uint8_t kept[2];
  float masses[kHeadTiles][4];

  __device__ __forceinline__ void Load(const Step& step, int64_t segment, int first) {
    const int r = static_cast<int>(threadIdx.x & 31) >> 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int slot = first + r + 8 * i;
      const int64_t at = segment * step.slots + min(slot, step.slots - 1);
      kept[i] = slot < step.slots ? __ldcg(step.kept + at) : uint8_t{slot == step.slots};
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = LaneHead(n, h);
          const float* from = slot < step.slots ? step.unread + at * step.group
                                                : step.skipped + segment * step.group;
          masses[n][2 * i + h] =
              head < step.group && slot <= step.slots ? __ldcg(from + head) : 0.0f;
        }
      }
    }
  }
  __device__ __forceinline__ float Of(int n, int k) const {
    return kept[k / 2] != 0 ? masses[n][k] : 0.0f;
  }
};

// Means of values, for members that were not read and for clusters that were skipped: tiles [begin,
// end) of the unit's.
template <int kDim, int kHeadTiles>
__device__ void AddTail(const Step& step, const Unit& unit, int begin, int end,
                        SoftmaxTile<kDim, kHeadTiles>& state) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  const int t = lane & 3;
  const int means = step.slots + 1;
  const int tiles = MeanTiles(step);
  const float to_mean = 1 / step.value_unit;
  const LaneAnchors<kHeadTiles> anchors(step, unit);
  int i = begin + static_cast<int>(threadIdx.x >> 5);
  if (i >= end) return;
  const auto load = [&](int of) {
    MeanMasses<kHeadTiles> masses;
    const int64_t segment = static_cast<int64_t>(unit.number) * step.segments + of / tiles;
    masses.Load(step, segment, of % tiles * kTileRows);
    return masses;
  };
  MeanMasses<kHeadTiles> next = load(i);
  for (; i < end; i += kBlockWarps) {
    const int segment = i / tiles;
    const int first = i % tiles * kTileRows;
    const int8_t* values = unit.means + int64_t{segment} * means * kDim;
    const uint16_t* scales = unit.mean_scales + int64_t{segment} * means;
    const auto slot = [&](int row) { return min(first + row, step.slots); };
    const auto scale = [&](int row) { return __ldg(scales + slot(row)); };
    const uint8_t* rows[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      rows[k] = reinterpret_cast<const uint8_t*>(values) +
                static_cast<int64_t>(slot(2 * t + k % 2 + k / 2 * 8)) * kDim;
    }
    // Nearly every tile has some mass: its values are not made to wait for that.
    ValueTile<RowI8, kDim> tile;
    tile.Load(rows, lane);
    const uint16_t low = scale(r);
    const uint16_t high = scale(r + 8);
    float s[kHeadTiles][4];
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float mass = next.Of(n, k);
        s[n][k] = mass > 0 ? log2f(mass) + anchors.of[n][k & 1] : kNone;
      }
    }
    if (i + kBlockWarps < end) next = load(i + kBlockWarps);
    state.Add(s, tile, __half2float(__ushort_as_half(low)) * to_mean,
              __half2float(__ushort_as_half(high)) * to_mean);
  }
}

// How many of the grid's blocks share `tiles`: those that run at once, or more where there is
// enough to do for each (kLeastTiles).
__device__ __forceinline__ int64_t BlocksAtWork(const Step& step, int64_t tiles) {
  const int64_t worthwhile = min(static_cast<int64_t>(gridDim.x), tiles / kLeastTiles);
  return min(tiles, max(static_cast<int64_t>(step.attend_wave), worthwhile));
}

// Of kMode; dense: the whole batch is read densely.
template <class Row, int kDim, int kHeadTiles, Mode kMode>
__global__ void __launch_bounds__(kBlockThreads, BlocksFor(kDim, kHeadTiles, 2))
    AttendKernel(const __grid_constant__ Step step) {
  extern __shared__ int dynamic[];
  __shared__ AttendShared shared;
  __shared__ uint4 query[kMode == Mode::kPaper ? QueryTile<kDim, kHeadTiles>::kPieces * 32 : 1];
  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int units = step.batch * step.kv_heads;
  int* const before = dynamic;  // [units + 1]: tiles of the units ahead
  // Rows ahead of each span's; later states of the warps.
  float* const states_here = reinterpret_cast<float*>(dynamic + (units + 4) / 4 * 4);
  constexpr int kSize = kStateSize<kDim>;
  constexpr bool kDense = kMode == Mode::kDense;
  constexpr bool kPaper = kMode == Mode::kPaper;
  const int group_size = step.group * kSize;
  WaitForPrevious();
  LetNextBegin();
  // What rank and sample count into has to be zero again, and nobody reads it any more.
  if (!kDense) {
    const int64_t bins = int64_t{units} * step.group * kBins;
    for (int64_t i = blockIdx.x * kBlockThreads + thread; i < bins;
         i += gridDim.x * kBlockThreads) {
      step.cluster_bins[i] = 0;
      if (kPaper)
        step.bin_masses[i] = 0;
      else
        step.key_bins[i] = 0;
    }
    if (kPaper && blockIdx.x == 0) {
      for (int i = thread; i < units * step.group * 2; i += kBlockThreads) step.windows[i] = {};
    }
  }
  const int64_t all = AddUp(units, 0, before, shared.scratch, [&](int u) {
    if (kDense) return RowTiles(__ldg(step.lengths + u / step.kv_heads));
    if (kPaper && __ldcg(step.dense + u) == 0)
      return RowTiles(step.units[u].forced) + __ldcg(&step.selected[u].scored) +
             kKeyedTile * __ldcg(&step.selected[u].fresh);
    return __ldcg(step.tiles + u);
  });
  ForEachShare(before, units, all, BlocksAtWork(step, all), [&](const UnitShare& share) {
    const int begin = share.begin;
    const int end = share.end;
    const Unit unit = kDense ? FindUnit(step, share.unit) : ReadUnit(step, share.unit);
    const bool dense = kDense || IsDense(step, unit);
    SoftmaxTile<kDim, kHeadTiles> state;
    float max_rows[kHeadTiles][2];
    float sum_rows[kHeadTiles][2];
    float own[kHeadTiles][2] = {};  // mass of own rows that nothing knew before
    state.Clear();
    int rows = unit.tokens;
    if (kDense || dense) {
      // With rows of 128 elements the next tile's keys would take registers from the other block.
      constexpr bool kAhead = kDense && kDim < 128;
      constexpr int kEach = kDense ? 1 : kKeyedTile;
      AttendAll<Row, kDim, kHeadTiles, kAhead>(step, unit, begin / kEach, end / kEach, state);
      state.EndRows(max_rows, sum_rows);
    } else {
      auto* const list_room = reinterpret_cast<int*>(states_here);
      const int64_t counts = int64_t{unit.number} * step.spans;
      const int listed = AddUp(unit.spans, kPaper ? RowTiles(unit.forced) : unit.forced, list_room,
                               shared.scratch, [&](int j) { return __ldcg(step.counts + counts + j); });
      const SpanLists list = {list_room, unit.spans, listed};
      if constexpr (kPaper) {
        rows = unit.forced + __ldcg(&step.selected[unit.number].rows);
        AttendScored<Row>(step, unit, list, min(begin, listed), min(end, listed), state);
        if (end > listed) {
          int* const fresh_room = list_room + unit.spans + 1;
          const int fresh = AddUp(unit.spans, 0, fresh_room, shared.scratch, [&](int j) {
            return __ldcg(step.fresh_counts + counts + j);
          });
          if (thread < 32) {
            QueryTile<kDim, kHeadTiles> q;
            LoadQuery<Row::kIsBF16>(step, unit, q);
            q.Write(query, lane);
          }
          __syncthreads();
          AttendFresh<Row>(step, unit, {fresh_room, unit.spans, fresh}, query,
                           (max(begin, listed) - listed) / kKeyedTile,
                           (end - listed) / kKeyedTile, state, own);
        }
        state.EndRows(max_rows, sum_rows);
      } else {
        rows = listed;
        const int row_tiles = RowTiles(rows);
        AttendRows<Row>(step, unit, list, begin, min(end, row_tiles), state);
        state.EndRows(max_rows, sum_rows);
        if (end > row_tiles)
          AddTail(step, unit, max(begin, row_tiles) - row_tiles, end - row_tiles, state);
      }
    }
    __syncthreads();
    state.Store(max_rows, sum_rows, own, states_here + (thread >> 5) * group_size, step.group,
                step.value_unit, lane);
    __syncthreads();
    const auto finish = [&](int g, int x, float2 sum, const MergedHead& merged) {
      Finish<kDim>(step, unit, dense, rows, g, x, sum, merged);
    };
    if (share.blocks == 1) {
      MergeStates<kDim, false>(states_here, kBlockWarps, group_size, step.group, shared.factors,
                               shared.merged, finish);
      return;
    }
    // A block leaves one state for each unit: number by block and unit, since both only grow.
    const auto state_of = [&](int block) {
      return step.states + (int64_t{block} + share.unit) * group_size;
    };
    float* mine = state_of(blockIdx.x);
    MergeStates<kDim, false>(states_here, kBlockWarps, group_size, step.group, shared.factors,
                             shared.merged,
                             [&](int g, int x, float2 sum, const MergedHead& merged) {
                               float* of = mine + g * kSize;
                               *reinterpret_cast<float2*>(of + x) = sum;
                               if (x != 0) return;
                               of[kDim] = merged.max;
                               of[kDim + 1] = merged.weights;
                               of[kDim + 2] = merged.rows;
                               of[kDim + 3] = merged.own;
                             });
    if (!EndsLast(step, unit, share.blocks, &shared.flag)) return;
    MergeStates<kDim, true>(state_of(share.first_block), share.blocks, group_size, step.group,
                            states_here, shared.merged, finish);
  });
}

}  // namespace

Status LaunchAttend(const Step& step, Element type, Stream stream) {
  const size_t states =
      static_cast<size_t>(kBlockWarps) * step.group * StateSize(step.head_dim) * sizeof(float);
  const size_t list = 2 * (static_cast<size_t>(step.spans) + 1) * sizeof(int);
  const int units = step.batch * step.kv_heads;
  const size_t factors = static_cast<size_t>(step.attend_blocks) * step.group * sizeof(float);
  const size_t shared =
      (units + 4) / 4 * 4 * sizeof(int) + std::max(states, std::max(list, factors));
  return DispatchStep(step, type, [&]<class Row, int kDim, int kHeadTiles>() {
    const auto kernel = step.mode == Mode::kDense
                            ? AttendKernel<Row, kDim, kHeadTiles, Mode::kDense>
                        : step.mode == Mode::kPaper
                            ? AttendKernel<Row, kDim, kHeadTiles, Mode::kPaper>
                            : AttendKernel<Row, kDim, kHeadTiles, Mode::kTactic>;
    return Launch(kernel, step, dim3(step.attend_blocks), shared, stream);
  });
}

}  // namespace tactic::cuda
