// Stage rank: logits of the rows that are read anyway, and what every cluster may hold.
//
// Everything later is relative to an anchor, so that bins have their place before any maximum is
// known: the largest logit of 16 rows that are usually among the largest, the first ones and the
// newest, and of 112 clusters. Every block finds it for itself, a tile to a warp.
#include "src/cuda/byte_query.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/lane_share.cuh"
#include "src/cuda/launch.cuh"
#include "src/cuda/rank_plan.cuh"
#include "src/cuda/rotate.cuh"
#include "src/cuda/step.cuh"
#include "src/cuda/sum_heads.cuh"
#include "src/selection_rule.h"

namespace tactic::cuda {
namespace {

constexpr int kAnchorSinks = 4;
constexpr float kSureBound = 60000;  // octaves: an f16 that exceeds every threshold

struct RankShared {
  float anchors[kMaxGroup];
  float energies[kMaxGroup][kRuns];  // of the scaled query, over runs of elements
  float by_warp[kBlockWarps][kMaxGroup];
  float rotated[kMaxGroup][kMaxRotated];
  int flag;
};

// The larger; NaN where one is: a query or key that is not finite has no order.
__device__ __forceinline__ float MaxOrNaN(float a, float b) {
  return a != a || b != b ? a + b : fmaxf(a, b);
}

// The largest of what the lanes have for their heads, which lanes `stride` apart share.
__device__ __forceinline__ float LargestOfLanes(float x, int stride) {
  for (int k = stride; k < 32; k <<= 1) x = MaxOrNaN(x, __shfl_xor_sync(kAllLanes, x, k));
  return x;
}

// Every warp looks at a tile: the first at the first rows and the newest, the others at clusters
// from all over the sequence, for queries that look for neither. meanwhile() is called when its
// loads are under way. All threads; needs a barrier after it.
template <class Row, int kDim, int kHeadTiles, bool kFour, class Work>
__device__ void FindAnchors(const Step& step, const Unit& unit,
                            const QueryTile<kDim, kHeadTiles>& q,
                            const ByteQuery<kDim, kHeadTiles, kFour>& byte_q, int clusters,
                            const Work& meanwhile, RankShared& shared) {
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  float s[kHeadTiles][4];
  if (warp == 0) {
    const auto row = [&](int i) {
      return KeyRow<Row>(step, unit, i < kAnchorSinks ? i : unit.tokens - kTileRows + i);
    };
    KeyTile<Row, kDim> keys;
    keys.Load(row(lane >> 2), row((lane >> 2) + 8), lane);
    meanwhile();
    keys.Score(q, s);
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float most =
            LargestOfLanes(MaxOrNaN(Capped(s[n][h] * step.key_unit, step.softcap),
                                    Capped(s[n][h + 2] * step.key_unit, step.softcap)),
                           4);
        if (lane < 4) shared.by_warp[warp][LaneHead(n, h)] = most;
      }
    }
    return;
  }
  using Share = LaneShare<kHeadTiles, kFour>;
  constexpr int kSampled = (kBlockWarps - 1) * kTileRows;
  const auto cluster = [&](int i) {
    return static_cast<int>(static_cast<int64_t>((warp - 1) * kTileRows + i) * clusters / kSampled);
  };
  const auto row = [&](int i) {
    return reinterpret_cast<const uint8_t*>(unit.centroids +
                                            static_cast<int64_t>(cluster(i)) * kDim);
  };
  KeyTile<RowI8, kDim> keys;
  keys.Load(row(lane >> 2), row((lane >> 2) + 8), lane);
  float units[Share::kKeys];
#pragma unroll
  for (int k = 0; k < Share::kKeys; ++k) {
    const ClusterFacts* facts = unit.facts + cluster(Share::Key(k));
    units[k] = __half2float(__ushort_as_half(facts->scale)) * step.scale;
  }
  meanwhile();
  byte_q.Score(keys, s);
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = Capped(s[n][h] * units[0], step.softcap);
      if constexpr (Share::kKeys == 2)
        most = MaxOrNaN(most, Capped(s[n][2 + h] * units[1], step.softcap));
      most = LargestOfLanes(most, kFour ? 2 : 4);
      if (lane < (kFour ? 2 : 4)) shared.by_warp[warp][Share::Head(n, h)] = most;
    }
  }
}

// The anchor of head g from what the warps found.
__device__ __forceinline__ float AnchorFrom(const RankShared& shared, int g) {
  float most = shared.by_warp[0][g];
  for (int w = 1; w < kBlockWarps; ++w) most = MaxOrNaN(most, shared.by_warp[w][g]);
  return most;
}

// Where the keys are that a lane has of a tile of forced rows.
template <class Row>
struct ForcedRows {
  const uint8_t* low;
  const uint8_t* high;

  __device__ __forceinline__ ForcedRows(const Step& step, const Unit& unit, int tile) {
    const int first = tile * kTileRows + (static_cast<int>(threadIdx.x & 31) >> 2);
    low = At(step, unit, first);
    high = At(step, unit, first + 8);
  }
  template <int kDim>
  __device__ __forceinline__ void Load(KeyTile<Row, kDim>& keys) const {
    keys.Load(low, high, threadIdx.x & 31);
  }

 private:
  static __device__ __forceinline__ const uint8_t* At(const Step& step, const Unit& unit, int i) {
    return KeyRow<Row>(step, unit, unit.ForcedRow(min(i, unit.forced - 1), step.sinks));
  }
};

// Logits and mass of the forced rows that fall to this warp, tile `tile` and every `apart`th.
// `keys`: of the first, loaded.
template <class Row, int kDim, int kHeadTiles>
__device__ void ScoreForced(const Step& step, const Unit& unit,
                            const QueryTile<kDim, kHeadTiles>& q, const RankShared& shared,
                            int tile, int apart, KeyTile<Row, kDim>& keys,
                            float (&mass)[kHeadTiles][2]) {
  const int lane = threadIdx.x & 31;
  const int64_t base = static_cast<int64_t>(unit.number) * step.forced_room;
  while (tile * kTileRows < unit.forced) {
    const int low = tile * kTileRows + (lane >> 2);
    const int high = low + 8;
    float s[kHeadTiles][4];
    keys.Score(q, s);
    tile += apart;
    if (tile * kTileRows < unit.forced) ForcedRows<Row>(step, unit, tile).Load(keys);
    if ((lane & 3) == 0) {
      if (low < unit.forced) step.forced_rows[base + low] = unit.ForcedRow(low, step.sinks);
      if (high < unit.forced) step.forced_rows[base + high] = unit.ForcedRow(high, step.sinks);
    }
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int head = LaneHead(n, k & 1);
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
__device__ __forceinline__ uint32_t Squares(uint16_t spreads) {
  const float a = FromByteFloat(spreads);
  const float b = FromByteFloat(spreads >> 8);
  return Pack<true>(a * a, b * b);
}

// Sixteen clusters as a lane loads them: number 16 tile + r and the one 8 later.
template <int kDim, bool kPaper>
struct ClusterTile {
  KeyTile<RowI8, kDim> keys;
  int number[2];
  int begin[2];
  int end[2];
  uint16_t spreads[2][2];
  uint32_t longest_and_scale[2];

  __device__ __forceinline__ void Load(const Step& step, const Unit& unit, int tile, int count) {
    const int lane = threadIdx.x & 31;
    const int8_t* rows[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      number[i] = tile * kTileRows + (lane >> 2) + 8 * i;
      const int at = min(number[i], count - 1);
      rows[i] = unit.centroids + static_cast<int64_t>(at) * kDim;
      const uint16_t* start = unit.starts + at + SegmentOf(step, at);
      begin[i] = __ldg(start);
      end[i] = __ldg(start + 1);
      const ClusterFacts* facts = unit.facts + at;
      longest_and_scale[i] = __ldg(reinterpret_cast<const uint32_t*>(&facts->longest));
      if constexpr (!kPaper) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          spreads[i][half] =
              __ldg(reinterpret_cast<const uint16_t*>(facts->spreads + 2 * (lane & 3) + 8 * half));
        }
      }
    }
    keys.Load(reinterpret_cast<const uint8_t*>(rows[0]), reinterpret_cast<const uint8_t*>(rows[1]),
              lane);
  }
  static __device__ __forceinline__ float Longest(uint32_t facts) { return FromByteFloat(facts); }
  static __device__ __forceinline__ float Scale(uint32_t facts) {
    return __half2float(__ushort_as_half(static_cast<uint16_t>(facts >> 16)));
  }
};

// What is known of one cluster and query head: the score, and the variance of members' logits about
// it in nats.
struct ClusterView {
  float score;
  float variance;
  float longest;
  int size;
};

// Logs, in octaves, of what a cluster has at least (Jensen), its estimated mass, and what a single
// member could have; oracle_tactic.h.
struct ClusterBounds {
  float floor;
  float mass;
  float token;
};
template <int kDim>
__device__ __forceinline__ ClusterBounds BoundsOf(const ClusterView& c, const Softcap& softcap) {
  const float log_size = __logf(static_cast<float>(c.size));
  const float v = fminf(c.variance, 2 * kLargestHalfNats);
  const float excess = v < 2 * log_size ? v / 2 : sqrtf(2 * v * log_size) - log_size;
  const float floor = Capped(c.score, softcap) + log_size * kLog2e;
  // The variance is a sum of rounded products: the bound must not be low for that.
  constexpr float kRounding = 1.01f;
  // By its length, and where it may have the query's direction (selection_rule.h).
  const float apart = c.longest * fmaxf(1, kAligned * sqrtf(kDim) * c.longest);
  const float reach = 3 * kRounding * sqrtf(c.variance) * apart;
  return {floor, floor + excess * kLog2e, Capped(c.score + reach * kLog2e, softcap)};
}

// Scores, bounds and bins of the clusters that fall to this warp, and the sum of their floors.
// `clusters`: the first tile, loaded.
template <int kDim, int kHeadTiles, bool kPaper, bool kFour>
__device__ void RankClusters(const Step& step, const Unit& unit, const RankShared& shared, int tile,
                             int tiles_apart, int count, ClusterTile<kDim, kPaper>& clusters,
                             const ByteQuery<kDim, kHeadTiles, kFour>& q, uint32_t* bins,
                             float (&floors)[kHeadTiles][2]) {
  using Share = LaneShare<kHeadTiles, kFour>;
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  const int t = lane & 3;
  const int64_t base = static_cast<int64_t>(unit.number) * step.segments * step.slots;
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
  for (; tile * kTileRows < count; tile += tiles_apart) {
    const ClusterTile<kDim, kPaper> now = clusters;
    if ((tile + tiles_apart) * kTileRows < count)
      clusters.Load(step, unit, tile + tiles_apart, count);
    float s[kHeadTiles][4];
    q.Score(now.keys, s);
    float variances[kHeadTiles][4] = {};
    if constexpr (!kPaper) {
      const uint32_t a0 = Squares(now.spreads[0][0]);
      const uint32_t a1 = Squares(now.spreads[1][0]);
      const uint32_t a2 = Squares(now.spreads[0][1]);
      const uint32_t a3 = Squares(now.spreads[1][1]);
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n)
        Multiply<true>(variances[n], a0, a1, a2, a3, energies[n][0], energies[n][1]);
      Share::Deal(variances);
    }
#pragma unroll
    for (int k = 0; k < Share::kKeys; ++k) {
      const bool high = Share::IsHigh(k);
      const int number = high ? now.number[1] : now.number[0];
      if (number >= count) continue;
      const int size = high ? now.end[1] - now.begin[1] : now.end[0] - now.begin[0];
      const bool page = number >= unit.closed * step.slots;
      const uint32_t facts = high ? now.longest_and_scale[1] : now.longest_and_scale[0];
      const float scale = now.Scale(facts) * step.scale;
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = Share::Head(n, h);
          if (head >= step.group) continue;
          const float raw = s[n][2 * k + h] * scale;
          const int64_t to = (base + number) * step.group + head;
          const float anchor = shared.anchors[head];
          if constexpr (kPaper) {
            const float score = Capped(raw, step.softcap) - anchor;
            step.scores[to] = size > 0 ? score : kNone;
            if (size > 0) atomicAdd(bins + head * kBins + BinOf(score), size);
          } else {
            const ClusterBounds bounds = BoundsOf<kDim>(
                {raw, variances[n][2 * k + h], now.Longest(facts), size}, step.softcap);
            const float mass = size > 0 ? bounds.mass - anchor : -kSureBound;
            float token = size > 0 ? bounds.token - anchor : -kSureBound;
            if (page && size > 0) token = kSureBound;  // pages are never skipped
            step.scores[to] = raw;
            step.bounds[to] = Pack<false>(fminf(fmaxf(mass, -kSureBound), kSureBound),
                                          fminf(fmaxf(token, -kSureBound), kSureBound));
            if (size > 0) {
              floors[n][h] += Exp2(bounds.floor - anchor);
              if (!page) atomicAdd(bins + head * kMassBins + MassBinOf(mass), 1u);
            }
          }
        }
      }
    }
  }
  Share::Collect(floors);
}

// kFour: the group has at most four heads.
template <class Row, int kDim, int kHeadTiles, bool kFour, bool kPaper>
__global__ void __launch_bounds__(kBlockThreads, kHeadTiles > 1 ? 1 : 2)
    RankKernel(const __grid_constant__ Step step) {
  extern __shared__ uint32_t bins[];  // [group][kBins or kMassBins]
  __shared__ RankShared shared;
  const int thread = threadIdx.x;
  constexpr int kBinsHere = kPaper ? kBins : kMassBins;
  for (int i = thread; i < step.group * kBinsHere; i += kBlockThreads) bins[i] = 0;
  WaitForPrevious();
  LetNextBegin();
  // Whatever takes a trip to memory begins as early as it can, and what there is to do with what
  // has come is done while others are under way.
  UnitFinder finder(step, blockIdx.y);
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<Row::kIsBF16>(step, blockIdx.y, q);
  const QueryElements<kDim, kHeadTiles, kFour> elements(step, blockIdx.y);
  finder.Follow(step);
  const ByteQuery<kDim, kHeadTiles, kFour> byte_q(elements);
  const Unit unit = finder.Find(step);
  const bool first = blockIdx.x == 0;
  if (first && thread == 0) {
    step.units[unit.number] = unit;
    if constexpr (kPaper) {
      step.sampled[unit.number] = {};
      step.selected[unit.number] = {};
    }
  }
  if (unit.readable == 0) {
    if (first && thread < 32) CountTiles(step, unit, true);
    return;
  }
  const int64_t sums = (int64_t{unit.number} * step.rank_parts + blockIdx.x) * step.group;
  // Mode tactic: the last block is for the rotation, which takes as long as some tiles.
  const int ranking = kPaper ? gridDim.x : gridDim.x - 1;
  float forced[kHeadTiles][2] = {};
  float floors[kHeadTiles][2] = {};
  if (static_cast<int>(blockIdx.x) >= ranking) {
    RotateQueries(step, unit, shared.rotated);
  } else {
    const int count = unit.closed * step.slots + unit.pages;
    const int tile = blockIdx.x * kBlockWarps + (thread >> 5);
    ClusterTile<kDim, kPaper> clusters;
    if (tile * kTileRows < count) clusters.Load(step, unit, tile, count);
    if constexpr (!kPaper) {
      const float scale = step.scale * kLn2;
      constexpr int kRun = kDim / kRuns;
      for (int i = thread; i < step.group * kRuns; i += kBlockThreads) {
        float energy = 0;
#pragma unroll
        for (int x = 0; x < kRun; ++x) {
          const float value = QueryElement(step, unit, i / kRuns, i % kRuns * kRun + x) * scale;
          energy += value * value;
        }
        shared.energies[i / kRuns][i % kRuns] = energy;
      }
    }
    // Forced rows from the last warp on, which has the fewest clusters.
    const int apart = ranking * kBlockWarps;
    const int forced_tile = apart - 1 - tile;
    const bool any_forced = forced_tile * kTileRows < unit.forced;
    const ForcedRows<Row> forced_rows(step, unit, any_forced ? forced_tile : 0);
    KeyTile<Row, kDim> keys;
    const auto load_forced = [&] {
      if (any_forced) forced_rows.Load(keys);
    };
    FindAnchors<Row>(step, unit, q, byte_q, count, load_forced, shared);
    __syncthreads();
    if (thread < step.group) {
      const float anchor = AnchorFrom(shared, thread);
      shared.anchors[thread] = anchor;
      if (first) step.anchors[unit.number * step.group + thread] = __float_as_uint(anchor);
    }
    __syncthreads();
    bool finite = true;
    for (int g = 0; g < step.group; ++g) finite = finite && isfinite(shared.anchors[g]);
    if (first && thread == 0) step.dense[unit.number] = 0;
    if (first && thread < 32 && !finite) CountTiles(step, unit, true);
    if (finite) {
      ScoreForced<Row>(step, unit, q, shared, forced_tile, apart, keys, forced);
      RankClusters<kDim, kHeadTiles, kPaper, kFour>(step, unit, shared, tile, apart, count,
                                                    clusters, byte_q, bins, floors);
    }
  }
  SumHeads(forced, step.group, shared.by_warp, step.part_forced + sums);
  SumHeads(floors, step.group, shared.by_warp, step.part_floors + sums);
  uint32_t* all = step.cluster_bins + int64_t{unit.number} * step.group * kBins;
  for (int i = thread; i < step.group * kBinsHere; i += kBlockThreads) {
    if (bins[i] != 0) atomicAdd(all + i / kBinsHere * kBins + i % kBinsHere, bins[i]);
  }
  if (!EndsLast(step, unit, gridDim.x, &shared.flag)) return;
  for (int g = thread >> 5; g < step.group; g += kBlockWarps) {
    if constexpr (kPaper) {
      if (FindRanks(step, unit, g, bins + g * kBins)) CountTiles(step, unit, true);
    } else {
      FindFilter(step, unit, g);
    }
  }
}

}  // namespace

Status LaunchRank(const Step& step, Element type, Stream stream) {
  const bool paper = step.mode == Mode::kPaper;
  const size_t shared = static_cast<size_t>(step.group) * (paper ? kBins : kMassBins) * 4;
  return DispatchStep(step, type, [&]<class Row, int kDim, int kHeadTiles>() {
    const auto launch = [&]<bool kFour>() {
      const auto kernel = paper ? RankKernel<Row, kDim, kHeadTiles, kFour, true>
                                : RankKernel<Row, kDim, kHeadTiles, kFour, false>;
      return Launch(kernel, step, UnitGrid(step, step.rank_parts), shared, stream);
    };
    if constexpr (kHeadTiles == 1) {
      if (step.group <= 4) return launch.template operator()<true>();
    }
    return launch.template operator()<false>();
  });
}

}  // namespace tactic::cuda
