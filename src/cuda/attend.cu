// Stages attend and combine: softmax over the rows that were chosen, or over all of them.
//
// The logits of chosen rows are known, so only values are read. A unit that is read densely takes
// the other path here: keys and values of all rows, tile by tile. Every block has one share of its
// unit's rows and leaves a softmax state; the block of a unit that ends last merges them, in order.
#include <algorithm>

#include "src/cuda/heads.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {
namespace {

struct AttendShared {
  int scratch[kBlockWarps];
  int flag;
};

// Where the rows of a unit are: forced ones first, then those of each segment.
struct RowList {
  const int* before;  // [segments + 1]: rows ahead of each segment's; last: all
  int segments;
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
  int high = list.segments;  // before[low] <= i < before[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (list.before[middle] <= i) low = middle;
    else high = middle;
  }
  const int64_t at =
      (int64_t{unit.number} * step.segments + low) * step.segment_size + (i - list.before[low]);
  return {at, __ldcg(step.rows + at)};
}

// Counts of the segments' rows, added up. `before`: shared memory.
__device__ RowList ListRows(const Step& step, const Unit& unit, int* before, int* scratch) {
  int all = unit.forced;
  for (int first = 0; first < unit.segments; first += kBlockThreads) {
    const int j = first + static_cast<int>(threadIdx.x);
    const int count =
        j < unit.segments
            ? __ldcg(step.counts + static_cast<int64_t>(unit.number) * step.segments + j)
            : 0;
    int sum;
    const int place = BlockScan(count, scratch, &sum);
    if (j < unit.segments) before[j] = all + place;
    all += sum;
  }
  if (threadIdx.x == 0) before[unit.segments] = all;
  __syncthreads();
  return {before, unit.segments, all};
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
      const float* logits = at >= 0 ? step.logits + at * step.group
                                    : step.forced_logits + ~at * step.group;
      const bool there = tile * kTileRows + r + k / 2 * 8 < list.total;
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = n * kTileHeads + 2 * t + h;
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
  const auto position = [&](int of, int i) { return min(of * kTileRows + i, unit.tokens - 1); };
  KeyTile<Row, kDim> keys;
  ValueTile<Row, kDim> values;
  const auto load_keys = [&](int of) {
    keys.Load(KeyRow<Row>(step, unit, position(of, r)), KeyRow<Row>(step, unit, position(of, r + 8)),
              lane);
  };
  if (kAhead) load_keys(tile);
  for (; tile < end; tile += kBlockWarps) {
    if (!kAhead) load_keys(tile);
    const uint8_t* rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      rows[i] = ValueRow<Row>(step, unit, position(tile, 2 * t + i % 2 + i / 2 * 8));
    values.Load(rows, lane);
    float s[kHeadTiles][4];
    keys.Score(q, s);
    if (kAhead && tile + kBlockWarps < end) load_keys(tile + kBlockWarps);
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

// Means of values, for members that were not read and for clusters that were skipped.
template <int kDim, int kHeadTiles>
__device__ void AddTail(const Step& step, const Unit& unit, SoftmaxTile<kDim, kHeadTiles>& state) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  const int t = lane & 3;
  const int warp = threadIdx.x >> 5;
  const int means = step.slots + 1;
  const int tiles = (means + kTileRows - 1) / kTileRows;
  const float to_mean = 1 / step.value_unit;
  for (int i = blockIdx.x * kBlockWarps + warp; i < unit.segments * tiles;
       i += gridDim.x * kBlockWarps) {
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
        const int head = n * kTileHeads + 2 * t + (k & 1);
        float mass = 0;
        if (head < step.group) {
          if (slot < step.slots && __ldcg(step.kept + base * step.slots + slot) != 0) {
            mass = __ldcg(step.unread + (base * step.slots + slot) * step.group + head);
          } else if (slot == step.slots) {
            mass = __ldcg(step.skipped + base * step.group + head);
          }
        }
        s[n][k] = mass > 0 ? log2f(mass) + AnchorOf(step, unit, head) : kNone;
        any = any || mass > 0;
      }
    }
    if (!__any_sync(kAllLanes, any)) continue;
    const int8_t* values = unit.index->means + unit.Slot(segment, means) * kDim;
    const uint16_t* scales = unit.index->mean_scales + unit.Slot(segment, means);
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

// Merges `count` states, which are `stride` floats apart, of every head of the group; done(g, x,
// sum, max, weights, weights of rows) gets element x of the sums.
// kGlobal: they are other blocks', in device memory.
template <int kDim, bool kGlobal, class Done>
__device__ void MergeStates(const float* states, int count, int64_t stride, int group,
                            const Done& done) {
  const auto read = [](const float* p) { return kGlobal ? __ldcg(p) : *p; };
  for (int i = threadIdx.x; i < group * kDim; i += kBlockThreads) {
    const int g = i / kDim;
    const int x = i % kDim;
    const float* of = states + g * kStateSize<kDim>;
    float max = kNothing;
#pragma unroll 8
    for (int k = 0; k < count; ++k) max = fmaxf(max, read(of + k * stride + kDim));
    float sum = 0;
    float weights = 0;
    float rows = 0;
#pragma unroll 8
    for (int k = 0; k < count; ++k) {
      const float* state = of + k * stride;
      const float f = Exp2(read(state + kDim) - max);
      sum += f * read(state + x);
      weights += f * read(state + kDim + 1);
      rows += f * read(state + kDim + 2);
    }
    done(g, x, sum, max, weights, rows);
  }
}

// What a head of a unit that was not read densely is known to have selected.
__device__ void ReportOwn(const Step& step, const Unit& unit, int g, DeviceReport* report) {
  const int64_t head = static_cast<int64_t>(unit.number) * step.group + g;
  float exact = 0;
  if (step.mode == Mode::kTactic) {
    const HeadMass& m = step.masses[head];
    exact = m.exact;
    report->own_rows = m.rows + unit.forced;
    report->p_hat = Believed(m);
    report->rounds = m.rounds;
  } else {
    for (int p = 0; p < step.rank_parts; ++p) {
      exact += step.part_forced[(int64_t{unit.number} * step.rank_parts + p) * step.group + g];
    }
    for (int j = 0; j < unit.segments; ++j)
      exact += step.exact[(int64_t{unit.number} * step.segments + j) * step.group + g];
    report->own_rows = step.ranks[head].own_rows + unit.forced;
    report->p_hat = -1;
  }
  report->own_lse = (AnchorOf(step, unit, g) + log2f(exact)) * kLn2;
}

template <int kDim>
__device__ void Finish(const Step& step, const Unit& unit, bool dense, int union_rows, int g, int x,
                       float sum, float max, float weights, float rows) {
  const int64_t head = static_cast<int64_t>(unit.number) * step.group + g;
  WriteElement(step.out, step.out_type, head * kDim + x, weights > 0 ? sum / weights : 0.0f);
  if (x != 0) return;
  DeviceReport report;
  report.union_rows = union_rows;
  report.union_lse = (max + log2f(rows)) * kLn2;
  report.own_rows = report.union_rows;
  report.own_lse = report.union_lse;
  report.p_hat = 1;
  report.rounds = 0;
  if (!dense) ReportOwn(step, unit, g, &report);
  step.reports[head] = report;
  if (g != 0) return;
  step.listed[2 * unit.number] = dense ? 0 : unit.forced;
  step.listed[2 * unit.number + 1] = dense ? 0 : unit.segments;
}

// kDense: the whole batch is read densely.
template <class Row, int kDim, int kHeadTiles, bool kDense>
__global__ void __launch_bounds__(kBlockThreads, kDim > 128 || kHeadTiles > 1 ? 1 : 2)
    AttendKernel(const __grid_constant__ Step step) {
  extern __shared__ float dynamic[];  // rows before each segment; later states of the warps
  __shared__ AttendShared shared;
  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int warp = thread >> 5;
  WaitForPrevious();
  LetNextBegin();
  const Unit unit = MakeUnit(step, blockIdx.y);
  const bool dense = kDense || IsDense(step, unit);
  RowList list = {};
  if (!dense) list = ListRows(step, unit, reinterpret_cast<int*>(dynamic), shared.scratch);
  SoftmaxTile<kDim, kHeadTiles> state;
  float max_rows[kHeadTiles][2];
  float sum_rows[kHeadTiles][2];
  state.Clear();
  const int rows = dense ? unit.tokens : list.total;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const auto begin = static_cast<int>(tiles * blockIdx.x / gridDim.x);
  const auto end = static_cast<int>(tiles * (blockIdx.x + 1) / gridDim.x);
  if (kDense || dense) {
    AttendAll<Row, kDim, kHeadTiles, kDense>(step, unit, begin, end, state);
    state.EndRows(max_rows, sum_rows);
  } else {
    AttendChosen<Row>(step, unit, list, begin, end, state);
    state.EndRows(max_rows, sum_rows);
    if (step.mode == Mode::kTactic && step.tail != 0) AddTail(step, unit, state);
  }
  // What rank counts into has to be zero again, and nobody reads it any more.
  if (!kDense) {
    const int64_t bins = static_cast<int64_t>(unit.number) * step.group * kBins;
    for (int i = blockIdx.x * kBlockThreads + thread; i < step.group * kBins;
         i += gridDim.x * kBlockThreads) {
      step.cluster_bins[bins + i] = 0;
      if (step.mode == Mode::kPaper) step.bin_masses[bins + i] = 0;
      if (step.mode == Mode::kTactic) step.key_bins[bins + i] = 0;
    }
  }
  __syncthreads();
  constexpr int kSize = kStateSize<kDim>;
  const int group_size = step.group * kSize;
  state.Store(max_rows, sum_rows, dynamic + warp * group_size, step.group, step.value_unit, lane);
  __syncthreads();
  const auto finish = [&](int g, int x, float sum, float max, float weights, float of_rows) {
    Finish<kDim>(step, unit, dense, rows, g, x, sum, max, weights, of_rows);
  };
  if (gridDim.x == 1) {
    MergeStates<kDim, false>(dynamic, kBlockWarps, group_size, step.group, finish);
    return;
  }
  float* states = step.states + static_cast<int64_t>(unit.number) * gridDim.x * group_size;
  float* mine = states + blockIdx.x * group_size;
  MergeStates<kDim, false>(dynamic, kBlockWarps, group_size, step.group,
                           [&](int g, int x, float sum, float max, float weights, float of_rows) {
                             float* of = mine + g * kSize;
                             of[x] = sum;
                             if (x != 0) return;
                             of[kDim] = max;
                             of[kDim + 1] = weights;
                             of[kDim + 2] = of_rows;
                           });
  if (!EndsLast(step, unit, &shared.flag)) return;
  MergeStates<kDim, true>(states, gridDim.x, group_size, step.group, finish);
}

}  // namespace

Status LaunchAttend(const Step& step, Element type, Stream stream) {
  const size_t states =
      static_cast<size_t>(kBlockWarps) * step.group * (step.head_dim + 3) * sizeof(float);
  const size_t list = (static_cast<size_t>(step.segments) + 1) * sizeof(int);
  const bool dense = step.mode == Mode::kDense;
  return DispatchStep(step, type, [&]<class Row, int kDim, int kHeadTiles>() {
    const auto kernel = dense ? AttendKernel<Row, kDim, kHeadTiles, true>
                              : AttendKernel<Row, kDim, kHeadTiles, false>;
    return Launch(kernel, step, step.attend_parts, std::max(states, list), stream);
  });
}

}  // namespace tactic::cuda
