// Stages budget and select of mode paper: the order of clusters, the fitted mass curve, the prefix
// that reaches the target (sections 4.3 to 4.5 of the paper).
//
// Clusters whose logits fall into the same of kBins bins, 1/32 octave wide, count as tied and are
// read together: ranks, the head and the cut end where a bin does. So no sorting is needed, and no
// more is read than one bin on top of what the published order would.
//
// Sample reads the head's keys, and a few clusters around the two ranks at which the curve is
// fitted. Cut fits it, drops what of the head nobody selects, and reads what lies beyond the head.
#include "src/cuda/heads.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/score_rows.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {
namespace {

// Masses of bins are integers, so that their sums do not depend on the order: in units of 2^-20 of
// the mass of a key whose logit is the bin's.
constexpr float kMassUnit = 0x1p-20f;
constexpr float kLargestMass = 0x1p40f;
// A curve needs so many ranks; below, everything is read.
constexpr int kLeastRanks = 32;
constexpr int kLeastWindow = 8;

struct PaperShared {
  PaperRanks ranks[kMaxGroup];
  int scratch[kBlockWarps];
  int clusters[kMaxSlots];
  int begins[kMaxSlots + 1];  // of their rows in the list
  uint8_t wanted[kMaxSlots];
  float sums[kMaxSlots][kMaxGroup];  // mass of a listed cluster
  float by_warp[kBlockWarps][kMaxGroup];
};

// Where rank `rank` is: its bin, and the rows of higher bins. `rows`: of the lane's share.
struct RankPlace {
  int bin;
  int above;
  int in_bin;
};
__device__ RankPlace FindRank(const uint32_t* bins, int rank, int rows, int lane) {
  const int through = WarpScan(rows, lane);
  const unsigned reached = __ballot_sync(kAllLanes, through >= rank);
  const int owner = reached == 0 ? 31 : __ffs(static_cast<int>(reached)) - 1;
  int before = __shfl_sync(kAllLanes, through - rows, owner);
  int top = kBins - owner * kBinsPerLane;
  for (int part = 0; part < kBinsPerLane / 32; ++part) {
    const auto count = static_cast<int>(__ldcg(bins + top - 1 - lane));
    const int so_far = before + WarpScan(count, lane);
    const unsigned here = __ballot_sync(kAllLanes, so_far >= rank);
    if (here != 0) {
      const int at = __ffs(static_cast<int>(here)) - 1;
      const int in_bin = __shfl_sync(kAllLanes, count, at);
      return {top - 1 - at, __shfl_sync(kAllLanes, so_far, at) - in_bin, in_bin};
    }
    before = __shfl_sync(kAllLanes, so_far, 31);
    top -= 32;
  }
  return {0, before, 0};
}

__device__ __forceinline__ const uint32_t* RankBins(const Step& step, const Unit& unit, int g) {
  return step.cluster_bins + (int64_t{unit.number} * step.group + g) * kBins;
}

// Whether cluster `cluster` is one of those that stand for its bin.
__device__ __forceinline__ bool Sampled(int cluster, int stride) {
  constexpr uint32_t kHash = 2654435761u;
  return (static_cast<uint32_t>(cluster) * kHash >> 16) % stride == 0;
}

// Head and windows of query head g. One warp.
__device__ PaperRanks FindRanks(const Step& step, const Unit& unit, int g) {
  const int lane = threadIdx.x & 31;
  const uint32_t* bins = RankBins(step, unit, g);
  const int rows = ReadLaneBins(bins, lane, 0).rows;
  const int all = WarpSum(rows);
  PaperRanks ranks = {};
  if (all < kLeastRanks || step.target >= 1) return ranks;  // bin 0: the head is everything
  const auto head = max(1, static_cast<int>(ceilf(step.head_share * static_cast<float>(all))));
  const RankPlace place = FindRank(bins, head, rows, lane);
  ranks.head_bin = place.bin;
  ranks.head_rows = place.above + place.in_bin;
  const int width = max(kLeastWindow, static_cast<int>(step.window_share * all));
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    const float at = w == 0 ? step.near_window : step.far_window;
    const RankPlace window = FindRank(bins, max(1, static_cast<int>(at * all)), rows, lane);
    ranks.window_bin[w] = window.bin;
    ranks.window_stride[w] = max(1, window.in_bin / width);
    ranks.window_rank[w] = window.above + 0.5f * window.in_bin;
  }
  return ranks;
}

// The list of rows of clusters shared.clusters[0, count): `chosen` as in verify.cu, but with the
// cluster above. Returns their number.
__device__ int ListMembers(const Step& step, const Unit& unit, int segment, int count,
                           PaperShared& shared, uint32_t* chosen) {
  const int thread = threadIdx.x;
  const uint16_t* starts = unit.index->starts + unit.Slot(segment, step.slots + 1);
  const uint16_t* members = unit.index->members + unit.Slot(segment, step.segment_size);
  int size = 0;
  if (thread < count) {
    const int cluster = shared.clusters[thread];
    size = __ldg(starts + cluster + 1) - __ldg(starts + cluster);
  }
  int total;
  const int begin = BlockScan(size, shared.scratch, &total);
  if (thread < count) shared.begins[thread] = begin;
  if (thread == 0) shared.begins[count] = total;
  __syncthreads();
  for (int e = thread >> 5; e < count; e += kBlockWarps) {
    const int cluster = shared.clusters[e];
    const int first = __ldg(starts + cluster);
    const int rows = shared.begins[e + 1] - shared.begins[e];
    for (int i = thread & 31; i < rows; i += 32) {
      chosen[shared.begins[e] + i] =
          static_cast<uint32_t>(cluster) << 16 | uint32_t{__ldg(members + first + i)};
    }
  }
  __syncthreads();
  return total;
}

// The first `count` rows of the list to the segment's, from place `to` on.
__device__ void StoreRows(const Step& step, int segment, int64_t to, const uint32_t* chosen,
                          int count) {
  for (int i = threadIdx.x; i < count; i += kBlockThreads) {
    step.rows[to + i] = segment * step.segment_size + static_cast<int>(chosen[i] & 0xffffu);
    step.tags[to + i] = static_cast<uint16_t>(chosen[i] >> 16);
  }
}

__device__ __forceinline__ int BinOfCluster(const Step& step, int64_t base, int cluster, int g) {
  return BinOf(__ldcg(step.scores + (base * step.slots + cluster) * step.group + g));
}

// Whether the unit's segment has members of a cluster. `thread` is the cluster.
__device__ __forceinline__ bool HasMembers(const Step& step, const Unit& unit, int segment,
                                           int cluster) {
  if (cluster >= step.slots) return false;
  const uint16_t* starts = unit.index->starts + unit.Slot(segment, step.slots + 1) + cluster;
  return __ldg(starts + 1) > __ldg(starts);
}

template <class Row, int kDim, int kHeadTiles>
__global__ void __launch_bounds__(kBlockThreads) SampleKernel(const __grid_constant__ Step step) {
  extern __shared__ uint32_t chosen[];
  __shared__ PaperShared shared;
  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int warp = thread >> 5;
  const Unit unit = MakeUnit(step, blockIdx.y);
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<Row::kIsBF16>(step, unit, q);
  WaitForPrevious();
  LetNextBegin();
  if (IsDense(step, unit)) return;
  for (int g = warp; g < step.group; g += kBlockWarps) {
    const PaperRanks ranks = FindRanks(step, unit, g);
    if (lane == 0) shared.ranks[g] = ranks;
    if (lane == 0 && blockIdx.x == 0) step.ranks[int64_t{unit.number} * step.group + g] = ranks;
  }
  __syncthreads();
  WindowSum windows[2] = {};  // of head `thread`
  for (int segment = blockIdx.x; segment < unit.segments; segment += gridDim.x) {
    const int64_t base = int64_t{unit.number} * step.segments + segment;
    bool head = false;
    bool window = false;
    if (HasMembers(step, unit, segment, thread)) {
      for (int g = 0; g < step.group; ++g) {
        const PaperRanks& ranks = shared.ranks[g];
        const int bin = BinOfCluster(step, base, thread, g);
        head = head || bin >= ranks.head_bin;
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          window = window || (bin == ranks.window_bin[w] &&
                              Sampled(segment * step.slots + thread, ranks.window_stride[w]));
        }
      }
    }
    int heads;
    const int head_at = BlockScan(head ? 1 : 0, shared.scratch, &heads);
    int others;
    const int other_at = BlockScan(!head && window ? 1 : 0, shared.scratch, &others);
    if (head) shared.clusters[head_at] = thread;
    if (!head && window) shared.clusters[heads + other_at] = thread;
    __syncthreads();
    const int listed = heads + others;
    const int rows = ListMembers(step, unit, segment, listed, shared, chosen);
    const int64_t to = base * step.segment_size;
    StoreRows(step, segment, to, chosen, shared.begins[heads]);
    ScoreRows<Row>(
        step, unit, q, rows, step.logits + to * step.group,
        [&](int i) { return segment * step.segment_size + static_cast<int>(chosen[i] & 0xffffu); },
        [](int, int, int, float) {});
    __syncthreads();
    for (int e = warp; e < listed; e += kBlockWarps) {
      for (int g = 0; g < step.group; ++g) {
        const float anchor = AnchorOf(step, unit, g);
        float mass = 0;
        for (int i = shared.begins[e] + lane; i < shared.begins[e + 1]; i += 32)
          mass += Exp2(step.logits[(to + i) * step.group + g] - anchor);
        mass = WarpSum(mass);
        if (lane != 0) continue;
        shared.sums[e][g] = mass;
        const int bin = BinOfCluster(step, base, shared.clusters[e], g);
        if (bin < shared.ranks[g].head_bin) continue;
        const float units = fminf(mass * Exp2(-LogitOfBin(bin)), kLargestMass) / kMassUnit;
        atomicAdd(reinterpret_cast<unsigned long long*>(
                      step.bin_masses + (int64_t{unit.number} * step.group + g) * kBins + bin),
                  static_cast<unsigned long long>(units));
      }
    }
    __syncthreads();
    if (thread < step.group) {
      const PaperRanks& ranks = shared.ranks[thread];
      for (int e = 0; e < listed; ++e) {
        const int cluster = shared.clusters[e];
        const int bin = BinOfCluster(step, base, cluster, thread);
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          if (bin != ranks.window_bin[w] ||
              !Sampled(segment * step.slots + cluster, ranks.window_stride[w]))
            continue;
          windows[w].sum += shared.sums[e][thread];
          windows[w].count += static_cast<float>(shared.begins[e + 1] - shared.begins[e]);
        }
      }
    }
    if (thread == 0) step.counts[base] = shared.begins[heads];
    __syncthreads();
  }
  if (thread < step.group) {
    WindowSum* to =
        step.windows + ((int64_t{unit.number} * step.parts + blockIdx.x) * step.group + thread) * 2;
    to[0] = windows[0];
    to[1] = windows[1];
  }
}

// Mass of the bin, relative to the anchor.
__device__ __forceinline__ float BinMass(const uint64_t* masses, int bin) {
  return static_cast<float>(__ldcg(reinterpret_cast<const unsigned long long*>(masses + bin))) *
         kMassUnit * Exp2(LogitOfBin(bin));
}

// The mean of y over a window, from all parts; where nothing was sampled, what the bin says.
__device__ float WindowMean(const Step& step, const Unit& unit, int g, int w, int bin) {
  const WindowSum* of =
      step.windows + (int64_t{unit.number} * step.parts * step.group + g) * 2 + w;
  const float sum = SumOver(&of->sum, step.parts, step.group * 4);
  const float count = SumOver(&of->count, step.parts, step.group * 4);
  return count > 0 ? sum / count : Exp2(LogitOfBin(bin));
}

// Fits the curve of head g and finds where its own selection ends. One warp.
__device__ PaperRanks FindCut(const Step& step, const Unit& unit, int g) {
  const int lane = threadIdx.x & 31;
  const int64_t head = int64_t{unit.number} * step.group + g;
  PaperRanks ranks = step.ranks[head];
  const uint32_t* bins = RankBins(step, unit, g);
  const uint64_t* masses = step.bin_masses + head * kBins;
  const int rows = ReadLaneBins(bins, lane, 0).rows;
  const int all = WarpSum(rows);
  ranks.own_rows = all;
  ranks.cut_bin = 0;
  if (all < kLeastRanks || step.target >= 1) return ranks;
  const float fixed = SumOver(step.part_forced + int64_t{unit.number} * step.parts * step.group + g,
                              step.parts, step.group);
  // Lanes share the bins as in ReadLaneBins.
  const int first = kBins - (lane + 1) * kBinsPerLane;
  float mass = 0;
  for (int i = kBinsPerLane - 1; i >= 0; --i)
    mass += first + i >= ranks.head_bin ? BinMass(masses, first + i) : 0.0f;
  const float through = WarpScan(mass, lane);
  const float head_mass = __shfl_sync(kAllLanes, through, 31);

  const float h = static_cast<float>(ranks.head_rows);
  const float n = static_cast<float>(all);
  const float near = WindowMean(step, unit, g, 0, ranks.window_bin[0]);
  const float far = WindowMean(step, unit, g, 1, ranks.window_bin[1]);
  const float inverse_near = 1 / ranks.window_rank[0];
  const float inverse_far = 1 / ranks.window_rank[1];
  float a = inverse_near > inverse_far ? (near - far) / (inverse_near - inverse_far) : 0.0f;
  float b = far - a * inverse_far;
  if (!(a > 0)) {
    a = 0;
    b = (near + far) / 2;
  }
  if (b < 0) {
    b = 0;
    a = near / inverse_near;
  }
  const auto curve = [&](float x) {
    return fixed + head_mass + a * logf(x / h) + b * (x - h);
  };
  const float goal = step.target * (n > h ? curve(n) : fixed + head_mass);
  if (goal <= fixed) {
    ranks.cut_bin = kBins;  // the forced rows are enough
    ranks.own_rows = 0;
    return ranks;
  }
  if (fixed + head_mass >= goal) {
    const unsigned reached = __ballot_sync(kAllLanes, fixed + through >= goal);
    const int owner = __ffs(static_cast<int>(reached)) - 1;
    float so_far = fixed + __shfl_sync(kAllLanes, through - mass, owner);
    int bin = kBins - owner * kBinsPerLane;
    do {
      --bin;
      so_far += BinMass(masses, bin);
    } while (so_far < goal && bin > ranks.head_bin);
    ranks.cut_bin = bin;
  } else {
    float low = h;
    float high = n;
    // Every step, 32 points between two ranks: five find the rank among 2^25.
    for (int i = 0; i < 5 && high - low > 1; ++i) {
      const float width = (high - low) / 32;
      const unsigned reached =
          __ballot_sync(kAllLanes, curve(low + width * (lane + 1)) >= goal);
      const int at = reached == 0 ? 31 : __ffs(static_cast<int>(reached)) - 1;
      high = low + width * (at + 1);
      low = low + width * at;
    }
    ranks.cut_bin = FindRank(bins, static_cast<int>(high), rows, lane).bin;
  }
  ranks.own_rows = WarpSum(ReadLaneBins(bins, lane, ranks.cut_bin).rows);
  return ranks;
}

template <class Row, int kDim, int kHeadTiles>
__global__ void __launch_bounds__(kBlockThreads) CutKernel(const __grid_constant__ Step step) {
  extern __shared__ uint32_t chosen[];
  __shared__ PaperShared shared;
  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int warp = thread >> 5;
  const Unit unit = MakeUnit(step, blockIdx.y);
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<Row::kIsBF16>(step, unit, q);
  WaitForPrevious();
  LetNextBegin();
  if (IsDense(step, unit)) return;
  for (int g = warp; g < step.group; g += kBlockWarps) {
    const PaperRanks ranks = FindCut(step, unit, g);
    if (lane == 0) shared.ranks[g] = ranks;
  }
  __syncthreads();
  // After every block has read what sample left there: they only differ in what is added.
  if (blockIdx.x == 0 && thread < step.group) {
    PaperRanks* to = step.ranks + int64_t{unit.number} * step.group + thread;
    to->cut_bin = shared.ranks[thread].cut_bin;
    to->own_rows = shared.ranks[thread].own_rows;
  }
  float anchors[kHeadTiles][2];
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      anchors[n][h] =
          AnchorOf(step, unit, min(n * kTileHeads + 2 * (lane & 3) + h, step.group - 1));
    }
  }
  for (int segment = blockIdx.x; segment < unit.segments; segment += gridDim.x) {
    const int64_t base = int64_t{unit.number} * step.segments + segment;
    const int64_t to = base * step.segment_size;
    bool wanted = false;
    bool known = false;
    if (HasMembers(step, unit, segment, thread)) {
      for (int g = 0; g < step.group; ++g) {
        const int bin = BinOfCluster(step, base, thread, g);
        wanted = wanted || bin >= shared.ranks[g].cut_bin;
        known = known || bin >= shared.ranks[g].head_bin;
      }
    }
    if (thread < step.slots) shared.wanted[thread] = wanted ? 1 : 0;
    int fresh;
    const int at = BlockScan(wanted && !known ? 1 : 0, shared.scratch, &fresh);
    if (wanted && !known) shared.clusters[at] = thread;
    __syncthreads();
    // Rows of the head that nobody selects make way, in place.
    const int sampled = step.counts[base];
    int kept = 0;
    for (int first = 0; first < sampled; first += kBlockThreads) {
      const int i = first + thread;
      const int cluster = i < sampled ? step.tags[to + i] : 0;
      const bool keep = i < sampled && shared.wanted[cluster] != 0;
      const int row = keep ? step.rows[to + i] : 0;
      float logits[kMaxGroup];
#pragma unroll
      for (int g = 0; g < kMaxGroup; ++g) {
        if (g < step.group && keep) logits[g] = step.logits[(to + i) * step.group + g];
      }
      int here;
      const int place = kept + BlockScan(keep ? 1 : 0, shared.scratch, &here);
      kept += here;
      if (keep) {
        step.rows[to + place] = row;
        step.tags[to + place] = static_cast<uint16_t>(cluster);
#pragma unroll
        for (int g = 0; g < kMaxGroup; ++g) {
          if (g < step.group) step.logits[(to + place) * step.group + g] = logits[g];
        }
      }
      __syncthreads();
    }
    const int rows = ListMembers(step, unit, segment, fresh, shared, chosen);
    StoreRows(step, segment, to + kept, chosen, rows);
    float mass[kHeadTiles][2] = {};
    const auto add = [&](int cluster, int n, int h, float logit) {
      const int head = n * kTileHeads + 2 * (lane & 3) + h;
      if (BinOfCluster(step, base, cluster, head) >= shared.ranks[head].cut_bin)
        mass[n][h] += Exp2(logit - anchors[n][h]);
    };
    for (int i = thread / 4; i < kept; i += kBlockThreads / 4) {
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = n * kTileHeads + 2 * (lane & 3) + h;
          if (head < step.group)
            add(step.tags[to + i], n, h, step.logits[(to + i) * step.group + head]);
        }
      }
    }
    ScoreRows<Row>(
        step, unit, q, rows, step.logits + (to + kept) * step.group,
        [&](int i) { return segment * step.segment_size + static_cast<int>(chosen[i] & 0xffffu); },
        [&](int i, int n, int h, float logit) {
          add(static_cast<int>(chosen[i] >> 16), n, h, logit);
        });
    SumHeads(mass, step.group, shared.by_warp, step.exact + base * step.group);
    if (thread == 0) step.counts[base] = kept + rows;
  }
}

}  // namespace

Status LaunchSample(const Step& step, Element type, Stream stream) {
  const size_t shared = static_cast<size_t>(step.segment_size) * sizeof(uint32_t);
  return DispatchStep(step, type, [&]<class Row, int kDim, int kHeadTiles>() {
    return Launch(SampleKernel<Row, kDim, kHeadTiles>, step, step.parts,
                  shared, stream);
  });
}

Status LaunchCut(const Step& step, Element type, Stream stream) {
  const size_t shared = static_cast<size_t>(step.segment_size) * sizeof(uint32_t);
  return DispatchStep(step, type, [&]<class Row, int kDim, int kHeadTiles>() {
    return Launch(CutKernel<Row, kDim, kHeadTiles>, step, step.parts,
                  shared, stream);
  });
}

}  // namespace tactic::cuda
