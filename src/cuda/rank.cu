// Stage rank: logits of the rows that are read anyway, and what every cluster may hold.
//
// Everything later is relative to an anchor, so that bins have their place before any maximum is
// known: the largest logit of 16 rows that are usually among the largest, the first ones and the
// newest. Every block finds it for itself, which costs one tile.
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/score_rows.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {
namespace {

constexpr int kAnchorSinks = 4;
constexpr float kLargestHalf = 20;  // of v / 2, in nats, as in oracle_tactic.h
constexpr float kSureBound = 60000;  // octaves: an f16 that exceeds every threshold

struct RankShared {
  float anchors[kMaxGroup];
  float energies[kMaxGroup][kRuns];  // of the scaled query, over runs of elements
  float by_warp[kBlockWarps][kMaxGroup];
  float rotated[kBlockWarps][256];
};

// The largest logit of the tile, per head, to shared.anchors. One warp.
template <class Row, int kDim, int kHeadTiles>
__device__ void FindAnchors(const Step& step, const Unit& unit,
                            const QueryTile<kDim, kHeadTiles>& q, RankShared& shared) {
  const int lane = threadIdx.x & 31;
  const auto row = [&](int i) {
    return KeyRow<Row>(step, unit, i < kAnchorSinks ? i : unit.tokens - kTileRows + i);
  };
  KeyTile<Row, kDim> keys;
  keys.Load(row(lane >> 2), row((lane >> 2) + 8), lane);
  float s[kHeadTiles][4];
  keys.Score(q, s);
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float a = Capped(s[n][h] * step.key_unit, step.softcap);
      const float b = Capped(s[n][h + 2] * step.key_unit, step.softcap);
      // A maximum that keeps NaN: such a query or key has no order.
      float most = a != a || b != b ? a + b : fmaxf(a, b);
#pragma unroll
      for (int k = 4; k < 32; k <<= 1) {
        const float other = __shfl_xor_sync(kAllLanes, most, k);
        most = most != most || other != other ? most + other : fmaxf(most, other);
      }
      const int head = n * kTileHeads + 2 * (lane & 3) + h;
      if (lane < 4 && head < step.group) shared.anchors[head] = most;
    }
  }
}

// Logits and mass of the forced rows that fall to this warp.
template <class Row, int kDim, int kHeadTiles>
__device__ void ScoreForced(const Step& step, const Unit& unit,
                            const QueryTile<kDim, kHeadTiles>& q, const RankShared& shared,
                            float (&mass)[kHeadTiles][2]) {
  const int lane = threadIdx.x & 31;
  const int warp = blockIdx.x * kBlockWarps + (threadIdx.x >> 5);
  const int64_t base = static_cast<int64_t>(unit.number) * step.forced_room;
  for (int tile = warp; tile * kTileRows < unit.forced; tile += gridDim.x * kBlockWarps) {
    const int low = tile * kTileRows + (lane >> 2);
    const int high = low + 8;
    const auto row = [&](int i) {
      return KeyRow<Row>(step, unit, unit.ForcedRow(min(i, unit.forced - 1), step.sinks));
    };
    KeyTile<Row, kDim> keys;
    keys.Load(row(low), row(high), lane);
    float s[kHeadTiles][4];
    keys.Score(q, s);
    if ((lane & 3) == 0) {
      if (low < unit.forced) step.forced_rows[base + low] = unit.ForcedRow(low, step.sinks);
      if (high < unit.forced) step.forced_rows[base + high] = unit.ForcedRow(high, step.sinks);
    }
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int head = n * kTileHeads + 2 * (lane & 3) + (k & 1);
        const int i = k < 2 ? low : high;
        if (head >= step.group || i >= unit.forced) continue;
        const float logit = Capped(s[n][k] * step.key_unit, step.softcap);
        step.forced_logits[(base + i) * step.group + head] = logit;
        mass[n][k & 1] += Exp2(logit - shared.anchors[head]);
      }
    }
  }
}

// Two spreads of a cluster, squared.
__device__ __forceinline__ uint32_t Squares(const ClusterFacts& facts, int run) {
  const float a = __uint_as_float(uint32_t{facts.spreads[run]} << 20) * kByteFloatUnit;
  const float b = __uint_as_float(uint32_t{facts.spreads[run + 1]} << 20) * kByteFloatUnit;
  return Pack<true>(a * a, b * b);
}

// What is known of one cluster and query head: the score, and the variance of members' logits about
// it in nats.
struct ClusterView {
  float score;
  float variance;
  float longest;
  int size;
  bool page;
};

// Logs, in octaves, of what a cluster has at least (Jensen), its estimated mass, and what a single
// member could have at three standard deviations; oracle_tactic.h.
struct ClusterBounds {
  float floor;
  float mass;
  float token;
};
__device__ __forceinline__ ClusterBounds BoundsOf(const ClusterView& c, float softcap) {
  const float log_size = __logf(static_cast<float>(c.size));
  const float v = fminf(c.variance, 2 * kLargestHalf);
  const float excess = v < 2 * log_size ? v / 2 : sqrtf(2 * v * log_size) - log_size;
  const float floor = Capped(c.score, softcap) + log_size * kLog2e;
  // The variance is a sum of rounded products: the bound must not be low for that.
  constexpr float kRounding = 1.01f;
  return {floor, floor + excess * kLog2e,
          Capped(c.score + 3 * kRounding * sqrtf(c.variance) * c.longest * kLog2e, softcap)};
}

// Scores, bounds and bins of the clusters that fall to this warp, and the sum of their floors.
template <int kDim, int kHeadTiles, bool kPaper>
__device__ void RankClusters(const Step& step, const Unit& unit, const RankShared& shared,
                             uint32_t* bins, float (&floors)[kHeadTiles][2]) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  const int t = lane & 3;
  const DeviceIndex& index = *unit.index;
  const int count = unit.closed * step.slots + unit.pages;
  const int8_t* centroids = index.centroids + unit.Slot(0, step.slots) * kDim;
  const ClusterFacts* facts = index.facts + unit.Slot(0, step.slots);
  const uint16_t* starts = index.starts + unit.Slot(0, step.slots + 1);
  const int64_t base = static_cast<int64_t>(unit.number) * step.segments * step.slots;
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<false>(step, unit, q);
  uint32_t energies[kHeadTiles][2];
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = n * kTileHeads + r;
      const float* of = shared.energies[head < step.group ? head : 0] + 2 * t + 8 * half;
      energies[n][half] = head < step.group ? Pack<true>(of[0], of[1]) : 0u;
    }
  }
  const int warp = blockIdx.x * kBlockWarps + (threadIdx.x >> 5);
  for (int tile = warp; tile * kTileRows < count; tile += gridDim.x * kBlockWarps) {
    const int cluster[2] = {tile * kTileRows + r, tile * kTileRows + r + 8};
    const int at[2] = {min(cluster[0], count - 1), min(cluster[1], count - 1)};
    KeyTile<RowI8, kDim> keys;
    keys.Load(reinterpret_cast<const uint8_t*>(centroids + int64_t{at[0]} * kDim),
              reinterpret_cast<const uint8_t*>(centroids + int64_t{at[1]} * kDim), lane);
    ClusterView view[2];
    float scales[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint16_t* start = starts + at[i] / step.slots * (step.slots + 1) + at[i] % step.slots;
      view[i].size = cluster[i] < count ? start[1] - start[0] : 0;
      view[i].page = at[i] >= unit.closed * step.slots;
      view[i].longest = __uint_as_float(uint32_t{facts[at[i]].longest} << 20) * kByteFloatUnit;
      scales[i] = __half2float(__ushort_as_half(facts[at[i]].scale)) * step.scale;
    }
    float s[kHeadTiles][4];
    keys.Score(q, s);
    float variances[kHeadTiles][4] = {};
    if constexpr (!kPaper) {
      const uint32_t a0 = Squares(facts[at[0]], 2 * t);
      const uint32_t a1 = Squares(facts[at[1]], 2 * t);
      const uint32_t a2 = Squares(facts[at[0]], 2 * t + 8);
      const uint32_t a3 = Squares(facts[at[1]], 2 * t + 8);
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n)
        Multiply<true>(variances[n], a0, a1, a2, a3, energies[n][0], energies[n][1]);
    }
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int i = k >> 1;
        const int head = n * kTileHeads + 2 * t + (k & 1);
        if (head >= step.group || cluster[i] >= count) continue;
        view[i].score = s[n][k] * scales[i];
        const int64_t to = (base + cluster[i]) * step.group + head;
        const float anchor = shared.anchors[head];
        if constexpr (kPaper) {
          const float score = Capped(view[i].score, step.softcap) - anchor;
          step.scores[to] = view[i].size > 0 ? score : kNone;
          if (view[i].size > 0) atomicAdd(bins + head * kBins + BinOf(score), view[i].size);
        } else {
          view[i].variance = variances[n][k];
          ClusterBounds bounds = BoundsOf(view[i], step.softcap);
          const float mass = view[i].size > 0 ? bounds.mass - anchor : -kSureBound;
          float token = view[i].size > 0 ? bounds.token - anchor : -kSureBound;
          if (view[i].page && view[i].size > 0) token = kSureBound;  // pages are never skipped
          step.scores[to] = view[i].score;
          step.bounds[to] = Pack<false>(fminf(fmaxf(mass, -kSureBound), kSureBound),
                                        fminf(fmaxf(token, -kSureBound), kSureBound));
          if (view[i].size > 0) {
            floors[n][k & 1] += Exp2(bounds.floor - anchor);
            if (!view[i].page) atomicAdd(bins + head * kMassBins + MassBinOf(mass), 1u);
          }
        }
      }
    }
  }
}

// Query head g as the codes are scanned with. One warp; `x`: room for a query.
__device__ void RotateQuery(const Step& step, const Unit& unit, int g, float* x) {
  const int lane = threadIdx.x & 31;
  const float scale = step.scale * kLn2;
  float norm = 0;
  for (int i = lane; i < step.head_dim; i += 32) {
    const float value = QueryElement(step, unit, g, i) * scale;
    norm += value * value;
    x[i] = (step.signs[i / 32] >> (i % 32) & 1) != 0 ? -value : value;
  }
  for (int begin = 0; begin < step.head_dim;) {
    const int size = 1 << (31 - __clz(step.head_dim - begin));
    for (int half = 1; half < size; half *= 2) {
      __syncwarp();
      for (int i = lane; i < size / 2; i += 32) {
        float* a = x + begin + i / half * 2 * half + i % half;
        const float sum = a[0] + a[half];
        a[half] = a[0] - a[half];
        a[0] = sum;
      }
    }
    __syncwarp();
    const float unit_length = rsqrtf(static_cast<float>(size));
    for (int i = lane; i < size; i += 32) x[begin + i] *= unit_length;
    begin += size;
  }
  __syncwarp();
  float most = 0;
  for (int i = lane; i < step.head_dim; i += 32) most = fmaxf(most, fabsf(x[i]));
#pragma unroll
  for (int k = 16; k > 0; k >>= 1) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, k));
  const float one = most / 127;
  const int64_t head = static_cast<int64_t>(unit.number) * step.group + g;
  int sum = 0;
  for (int i = lane; i < step.head_dim; i += 32) {
    const int byte = one > 0 ? static_cast<int>(roundf(x[i] / one)) : 0;
    step.rotated[head * step.head_dim + i] = static_cast<int8_t>(byte);
    sum += byte;
  }
  sum = WarpSum(sum);
  norm = WarpSum(norm);
  if (lane == 0) step.queries[head] = {one, norm, sum};
}

template <class Row, int kDim, int kHeadTiles, bool kPaper>
__global__ void __launch_bounds__(kBlockThreads) RankKernel(const __grid_constant__ Step step) {
  extern __shared__ uint32_t bins[];  // [group][kBins or kMassBins]
  __shared__ RankShared shared;
  WaitForPrevious();
  LetNextBegin();
  const Unit unit = MakeUnit(step, blockIdx.y);
  const int thread = threadIdx.x;
  const bool first = blockIdx.x == 0;
  if (!unit.readable) {
    if (first && thread == 0) step.dense[unit.number] = 1;
    return;
  }
  constexpr int kBinsHere = kPaper ? kBins : kMassBins;
  for (int i = thread; i < step.group * kBinsHere; i += kBlockThreads) bins[i] = 0;
  if constexpr (!kPaper) {
    const float scale = step.scale * kLn2;
    for (int i = thread; i < step.group * kRuns; i += kBlockThreads) {
      float energy = 0;
      const int g = i / kRuns;
      // Run of element x: x kRuns / kDim.
      for (int x = (i % kRuns * kDim + kRuns - 1) / kRuns; x * kRuns / kDim == i % kRuns; ++x) {
        const float value = QueryElement(step, unit, g, x) * scale;
        energy += value * value;
      }
      shared.energies[g][i % kRuns] = energy;
    }
  }
  float forced[kHeadTiles][2] = {};
  float floors[kHeadTiles][2] = {};
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<Row::kIsBF16>(step, unit, q);
  if (thread < 32) FindAnchors<Row>(step, unit, q, shared);
  __syncthreads();
  bool finite = true;
  for (int g = 0; g < step.group; ++g) finite = finite && isfinite(shared.anchors[g]);
  if (first && thread == 0) step.dense[unit.number] = finite ? 0 : 1;
  if (!finite) return;
  if (first && thread < step.group) {
    step.anchors[unit.number * step.group + thread] = __float_as_uint(shared.anchors[thread]);
  }
  ScoreForced<Row>(step, unit, q, shared, forced);
  RankClusters<kDim, kHeadTiles, kPaper>(step, unit, shared, bins, floors);
  if constexpr (!kPaper) {
    // The last block has the fewest tiles.
    if (blockIdx.x == gridDim.x - 1) {
      for (int g = thread >> 5; g < step.group; g += kBlockWarps)
        RotateQuery(step, unit, g, shared.rotated[thread >> 5]);
    }
  }
  const int64_t sums = (int64_t{unit.number} * step.parts + blockIdx.x) * step.group;
  SumHeads(forced, step.group, shared.by_warp, step.part_forced + sums);
  SumHeads(floors, step.group, shared.by_warp, step.part_floors + sums);
  uint32_t* all = step.cluster_bins + int64_t{unit.number} * step.group * kBins;
  for (int i = thread; i < step.group * kBinsHere; i += kBlockThreads) {
    if (bins[i] != 0) atomicAdd(all + i / kBinsHere * kBins + i % kBinsHere, bins[i]);
  }
}

}  // namespace

Status LaunchRank(const Step& step, Element type, Stream stream) {
  const bool paper = step.mode == Mode::kPaper;
  const size_t shared = static_cast<size_t>(step.group) * (paper ? kBins : kMassBins) * 4;
  return DispatchStep(step, type, [&]<class Row, int kDim, int kHeadTiles>() {
    if (paper) return Launch(RankKernel<Row, kDim, kHeadTiles, true>, step, step.parts,
                  shared, stream);
    return Launch(RankKernel<Row, kDim, kHeadTiles, false>, step, step.parts,
                  shared, stream);
  });
}

}  // namespace tactic::cuda
