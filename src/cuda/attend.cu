// Stages attend and combine: softmax over the rows that were chosen, or over all of them.
//
// The logits of chosen rows are known, so only values are read. A unit that is read densely takes
// the other path here: keys and values of all rows. Units differ by orders of magnitude in what
// they read: so all tiles of all units are one sequence, of which every block has an even share. It
// leaves a softmax state for each unit in it; the block of a unit that ends last merges them, in
// order.
#include <algorithm>

#include "src/cuda/combine.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {
namespace {

struct AttendShared {
  int scratch[kBlockWarps];
  int flag;
  MergedHead merged[kMaxGroup];
  float factors[kBlockWarps * kMaxGroup];
};

// Where the rows of a unit are: forced ones first, then those of each span.
struct RowList {
  const int* before;  // [spans + 1]: rows ahead of each span's; last: all
  int spans;
  int total;
};

// One row of the list: its logits are those of row `at` of Step::logits, or of row ~at of
// Step::forced_logits.
struct RowPlace {
  int64_t at;
  int position;
};
__device__ __forceinline__ RowPlace FindRow(const Step& step, const Unit& unit, const RowList& list,
                                            int i) {
  if (i < unit.forced) {
    const int64_t at = int64_t{unit.number} * step.forced_room + i;
    return {~at, unit.ForcedRow(i, step.sinks)};
  }
  int low = 0;
  int high = list.spans;  // before[low] <= i < before[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (list.before[middle] <= i)
      low = middle;
    else
      high = middle;
  }
  const int64_t base = (int64_t{unit.number} * step.spans + low) * step.span_keys;
  const uint32_t row = __ldcg(step.rows + base + (i - list.before[low]));
  return {base + SlotOfRow(row), low * step.span_keys + PlaceOfRow(row)};
}

// Adds up count(j) for j in [0, n), from `first` on: before[j], and before[n]. All threads.
template <class Count>
__device__ int AddUp(int n, int first, int* before, int* scratch, const Count& count) {
  int all = first;
  for (int j0 = 0; j0 < n; j0 += kBlockThreads) {
    const int j = j0 + static_cast<int>(threadIdx.x);
    int sum;
    const int place = BlockScan(j < n ? count(j) : 0, scratch, &sum);
    if (j < n) before[j] = all + place;
    all += sum;
  }
  if (threadIdx.x == 0) before[n] = all;
  __syncthreads();
  return all;
}

template <class Row, int kDim, int kHeadTiles>
__device__ void AttendChosen(const Step& step, const Unit& unit, const RowList& list, int begin,
                             int end, SoftmaxTile<kDim, kHeadTiles>& state) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  const int t = lane & 3;
  int tile = begin + static_cast<int>(threadIdx.x >> 5);
  if (tile >= end) return;
  const auto find = [&](int of) {
    return FindRow(step, unit, list, min(of * kTileRows + (lane & 15), list.total - 1));
  };
  RowPlace place = find(tile);
  ValueTile<Row, kDim> values;
  for (; tile < end; tile += kBlockWarps) {
    const uint8_t* rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int of = 2 * t + i % 2 + i / 2 * 8;
      rows[i] = ValueRow<Row>(step, unit, __shfl_sync(kAllLanes, place.position, of));
    }
    values.Load(rows, lane);
    float s[kHeadTiles][4];
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
      const int64_t at = __shfl_sync(kAllLanes, place.at, r + k / 2 * 8);
      const float* logits =
          at >= 0 ? step.logits + at * step.group : step.forced_logits + ~at * step.group;
      const bool there = tile * kTileRows + r + k / 2 * 8 < list.total;
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = LaneHead(n, h);
          s[n][k + h] = there && head < step.group ? __ldcg(logits + head) : kNone;
        }
      }
    }
    if (tile + kBlockWarps < end) place = find(tile + kBlockWarps);
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
                    : step.cache.Offset(unit.sequence, of * kTileRows + row, unit.head);
  };
  const auto first_of = [&](int of) {
    return step.cache.Offset(unit.sequence, of * kTileRows, unit.head);
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
  for (int i = begin + static_cast<int>(threadIdx.x >> 5); i < end; i += kBlockWarps) {
    const int segment = i / tiles;
    const int first = i % tiles * kTileRows;
    const int64_t base = static_cast<int64_t>(unit.number) * step.segments + segment;
    float s[kHeadTiles][4];
    bool any = false;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int slot = first + r + k / 2 * 8;
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
        const int head = LaneHead(n, k & 1);
        float mass = 0;
        if (head < step.group) {
          if (slot < step.slots && __ldcg(step.kept + base * step.slots + slot) != 0) {
            mass = __ldcg(step.unread + (base * step.slots + slot) * step.group + head);
          } else if (slot == step.slots) {
            mass = __ldcg(step.skipped + base * step.group + head);
          }
        }
        s[n][k] = mass > 0 ? log2f(mass) + anchors.of[n][k & 1] : kNone;
        any = any || mass > 0;
      }
    }
    if (!__any_sync(kAllLanes, any)) continue;
    const int8_t* values = unit.means + int64_t{segment} * means * kDim;
    const uint16_t* scales = unit.mean_scales + int64_t{segment} * means;
    const auto slot = [&](int row) { return min(first + row, step.slots); };
    const auto scale = [&](int row) {
      return __half2float(__ushort_as_half(scales[slot(row)])) * to_mean;
    };
    const uint8_t* rows[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      rows[k] = reinterpret_cast<const uint8_t*>(values) +
                static_cast<int64_t>(slot(2 * t + k % 2 + k / 2 * 8)) * kDim;
    }
    ValueTile<RowI8, kDim> tile;
    tile.Load(rows, lane);
    state.Add(s, tile, scale(r), scale(r + 8));
  }
}

// How many of the grid's blocks share `tiles`: those that run at once, or more where there is
// enough to do for each (kLeastTiles).
__device__ __forceinline__ int64_t BlocksAtWork(const Step& step, int64_t tiles) {
  const int64_t worthwhile = min(static_cast<int64_t>(gridDim.x), tiles / kLeastTiles);
  return min(tiles, max(static_cast<int64_t>(step.attend_wave), worthwhile));
}

// kDense: the whole batch is read densely.
template <class Row, int kDim, int kHeadTiles, bool kDense>
__global__ void __launch_bounds__(kBlockThreads, BlocksFor(kDim, kHeadTiles, 2))
    AttendKernel(const __grid_constant__ Step step) {
  extern __shared__ int dynamic[];
  __shared__ AttendShared shared;
  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int units = step.batch * step.kv_heads;
  int* const before = dynamic;  // [units + 1]: tiles of the units ahead
  // Rows ahead of each span's; later states of the warps.
  float* const states_here = reinterpret_cast<float*>(dynamic + (units + 4) / 4 * 4);
  constexpr int kSize = kStateSize<kDim>;
  const int group_size = step.group * kSize;
  WaitForPrevious();
  LetNextBegin();
  // What rank counts into has to be zero again, and nobody reads it any more.
  if (!kDense) {
    const int64_t bins = int64_t{units} * step.group * kBins;
    for (int64_t i = blockIdx.x * kBlockThreads + thread; i < bins;
         i += gridDim.x * kBlockThreads) {
      step.cluster_bins[i] = 0;
      if (step.mode == Mode::kPaper) step.bin_masses[i] = 0;
      if (step.mode == Mode::kTactic) step.key_bins[i] = 0;
    }
    if (step.mode == Mode::kPaper && blockIdx.x == 0) {
      for (int i = thread; i < units * step.group * 2; i += kBlockThreads) step.windows[i] = {};
    }
  }
  const int64_t all = AddUp(units, 0, before, shared.scratch, [&](int u) {
    return kDense ? RowTiles(__ldg(step.lengths + u / step.kv_heads)) : __ldcg(step.tiles + u);
  });
  const int64_t blocks = BlocksAtWork(step, all);
  if (blockIdx.x >= blocks) return;
  // Tile x is block ((x + 1) * blocks - 1) / all's.
  const auto block_of = [&](int64_t tile) {
    return static_cast<int>(((tile + 1) * blocks - 1) / all);
  };
  int at = static_cast<int>(all * blockIdx.x / blocks);
  const int stop = static_cast<int>(all * (blockIdx.x + 1) / blocks);
  int number = 0;
  for (int low = 0, high = units; high - low > 1;) {
    const int middle = (low + high) / 2;
    if (before[middle] <= at)
      low = middle;
    else
      high = middle;
    number = low;
  }
  for (; at < stop; ++number) {
    const int next = before[number + 1];
    if (next <= at) continue;  // a unit without rows
    const int first = before[number];
    const int begin = at - first;
    const int end = min(stop, next) - first;
    at = min(stop, next);
    const Unit unit = kDense ? FindUnit(step, number) : ReadUnit(step, number);
    const bool dense = kDense || IsDense(step, unit);
    SoftmaxTile<kDim, kHeadTiles> state;
    float max_rows[kHeadTiles][2];
    float sum_rows[kHeadTiles][2];
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
      rows = AddUp(unit.spans, unit.forced, list_room, shared.scratch,
                   [&](int j) { return __ldcg(step.counts + counts + j); });
      const int row_tiles = RowTiles(rows);
      AttendChosen<Row>(step, unit, {list_room, unit.spans, rows}, begin, min(end, row_tiles),
                        state);
      state.EndRows(max_rows, sum_rows);
      if (end > row_tiles)
        AddTail(step, unit, max(begin, row_tiles) - row_tiles, end - row_tiles, state);
    }
    __syncthreads();
    state.Store(max_rows, sum_rows, states_here + (thread >> 5) * group_size, step.group,
                step.value_unit, lane);
    __syncthreads();
    const auto finish = [&](int g, int x, float2 sum, const MergedHead& merged) {
      Finish<kDim>(step, unit, dense, rows, g, x, sum, merged);
    };
    const int first_block = block_of(first);
    const int sharing = block_of(next - 1) - first_block + 1;
    if (sharing == 1) {
      MergeStates<kDim, false>(states_here, kBlockWarps, group_size, step.group, shared.factors,
                               shared.merged, finish);
      continue;
    }
    // A block leaves one state for each unit: number by block and unit, since both only grow.
    const auto state_of = [&](int block) {
      return step.states + (int64_t{block} + number) * group_size;
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
                             });
    if (!EndsLast(step, unit, sharing, &shared.flag)) continue;
    MergeStates<kDim, true>(state_of(first_block), sharing, group_size, step.group, states_here,
                            shared.merged, finish);
  }
}

}  // namespace

Status LaunchAttend(const Step& step, Element type, Stream stream) {
  const size_t states =
      static_cast<size_t>(kBlockWarps) * step.group * StateSize(step.head_dim) * sizeof(float);
  const size_t list = (static_cast<size_t>(step.spans) + 1) * sizeof(int);
  const int units = step.batch * step.kv_heads;
  const size_t factors = static_cast<size_t>(step.attend_blocks) * step.group * sizeof(float);
  const size_t shared =
      (units + 4) / 4 * 4 * sizeof(int) + std::max(states, std::max(list, factors));
  const bool dense = step.mode == Mode::kDense;
  return DispatchStep(step, type, [&]<class Row, int kDim, int kHeadTiles>() {
    const auto kernel = dense ? AttendKernel<Row, kDim, kHeadTiles, true>
                              : AttendKernel<Row, kDim, kHeadTiles, false>;
    return Launch(kernel, step, dim3(step.attend_blocks), shared, stream);
  });
}

}  // namespace tactic::cuda
