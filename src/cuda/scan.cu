// Stage scan (mode tactic): which clusters no head of the group needs, and estimated logits of the
// others' members from their codes.
#include <algorithm>

#include "src/cuda/code_tile.cuh"
#include "src/cuda/heads.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/lane_share.cuh"
#include "src/cuda/launch.cuh"
#include "src/cuda/scan_tile.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {
namespace {

// Tiles whose codes a warp has under way at a time.
constexpr int kAhead = 2;

struct ScanShared {
  Unit unit;
  Filter filters[kMaxGroup];
  float zeros[kMaxGroup];                // level of the logit 0
  float sums[kMaxSlots / 8][kMaxGroup];  // of clusters that are skipped, by warp or segment
  int scratch[kBlockWarps];
  int flags[2];  // of PlanUnit
  int last;      // of EndsLast, which is still being read when PlanUnit begins
};

__device__ __forceinline__ float2 MassAndToken(uint32_t bounds) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bounds));
}

// For a span's tiles; even, so that what comes after them is aligned to 8 bytes.
__host__ __device__ __forceinline__ int TileRoom(const Step& step) {
  return (TilesOfSpan(step) + 1) / 2 * 2;
}

constexpr float kMostHalf = kLargestHalf * kLevelsPerOctave;

// What products of bytes become levels with, for the heads of a lane.
template <int kHeadTiles, class Share>
struct LaneHeads {
  float unit[kHeadTiles][2];    // of a product, in levels
  float offset[kHeadTiles][2];  // that all products have
  float half[kHeadTiles][2];    // v / 2 of an error, over the square of the key's scale

  // `heads`: number of the unit's first.
  __device__ __forceinline__ void Load(const Step& step, int64_t heads, int bits) {
    constexpr float kLevelsPerNat = kLog2e * kLevelsPerOctave;
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const ScanQuery query = step.queries[heads + min(Share::Head(n, h), step.group - 1)];
        unit[n][h] = query.unit * kLevelsPerNat;
        offset[n][h] = -kLevelZero * query.unit * static_cast<float>(query.sum) * kLevelsPerNat;
        half[n][h] = CodeError(bits) * query.norm / 2 * kLevelsPerNat;
      }
    }
  }

  // Of a key with that scale, from the product of its code and what its cluster has (ClusterLevel).
  __device__ __forceinline__ uint32_t Level(int n, int h, int dot, float scale, float of_cluster,
                                            const Softcap& softcap, const float* zeros) const {
    float x = fmaf(scale, fmaf(static_cast<float>(dot), unit[n][h], offset[n][h]), of_cluster);
    if (softcap.cap > 0) {
      constexpr float kLevels = kLevelsPerOctave;
      x = fmaf(Capped(x / kLevels, softcap), kLevels, zeros[Share::Head(n, h)]);
    }
    // Negative numbers and NaN become 0.
    const uint32_t level = __float2uint_rz(x + fminf(half[n][h] * (scale * scale), kMostHalf));
    return min(level, static_cast<uint32_t>(kLastLevel));
  }
};

// A centroid's logit in levels: from the lowest level on, unless it is to be capped with a key's.
__device__ __forceinline__ float ClusterLevel(float score, const Softcap& softcap, float zero) {
  return fmaf(score, static_cast<float>(kLevelsPerOctave), softcap.cap > 0 ? 0.0f : zero);
}

// Whether cluster `thread` of the span is kept. Leaves masses of those that are not in shared.sums.
template <int kHeads>
__device__ bool FilterCluster(const Step& step, bool there, const uint32_t (&bounds)[kHeads],
                              ScanShared& shared) {
  const int thread = threadIdx.x;
  bool keep = false;
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
    if (g >= step.group) break;
    const float2 of = MassAndToken(bounds[g]);
    keep |= of.x > shared.filters[g].mass_above || of.y > shared.filters[g].token_above;
  }
  keep = keep && there;
  const int width = min(32, step.slots);
  float masses[kHeads];
#pragma unroll
  for (int g = 0; g < kHeads; ++g)
    masses[g] = there && !keep && g < step.group ? Exp2(MassAndToken(bounds[g]).x) : 0.0f;
  if (width == 32) {
    const float sum = WarpSums(masses);
    if (thread % 32 < kHeads) shared.sums[thread / 32][thread % 32] = sum;
  } else {
#pragma unroll
    for (int g = 0; g < kHeads; ++g) {
      for (int k = width / 2; k > 0; k >>= 1) masses[g] += __shfl_xor_sync(kAllLanes, masses[g], k);
      if (thread % width == 0) shared.sums[thread / width][g] = masses[g];
    }
  }
  return keep;
}

// The masses of what is skipped of every segment of the span, from shared.sums.
__device__ __forceinline__ void LeaveSkipped(const Step& step, const Unit& unit, int span,
                                             const ScanShared& shared) {
  const int each = step.slots / min(32, step.slots);
  const int segment = unit.number * step.segments + span * step.span_segments;
  float* to = OfHeads(step, step.skipped, segment);
  for (int i = threadIdx.x; i < step.span_segments * step.group; i += kBlockThreads) {
    float sum = 0;
    for (int w = 0; w < each; ++w) sum += shared.sums[i / step.group * each + w][i % step.group];
    to[i] = sum;
  }
}

// kFour: the group has at most four heads.
template <int kBits, int kDim, int kHeadTiles, bool kFour>
__global__ void __launch_bounds__(kBlockThreads, BlocksFor(kDim, kHeadTiles, 4))
    ScanKernel(const __grid_constant__ Step step) {
  extern __shared__ uint32_t bins[];  // [group][kBins], then tiles, then scores
  __shared__ ScanShared shared;
  const int thread = threadIdx.x;
  const int lane = thread & 31;
  constexpr int kHeads = kFour ? 4 : kHeadTiles * kTileHeads;
  ScanTile* tiles = reinterpret_cast<ScanTile*>(bins + step.group * kBins);
  // [cluster][level_stride]: ClusterLevel, of those that are kept.
  float* of_clusters = reinterpret_cast<float*>(tiles + TileRoom(step));
  auto* const bins_by_four = reinterpret_cast<uint4*>(bins);
  for (int i = thread; i < step.group * kBins / 4; i += kBlockThreads) bins_by_four[i] = {};
  WaitForPrevious();
  LetNextBegin();
  const int64_t heads = int64_t{blockIdx.y} * step.group;
  const bool dense = __ldcg(step.dense + blockIdx.y) != 0;
  ReadUnit(step, blockIdx.y, &shared.unit);
  if (thread < step.group) {
    const float anchor = __uint_as_float(__ldcg(step.anchors + heads + thread));
    shared.filters[thread] = step.filters[heads + thread];
    shared.zeros[thread] = (kBelowAnchor - anchor) * kLevelsPerOctave;
  }
  CodeQueryTile<kBits, kDim, kHeadTiles> q;
  q.Load(step.rotated + int64_t{blockIdx.y} * kHeadTiles * CodeQueryWords(kDim, kBits) * 32, lane);
  using Share = LaneShare<kHeadTiles, kFour>;
  LaneHeads<kHeadTiles, Share> of;
  of.Load(step, heads, kBits);
  if (dense) return;
  __syncthreads();
  const Unit& unit = shared.unit;
  for (int span = blockIdx.x; span < unit.spans; span += gridDim.x) {
    const int clusters = unit.SpanClusters(span, step.slots, step.span_slots);
    const int64_t base = int64_t{unit.number} * step.spans + span;
    const bool there = thread < clusters;
    // All loads are under way before anybody waits for one.
    float scores[kHeads] = {};
    uint32_t bounds[kHeads] = {};
    Members members = {};
    if (there) {
      const uint32_t cluster = FirstCluster(step, unit.number, span) + thread;
      LoadHeads(OfHeads(step, step.bounds, cluster), step.group, bounds);
      LoadHeads(OfHeads(step, step.scores, cluster), step.group, scores);
      members = MembersOf(step, unit, span, thread);
    }
    const bool keep = FilterCluster(step, members.begin < members.end, bounds, shared);
    const int size = keep ? members.end - members.begin : 0;
    // Kept clusters and their tiles, counted at once.
    int all;
    const int before = BlockScan(keep ? 1 << 16 | RowTiles(size) : 0, shared.scratch, &all);
    const int count = all & 0xffff;
    LeaveSkipped(step, unit, span, shared);
    ScanTile* to = tiles + (before & 0xffff);
    for (int i = 0; i < size; i += kTileRows)
      *to++ = ScanTile::Of(thread, members.begin + i, min(kTileRows, size - i));
    if (keep)
      step.kept_list[base * step.span_slots + (before >> 16)] = static_cast<uint8_t>(thread);
    if (thread == 0) {
      step.kept_counts[base] = all >> 16;
      step.scan_counts[base] = count;
    }
    if (keep) {
#pragma unroll
      for (int g = 0; g < kHeads; ++g) {
        if (g >= step.level_stride) break;
        of_clusters[thread * step.level_stride + g] =
            ClusterLevel(scores[g], step.softcap, shared.zeros[min(g, step.group - 1)]);
      }
    }
    __syncthreads();
    const int64_t keys = int64_t{span} * step.span_keys;
    const uint8_t* codes = unit.codes + keys / kCodeBlock * CodeBlockBytes(kDim, kBits);
    const uint8_t* scales = unit.key_scales + keys;
    uint16_t* levels = step.levels + base * step.span_keys * step.level_stride;
    const auto stride = static_cast<uint32_t>(step.level_stride);
    for (int i = thread; i < count; i += kBlockThreads)
      step.scan_tiles[base * TilesOfSpan(step) + i] = tiles[i].word;
    for (int i = (thread >> 5) * kAhead; i < count; i += kBlockWarps * kAhead) {
      CodeTile<kBits, kDim> tile[kAhead];
      uint32_t scale[kAhead][Share::kKeys];  // bytes
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const ScanTile entry = tiles[min(i + a, count - 1)];
        tile[a].Load(codes, entry.Key(lane >> 2), entry.Key((lane >> 2) + 8), lane);
#pragma unroll
        for (int k = 0; k < Share::kKeys; ++k)
          scale[a][k] = __ldg(scales + entry.Key(Share::Key(k)));
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (i + a >= count) break;
        const ScanTile entry = tiles[i + a];
        const float* of_cluster = of_clusters + entry.Cluster() * step.level_stride;
        int dots[kHeadTiles][4];
        q.Score(tile[a], dots);
        Share::Deal(dots);
#pragma unroll
        for (int k = 0; k < Share::kKeys; ++k) {
          if (Share::Key(k) >= entry.Count()) continue;
          const float s = FromByteFloat(scale[a][k]);
          const auto key = static_cast<uint32_t>(entry.First() + Share::Key(k));
#pragma unroll
          for (int n = 0; n < kHeadTiles; ++n) {
            const int head = Share::Head(n, 0);
            if (head >= step.group) continue;
            // Of an odd group the last pair has room for one more.
            const float2 both = *reinterpret_cast<const float2*>(of_cluster + head);
            const uint32_t first =
                of.Level(n, 0, dots[n][2 * k], s, both.x, step.softcap, shared.zeros);
            const uint32_t second =
                of.Level(n, 1, dots[n][2 * k + 1], s, both.y, step.softcap, shared.zeros);
            uint16_t* to_levels = levels + head + uint64_t{key} * stride;
            *reinterpret_cast<uint32_t*>(to_levels) = second << 16 | first;
            uint32_t* to_bins = bins + head * kBins;
            atomicAdd(to_bins + first / kLevelsPerBin, 1u);
            if (head + 1 < step.group) atomicAdd(to_bins + kBins + second / kLevelsPerBin, 1u);
          }
        }
      }
    }
    __syncthreads();
  }
  uint32_t* all = step.key_bins + heads * kBins;
  for (int i = thread; i < step.group * kBins / 4; i += kBlockThreads) {
    const uint4 four = bins_by_four[i];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (Word(four, k) != 0) atomicAdd(all + 4 * i + k, Word(four, k));
    }
  }
  if (EndsLast(step, unit, gridDim.x, &shared.last)) PlanUnit(step, unit, 0, shared.flags, bins);
}

}  // namespace

Status LaunchScan(const Step& step, Stream stream) {
  const size_t words = static_cast<size_t>(step.group) * kBins + TileRoom(step) +
                       static_cast<size_t>(kMaxSlots) * step.level_stride;
  // At its end the block wants room to plan in.
  const size_t shared =
      std::max(words, size_t(PlanningWarps(step.group)) * kBins) * sizeof(uint32_t);
  return DispatchShape(step, [&]<int kDim, int kHeadTiles>() {
    const auto launch = [&]<int kBits>() {
      if constexpr (kHeadTiles == 1) {
        if (step.group <= 4)
          return Launch(ScanKernel<kBits, kDim, 1, true>, step, UnitGrid(step, step.parts), shared,
                        stream);
      }
      return Launch(ScanKernel<kBits, kDim, kHeadTiles, false>, step, UnitGrid(step, step.parts),
                    shared, stream);
    };
    if (step.bits == 2) return launch.template operator()<2>();
    if (step.bits == 3) return launch.template operator()<3>();
    return launch.template operator()<4>();
  });
}

}  // namespace tactic::cuda
