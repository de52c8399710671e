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
#include "src/cuda/span_list.cuh"
#include "src/cuda/step.cuh"
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

// A row of a span's samples: its place, its cluster, and whether that is one of the heads'.
constexpr uint32_t kOfHeads = 1u << 31;
__device__ __forceinline__ uint32_t SampledRows(int cluster, bool of_heads) {
  return static_cast<uint32_t>(cluster << 16) | (of_heads ? kOfHeads : 0u);
}
__device__ __forceinline__ int ClusterOfSample(uint32_t row) {
  return static_cast<int>(row >> 16 & 0x7fffu);
}

template <int kHeads>
__global__ void __launch_bounds__(kBlockThreads, 6)
    ListSamplesKernel(const __grid_constant__ Step step) {
  __shared__ ListShared shared;
  const int thread = threadIdx.x;
  WaitForPrevious();
  LetNextBegin();
  const Unit unit = ReadUnit(step, blockIdx.y);
  if (IsDense(step, unit)) return;
  const int64_t first_head = int64_t{unit.number} * step.group;
  if (thread < step.group) shared.ranks[thread] = step.ranks[first_head + thread];
  __syncthreads();
  for (int span = blockIdx.x; span < unit.spans; span += gridDim.x) {
    const SpanCluster<kHeads> cluster(step, unit, span);
    bool head = false;
    bool window = false;
    if (cluster.Rows() > 0) {
      const int number = span * step.span_slots + thread;
#pragma unroll
      for (int g = 0; g < kHeads; ++g) {
        if (g >= step.group) break;
        head = head || cluster.bins[g] >= shared.ranks[g].head_bin;
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          if (!InWindow(shared.ranks[g], w, number, cluster.bins[g])) continue;
          window = true;
          auto* const rows = &step.windows[2 * (first_head + g) + w].rows;
          atomicAdd(reinterpret_cast<unsigned long long*>(rows),
                    static_cast<unsigned long long>(cluster.Rows()));
        }
      }
    }
    const bool other = window && !head;
    const int rows = head || other ? cluster.Rows() : 0;
    uint64_t all;
    const uint64_t before =
        BlockScan(Counts(head ? 1 : 0, head ? rows : 0, other ? 1 : 0, other ? rows : 0),
                  shared.scratch, &all);
    if (rows > 0) {
      const int e = head ? CountOf<0>(before) : CountOf<0>(all) + CountOf<2>(before);
      const int at = head ? CountOf<1>(before) : CountOf<1>(all) + CountOf<3>(before);
      shared.listed[e] = {cluster.members.begin, rows, at, SampledRows(thread, head), 0};
    }
    __syncthreads();
    ListRows(step, unit, span, CountOf<0>(all) + CountOf<2>(all), shared);
    if (thread == 0) {
      const int listed = CountOf<1>(all) + CountOf<3>(all);
      step.counts[int64_t{unit.number} * step.spans + span] = listed;
      atomicAdd(step.sampled_rows + unit.number, listed);
    }
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

// A sampled row: its entry, number `at` of the span's. The entry is looked at as late as possible,
// since it has to be read first.
struct Sample {
  uint32_t row;
  int span;
  int at;

  __device__ __forceinline__ static Sample Find(const Step& step, const Unit& unit,
                                                const RowList& list, int i) {
    const int span = LastBefore(list.before, list.spans, i);
    const int at = i - list.before[span];
    const int64_t first = (int64_t{unit.number} * step.spans + span) * step.span_keys;
    return {__ldcg(step.rows + first + at), span, at};
  }
  __device__ __forceinline__ Sample Of(int lane) const {
    return {__shfl_sync(kAllLanes, row, lane), __shfl_sync(kAllLanes, span, lane),
            __shfl_sync(kAllLanes, at, lane)};
  }
  __device__ __forceinline__ int Position(const Step& step) const {
    return span * step.span_keys + PlaceOfRow(row);
  }
  // Of the unit.
  __device__ __forceinline__ int Cluster(const Step& step) const {
    return span * step.span_slots + ClusterOfSample(row);
  }
  __device__ __forceinline__ bool OfHeads() const { return (row & kOfHeads) != 0; }
};

// Scores rows [begin, end) of 16 of the list: logits, for the clusters of heads; masses of their
// bins and of windows.
template <class Row, int kDim, int kHeadTiles>
__device__ void ScoreSamples(const Step& step, const Unit& unit, const RowList& list, int begin,
                             int end, const SampleShared& shared) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  int tile = begin + static_cast<int>(threadIdx.x >> 5);
  if (tile >= end) return;
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<Row::kIsBF16>(step, unit, q);
  const LaneAnchors<kHeadTiles> anchors(step, unit);
  const int64_t first_head = int64_t{unit.number} * step.group;
  const float* scores =
      step.scores + int64_t{unit.number} * step.segments * step.slots * step.group;
  const auto find = [&](int of) {
    return Sample::Find(step, unit, list, min(of * kTileRows + (lane & 15), list.total - 1));
  };
  Sample next = find(tile);
  for (; tile < end; tile += kBlockWarps) {
    const Sample rows[2] = {next.Of(r), next.Of(r + 8)};
    const bool there[2] = {tile * kTileRows + r < list.total,
                           tile * kTileRows + r + 8 < list.total};
    const int clusters[2] = {rows[0].Cluster(step), rows[1].Cluster(step)};
    KeyTile<Row, kDim> keys;
    keys.Load(KeyRow<Row>(step, unit, rows[0].Position(step)),
              KeyRow<Row>(step, unit, rows[1].Position(step)), lane);
    float of_cluster[2][kHeadTiles][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = min(LaneHead(n, h), step.group - 1);
          of_cluster[i][n][h] = __ldcg(scores + int64_t{clusters[i]} * step.group + head);
        }
      }
    }
    if (tile + kBlockWarps < end) next = find(tile + kBlockWarps);
    float s[kHeadTiles][4];
    keys.Score(q, s);
    float masses[kHeadTiles][4];  // relative to the logits of the bins
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Sample& row = rows[k / 2];
        const int head = LaneHead(n, k % 2);
        const float logit = Capped(s[n][k] * step.key_unit, step.softcap);
        if (there[k / 2] && row.OfHeads() && head < step.group) {
          const int64_t span = int64_t{unit.number} * step.spans + row.span;
          step.logits[(span * step.span_keys + row.at) * step.group + head] = logit;
        }
        const float of_bin = LogitOfBin(BinOf(of_cluster[k / 2][n][k % 2]));
        masses[n][k] = there[k / 2] ? Exp2(logit - anchors.of[n][k % 2] - of_bin) : 0.0f;
      }
    }
    // Cluster by cluster, of which a tile has few.
    unsigned left = __ballot_sync(kAllLanes, there[0]);
    unsigned left_high = __ballot_sync(kAllLanes, there[1]);
    while ((left | left_high) != 0) {
      const bool low = left != 0;
      const int leader = __ffs(static_cast<int>(low ? left : left_high)) - 1;
      const int cluster = __shfl_sync(kAllLanes, low ? clusters[0] : clusters[1], leader);
      const bool has[2] = {there[0] && clusters[0] == cluster, there[1] && clusters[1] == cluster};
      left &= ~__ballot_sync(kAllLanes, has[0]);
      left_high &= ~__ballot_sync(kAllLanes, has[1]);
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float mass = (has[0] ? masses[n][h] : 0.0f) + (has[1] ? masses[n][h + 2] : 0.0f);
#pragma unroll
          for (int k = 4; k < 32; k <<= 1) mass += __shfl_xor_sync(kAllLanes, mass, k);
          const int head = LaneHead(n, h);
          if (r != leader >> 2 || head >= step.group) continue;
          const int bin = BinOf(low ? of_cluster[0][n][h] : of_cluster[1][n][h]);
          if (low ? rows[0].OfHeads() : rows[1].OfHeads())
            AddUnits(step.bin_masses + (first_head + head) * kBins + bin, mass);
#pragma unroll
          for (int w = 0; w < 2; ++w) {
            if (InWindow(shared.ranks[head], w, cluster, bin))
              AddUnits(&step.windows[2 * (first_head + head) + w].units, mass);
          }
        }
      }
    }
  }
}

// The last block of a unit needs a tile of it, even where nothing is sampled.
__device__ __forceinline__ int SampleTiles(const Step& step, int unit) {
  return __ldcg(step.dense + unit) != 0 ? 0 : max(1, RowTiles(__ldcg(step.sampled_rows + unit)));
}

template <class Row, int kDim, int kHeadTiles>
__global__ void __launch_bounds__(kBlockThreads, BlocksFor(kDim, kHeadTiles, kSampleBlocks))
    SampleKernel(const __grid_constant__ Step step) {
  extern __shared__ uint32_t dynamic[];
  __shared__ SampleShared shared;
  const int thread = threadIdx.x;
  const int units = step.batch * step.kv_heads;
  int* const before = reinterpret_cast<int*>(dynamic);  // [units + 1]: tiles of the units ahead
  // Rows ahead of each span's; later bins.
  uint32_t* const room = dynamic + (units + 4) / 4 * 4;
  WaitForPrevious();
  LetNextBegin();
  const int64_t all =
      AddUp(units, 0, before, shared.scratch, [&](int u) { return SampleTiles(step, u); });
  const int64_t blocks = min(all, int64_t{gridDim.x});
  ForEachShare(before, units, all, blocks, [&](const UnitShare& share) {
    const Unit unit = ReadUnit(step, share.unit);
    const int64_t first_head = int64_t{unit.number} * step.group;
    if (thread < step.group) shared.ranks[thread] = step.ranks[first_head + thread];
    int* const list_room = reinterpret_cast<int*>(room);
    const int* counts = step.counts + int64_t{unit.number} * step.spans;
    const int rows =
        AddUp(unit.spans, 0, list_room, shared.scratch, [&](int j) { return __ldcg(counts + j); });
    if (rows > 0) {
      ScoreSamples<Row, kDim, kHeadTiles>(step, unit, {list_room, unit.spans, rows}, share.begin,
                                          share.end, shared);
    }
    if (!EndsLast(step, unit, share.blocks, &shared.flag)) return;
    const int warp = thread >> 5;
    for (int g = warp; g < step.group; g += kBlockWarps)
      FindCut(step, unit, g, room + warp * kBins);
    __syncthreads();
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
