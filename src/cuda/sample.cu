// Stage budget of mode paper: the order of clusters and the fitted mass curve (sections 4.3 and 4.4
// of the paper).
//
// Clusters whose logits fall into the same of kBins bins, 1/16 octave wide, count as tied and are
// read together: ranks, the head and the cut end where a bin does. So no sorting is needed, and no
// more is read than one bin on top of what the published order would.
//
// Rank has found the heads: the first ranks of each query head. One kernel lists the rows of these
// clusters, and of a few around the two ranks at which the curve is fitted; another scores their
// keys, of which all its blocks have an even share. The last block of a unit fits the curves.
#include <algorithm>

#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/mass_curve.cuh"
#include "src/cuda/step.cuh"
#include "src/cuda/tile_list.cuh"
#include "src/cuda/tile_share.cuh"

namespace tactic::cuda {
namespace {

// Whether cluster `cluster` is one of those that stand for its bin.
__device__ __forceinline__ bool Sampled(int cluster, int stride) {
  constexpr uint32_t kHash = 2654435761u;
  return stride > 0 && (static_cast<uint32_t>(cluster) * kHash >> 16) % stride == 0;
}

// Whether it stands for window w of a head.
__device__ __forceinline__ bool InWindow(const PaperRanks& ranks, int w, int cluster, int bin) {
  return bin == ranks.window_bin[w] && Sampled(cluster, ranks.window_stride[w]);
}

template <int kHeads>
__global__ void __launch_bounds__(kBlockThreads, 6)
    ListSamplesKernel(const __grid_constant__ Step step) {
  __shared__ PaperRanks ranks[kMaxGroup];
  __shared__ uint64_t scratch[kBlockWarps];
  const int thread = threadIdx.x;
  WaitForPrevious();
  LetNextBegin();
  // All loads are under way before anybody waits for one.
  SpanScores<kHeads> scores(step, blockIdx.y, blockIdx.x);
  const bool dense = __ldcg(step.dense + blockIdx.y) != 0;
  const int64_t first_head = int64_t{blockIdx.y} * step.group;
  if (thread < step.group) ranks[thread] = step.ranks[first_head + thread];
  const Unit unit = ReadUnit(step, blockIdx.y);
  if (dense) return;
  __syncthreads();
  for (int span = blockIdx.x; span < unit.spans; span += gridDim.x) {
    const SpanCluster<kHeads> cluster(step, unit, span, scores);
    scores = SpanScores<kHeads>(step, unit.number, span + gridDim.x);
    bool head = false;
    bool window = false;
    if (cluster.Rows() > 0) {
      const int number = span * step.span_slots + thread;
#pragma unroll
      for (int g = 0; g < kHeads; ++g) {
        if (g >= step.group) break;
        head = head || cluster.bins[g] >= ranks[g].head_bin;
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          if (!InWindow(ranks[g], w, number, cluster.bins[g])) continue;
          window = true;
          auto* const rows = &step.windows[2 * (first_head + g) + w].rows;
          atomicAdd(reinterpret_cast<unsigned long long*>(rows),
                    static_cast<unsigned long long>(cluster.Rows()));
        }
      }
    }
    ListTiles(step, unit, span, cluster.members, head || window ? Listing::kScored : Listing::kNot,
              window, head, 0, scratch, step.sampled + unit.number);
  }
}

struct SampleShared {
  int scratch[kBlockWarps];
  PaperRanks ranks[kMaxGroup];
  int flag;
};

__device__ __forceinline__ void AddUnits(uint64_t* to, float mass) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to),
            static_cast<unsigned long long>(fminf(mass, kLargestMass) / kMassUnit));
}

// Scores tiles [begin, end) of the list: logits, for the clusters of heads; masses of their bins
// and of windows.
template <class Row, int kDim, int kHeadTiles>
__device__ void ScoreSamples(const Step& step, const Unit& unit, const SpanLists& list, int begin,
                             int end, const SampleShared& shared) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  int tile = begin + static_cast<int>(threadIdx.x >> 5);
  if (tile >= end) return;
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<Row::kIsBF16>(step, unit.number, q);
  const LaneAnchors<kHeadTiles> anchors(step, unit);
  const int64_t first_head = int64_t{unit.number} * step.group;
  // Ahead: the next tile's rows, and the entry of the one after it.
  const auto find = [&](int from, int of) {
    return TilePlace::Find(step, unit, list, from, min(of, list.total - 1));
  };
  const auto row = [&](const TilePlace& of, int i) {
    return KeyRow<Row>(step, unit, of.Position(step, unit, i));
  };
  TilePlace now = find(0, tile);
  TilePlace next = find(now.span, tile + kBlockWarps);
  const uint8_t* low = row(now, r);
  const uint8_t* high = row(now, r + 8);
  for (; tile < end; tile += kBlockWarps) {
    KeyTile<Row, kDim> keys;
    keys.Load(low, high, lane);
    const TilePlace of = now;
    const float* scores = of.Scores(step, unit);
    int bins[kHeadTiles][2];
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        bins[n][h] = BinOf(__ldcg(scores + min(LaneHead(n, h), step.group - 1)));
    }
    now = next;
    next = find(now.span, tile + 2 * kBlockWarps);
    low = row(now, r);
    high = row(now, r + 8);
    float s[kHeadTiles][4];
    keys.Score(q, s);
    const int rows = of.tile.Rows();
    const bool of_heads = of.tile.OfHeads();
    float* logits = of.Logits(step, unit) + r * step.group;
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int head = LaneHead(n, h);
        const bool there = head < step.group;
        const float anchor = anchors.of[n][h] + LogitOfBin(bins[n][h]);
        float mass = 0;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float logit = Capped(s[n][2 * i + h] * step.key_unit, step.softcap);
          if (r + 8 * i >= rows) continue;
          mass += Exp2(logit - anchor);
          if (of_heads && there) logits[8 * i * step.group + head] = logit;
        }
#pragma unroll
        for (int k = 4; k < 32; k <<= 1) mass += __shfl_xor_sync(kAllLanes, mass, k);
        if (r != 0 || !there) continue;
        if (of_heads) AddUnits(step.bin_masses + (first_head + head) * kBins + bins[n][h], mass);
        if (!of.tile.OfWindows()) continue;
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          if (InWindow(shared.ranks[head], w, of.Cluster(step), bins[n][h]))
            AddUnits(&step.windows[2 * (first_head + head) + w].units, mass);
        }
      }
    }
  }
}

// What it costs to begin with a unit and to end it, in tiles (H200; attend.cu has its own).
constexpr int kLead = 8;

// The last block of a unit needs a tile of it, even where nothing is sampled.
__device__ __forceinline__ int SampleTiles(const Step& step, int unit) {
  const int scored = __ldcg(&step.sampled[unit].scored);
  return __ldcg(step.dense + unit) != 0 ? 0 : kLead + max(1, scored);
}

template <class Row, int kDim, int kHeadTiles>
__global__ void __launch_bounds__(kBlockThreads, BlocksFor(kDim, kHeadTiles, kSampleBlocks))
    SampleKernel(const __grid_constant__ Step step) {
  extern __shared__ uint32_t dynamic[];
  __shared__ SampleShared shared;
  const int thread = threadIdx.x;
  const int units = step.batch * step.kv_heads;
  int* const before = reinterpret_cast<int*>(dynamic);  // [units + 1]: what the units ahead cost
  // Tiles ahead of each span's; later bins.
  uint32_t* const room = dynamic + (units + 4) / 4 * 4;
  WaitForPrevious();
  LetNextBegin();
  const int all =
      AddUp(units, 0, before, shared.scratch, [&](int u) { return SampleTiles(step, u); });
  const int blocks = min((all + kTilesEach - 1) / kTilesEach, static_cast<int>(gridDim.x));
  const TileShares shares = {before, units, kLead, blocks};
  ForEachShare(shares, [&](const UnitShare& share) {
    const SpanCount counts(step, step.counts, share.unit);
    const Unit unit = ReadUnit(step, share.unit);
    const int64_t first_head = int64_t{unit.number} * step.group;
    if (thread < step.group) shared.ranks[thread] = step.ranks[first_head + thread];
    int* const list_room = reinterpret_cast<int*>(room);
    const int tiles =
        AddUp(unit.spans, 0, list_room, shared.scratch, [&](int j) { return counts[j]; });
    if (tiles > 0) {
      ScoreSamples<Row, kDim, kHeadTiles>(step, unit, {list_room, unit.spans, tiles}, share.begin,
                                          share.end, shared);
    }
    if (!EndsLast(step, unit, shares.BlocksOf(share.unit).count, &shared.flag)) return;
    const int warp = thread >> 5;
    float* const masses = reinterpret_cast<float*>(room + PlanningWarps(step.group) * kBins);
    for (int g = 0; g < step.group; g += kBlockWarps) {
      const int heads = min(kBlockWarps, step.group - g);
      BringHeads(step, first_head + g, heads, room, masses);
      __syncthreads();
      if (warp < heads) FindCut(step, unit, g + warp, room + warp * kBins, masses + warp * kBins);
      __syncthreads();
    }
  });
}

}  // namespace

Status LaunchSample(const Step& step, Element type, Stream stream) {
  TACTIC_RETURN_IF_ERROR(DispatchHeads(step, [&]<int kHeads>() {
    return Launch(ListSamplesKernel<kHeads>, step, UnitGrid(step, step.parts), 0, stream);
  }));
  const size_t units = static_cast<size_t>(step.batch) * step.kv_heads;
  const size_t list = static_cast<size_t>(step.spans) + 1;
  const size_t plan = size_t{2} * PlanningWarps(step.group) * kBins;
  const size_t shared = ((units + 4) / 4 * 4 + std::max(list, plan)) * sizeof(uint32_t);
  return DispatchStep(step, type, [&]<class Row, int kDim, int kHeadTiles>() {
    return Launch(SampleKernel<Row, kDim, kHeadTiles>, step, dim3(step.sample_blocks), shared,
                  stream);
  });
}

}  // namespace tactic::cuda
