// Stages attend and combine: softmax over the rows that were chosen, or over all of them.
//
// The logits of chosen rows are known, so only values are read (attend_rows.cuh, attend_tail.cuh);
// but for those that mode paper selects beyond its heads, which are scored here
// (attend_clusters.cuh). A unit that is read densely takes the path in this file: keys and values
// of all rows. Blocks share all tiles of all units evenly (tile_share.cuh). Each leaves a softmax
// state for each unit in its share; the block of a unit that ends last merges them, in order.
#include <algorithm>

#include "src/cuda/attend_clusters.cuh"
#include "src/cuda/attend_rows.cuh"
#include "src/cuda/attend_tail.cuh"
#include "src/cuda/combine.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/step.cuh"
#include "src/cuda/tile_share.cuh"

namespace tactic::cuda {
namespace {

struct AttendShared {
  TwoCounts scratch[kBlockWarps];
  int flag;
};

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
  LoadQuery<Row::kIsBF16>(step, unit.number, q);
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

// How many of the grid's blocks share `tiles`: those that run at once, or more where there is
// enough to do for each (kLeastTiles); fewer where there are not `each` tiles for each. Where there
// is little for each, a multiple of `units` if that leaves few of them out: where units are alike,
// no block has tiles of two, which takes longer.
__device__ __forceinline__ int BlocksAtWork(const Step& step, int tiles, int each, int units) {
  const int worthwhile = min(static_cast<int>(gridDim.x), tiles / kLeastTiles);
  const int blocks = min((tiles + each - 1) / each, max(step.attend_wave, worthwhile));
  const int over = blocks % units;
  constexpr int kOneOf = 32;
  return blocks > worthwhile && over <= blocks / kOneOf ? blocks - over : blocks;
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
  int* const before = dynamic;  // [units + 1]: what the units ahead cost
  // What the lists of spans ahead hold; later states of the warps.
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
    const uint32_t bins = static_cast<uint32_t>(units * step.group) * kBins;
    for (uint32_t i = blockIdx.x * kBlockThreads + thread; i < bins;
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
  const int all = AddUp(units, 0, before, reinterpret_cast<int*>(shared.scratch), [&](int u) {
    if (kDense) return RowTiles(__ldg(step.lengths + u / step.kv_heads));
    const int tiles = __ldcg(step.tiles + u);
    if constexpr (!kPaper) return kLead + tiles;
    // All loads are under way before anybody waits for one.
    const int selected = RowTiles(step.units[u].forced) + __ldcg(&step.selected[u].scored) +
                         kFreshTile * __ldcg(&step.selected[u].fresh);
    return kLead + (__ldcg(step.dense + u) == 0 ? selected : tiles);
  });
  const TileShares shares = {
      before, units, kLead,
      kDense ? BlocksAtWork(step, all, 1, units) : BlocksAtWork(step, all, kTilesEach, 1)};
  ForEachShare(shares, [&](const UnitShare& share) {
    const int begin = share.begin;
    const int end = share.end;
    // What its spans list: what is attended to first and, after that, fresh tiles (mode paper) or
    // means of clusters.
    const SpanCount counts(step, kDense ? nullptr : step.counts, share.unit);
    const SpanCount counts_after(
        step, kDense ? nullptr : (kPaper ? step.fresh_counts : step.kept_counts), share.unit);
    const Unit unit = kDense ? UnitFinder(step, share.unit).Find(step) : ReadUnit(step, share.unit);
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
      if (kPaper) ShareQuery<Row::kIsBF16, kDim, kHeadTiles>(step, unit, query);
      int* const first = reinterpret_cast<int*>(states_here);
      AddUpTwo(unit.spans, kPaper ? RowTiles(unit.forced) : unit.forced, first,
               first + unit.spans + 1, shared.scratch, [&](int j) {
                 const int after = counts_after[j];
                 return Two(counts[j], kPaper ? after : MeanTiles(step, unit, j, after));
               });
      const SpanLists list = {first, unit.spans, first[unit.spans]};
      // Tiles of these rows in the block's share, and what of it comes after them: the warp whose
      // turn it is goes on.
      const int after = kPaper ? list.total : RowTiles(list.total);
      const int last_row = min(end, after);
      const auto attend_after = [&](const auto& attend) {
        const int spans = OnlyHere(unit.spans);
        const int* const second = first + spans + 1;
        const int rows_before = first[spans];
        const int tiles = kPaper ? rows_before : RowTiles(rows_before);
        const int begin_after = max(begin, tiles) - tiles;
        attend(SpanLists{second, spans, second[spans]}, begin_after, end - tiles,
               max(0, tiles - begin));
      };
      if constexpr (kPaper) {
        rows = unit.forced + __ldcg(&step.selected[unit.number].rows);
        AttendScored<Row>(step, unit, list, min(begin, after), last_row, state);
        attend_after([&](const SpanLists& fresh, int from, int to, int turn) {
          AttendFresh<Row>(step, unit, fresh, query, from / kFreshTile, to / kFreshTile, turn,
                           state, own);
        });
        state.EndRows(max_rows, sum_rows);
      } else {
        rows = list.total;
        AttendRows<Row>(step, unit, list, min(begin, after), last_row, state);
        state.EndRows(max_rows, sum_rows);
        attend_after([&](const SpanLists& means, int from, int to, int turn) {
          AddTail(step, unit, means, from, to, turn, state);
        });
      }
    }
    __syncthreads();
    state.Store(max_rows, sum_rows, own, states_here + (thread >> 5) * group_size, step.group,
                step.value_unit, lane);
    __syncthreads();
    const Finish finish = {step, unit, dense, rows};
    const BlockRange range = shares.BlocksOf(share.unit);
    if (range.count == 1) {
      MergeStates<kDim, false>(states_here, kBlockWarps, group_size, step.group, finish);
      return;
    }
    // A block leaves one state for each unit: number by block and unit, since both only grow.
    const auto state_of = [&](int block) {
      return step.states + (int64_t{block} + share.unit) * group_size;
    };
    float* mine = state_of(blockIdx.x);
    MergeStates<kDim, false>(states_here, kBlockWarps, group_size, step.group, [&](int g) {
      return [of = mine + g * kSize](int x, float2 sum, const MergedHead& merged) {
        *reinterpret_cast<float2*>(of + x) = sum;
        if (x == 0) {
          *reinterpret_cast<float4*>(of + kDim) = {merged.max, merged.weights, merged.rows,
                                                   merged.own};
        }
      };
    });
    if (!EndsLast(step, unit, range.count, &shared.flag)) return;
    MergeStates<kDim, true>(state_of(range.first), range.count, group_size, step.group, finish);
  });
}

}  // namespace

Status LaunchAttend(const Step& step, Element type, Stream stream) {
  const size_t states =
      static_cast<size_t>(kBlockWarps) * step.group * StateSize(step.head_dim) * sizeof(float);
  const size_t list = 2 * (static_cast<size_t>(step.spans) + 1) * sizeof(int);
  const int units = step.batch * step.kv_heads;
  const size_t shared = (units + 4) / 4 * 4 * sizeof(int) + std::max(states, list);
  return DispatchStep(step, type, [&]<class Row, int kDim, int kHeadTiles>() {
    const auto kernel =
        step.mode == Mode::kDense   ? AttendKernel<Row, kDim, kHeadTiles, Mode::kDense>
        : step.mode == Mode::kPaper ? AttendKernel<Row, kDim, kHeadTiles, Mode::kPaper>
                                    : AttendKernel<Row, kDim, kHeadTiles, Mode::kTactic>;
    return Launch(kernel, step, dim3(step.attend_blocks), shared, stream);
  });
}

}  // namespace tactic::cuda
