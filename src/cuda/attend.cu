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

// One row of mode tactic's list, forced ones first: its entry, which has to be read before it can
// be looked at.
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
          s[n][2 * i + h] =
              there && head < step.group ? __ldcg(logits + (r + 8 * i) * step.group + head) : kNone;
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
                                           float (&s)[kHeadTiles][4], float (&own)[kHeadTiles][2]) {
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
    return together ? first + row * stride : step.cache.Offset(unit.rows, of * kTileRows + row);
  };
  const auto first_of = [&](int of) { return step.cache.Offset(unit.rows, of * kTileRows); };
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
// end) of the list.
template <int kDim, int kHeadTiles>
__device__ void AddTail(const Step& step, const Unit& unit, const SpanLists& list, int begin,
                        int end, SoftmaxTile<kDim, kHeadTiles>& state) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  const int t = lane & 3;
  const float to_mean = 1 / step.value_unit;
  int tile = begin + static_cast<int>(threadIdx.x >> 5);
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

// How many of the grid's blocks share `tiles`: those that run at once, or more where there is
// enough to do for each (kLeastTiles).
__device__ __forceinline__ int64_t BlocksAtWork(const Step& step, int64_t tiles) {
  const int64_t worthwhile = min(static_cast<int64_t>(gridDim.x), tiles / kLeastTiles);
  return min(tiles, max(static_cast<int64_t>(step.attend_wave), worthwhile));
}

// What is even among blocks is the time they take: a fresh tile, whose keys are read, too, counts
// as two, and to begin with a unit and to end it costs as much as some tiles (H200, rows of 256
// bytes: 550 cycles of a block for a tile, 9,000 for a unit). Where everything is read, there are
// many tiles.
constexpr int kFreshTile = 2;
template <Mode kMode>
constexpr int kLeadTiles = kMode == Mode::kDense ? 0 : 16;

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
  constexpr int kLead = kLeadTiles<kMode>;
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
      return kLead + RowTiles(step.units[u].forced) + __ldcg(&step.selected[u].scored) +
             kFreshTile * __ldcg(&step.selected[u].fresh);
    return kLead + __ldcg(step.tiles + u);
  });
  ForEachShare(before, units, kLead, all, BlocksAtWork(step, all), [&](const UnitShare& share) {
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
      AttendAll<Row, kDim, kHeadTiles, kAhead>(step, unit, begin, end, state);
      state.EndRows(max_rows, sum_rows);
    } else {
      auto* const list_room = reinterpret_cast<int*>(states_here);
      const int64_t counts = int64_t{unit.number} * step.spans;
      const int listed =
          AddUp(unit.spans, kPaper ? RowTiles(unit.forced) : unit.forced, list_room, shared.scratch,
                [&](int j) { return __ldcg(step.counts + counts + j); });
      const SpanLists list = {list_room, unit.spans, listed};
      // Tiles of these rows in the block's share, and what of it comes after them.
      const int after = kPaper ? listed : RowTiles(listed);
      const int first_row = min(begin, after);
      const int last_row = min(end, after);
      const auto list_next = [&](const auto& count) {
        int* const room = list_room + unit.spans + 1;
        const int total = AddUp(unit.spans, 0, room, shared.scratch, count);
        return SpanLists{room, unit.spans, total};
      };
      if constexpr (kPaper) {
        rows = unit.forced + __ldcg(&step.selected[unit.number].rows);
        AttendScored<Row>(step, unit, list, first_row, last_row, state);
        if (end > after) {
          const SpanLists fresh =
              list_next([&](int j) { return __ldcg(step.fresh_counts + counts + j); });
          if (thread < 32) {
            QueryTile<kDim, kHeadTiles> q;
            LoadQuery<Row::kIsBF16>(step, unit, q);
            q.Write(query, lane);
          }
          __syncthreads();
          AttendFresh<Row>(step, unit, fresh, query, (max(begin, after) - after) / kFreshTile,
                           (end - after) / kFreshTile, state, own);
        }
        state.EndRows(max_rows, sum_rows);
      } else {
        rows = listed;
        AttendRows<Row>(step, unit, list, first_row, last_row, state);
        state.EndRows(max_rows, sum_rows);
        if (end > after) {
          const SpanLists means = list_next([&](int j) { return MeanTiles(step, unit, j); });
          AddTail(step, unit, means, max(begin, after) - after, end - after, state);
        }
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
    const auto kernel =
        step.mode == Mode::kDense   ? AttendKernel<Row, kDim, kHeadTiles, Mode::kDense>
        : step.mode == Mode::kPaper ? AttendKernel<Row, kDim, kHeadTiles, Mode::kPaper>
                                    : AttendKernel<Row, kDim, kHeadTiles, Mode::kTactic>;
    return Launch(kernel, step, dim3(step.attend_blocks), shared, stream);
  });
}

}  // namespace tactic::cuda
