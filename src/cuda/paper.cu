// Stages budget and select of mode paper: the order of clusters, the fitted mass curve, the prefix
// that reaches the target (sections 4.3 to 4.5 of the paper).
//
// Clusters whose logits fall into the same of kBins bins, 1/16 octave wide, count as tied and are
// read together: ranks, the head and the cut end where a bin does. So no sorting is needed, and no
// more is read than one bin on top of what the published order would.
//
// Rank has found the head. Sample reads its keys, and a few clusters around the two ranks at which
// the curve is fitted; its last block fits it. Cut drops what of the head nobody selects, and reads
// what lies beyond it.
#include <algorithm>

#include "src/cuda/bins.cuh"
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

struct PaperShared {
  PaperRanks ranks[kMaxGroup];
  float anchors[kMaxGroup];
  int scratch[kBlockWarps];
  int clusters[kMaxSlots];
  uint16_t firsts[kMaxSlots];  // their first members
  int begins[kMaxSlots + 1];   // of their rows in the list
  uint8_t wanted[kMaxSlots];
  uint16_t bins[kMaxSlots][kMaxGroup];  // of the span's clusters
  float sums[kMaxSlots][kMaxGroup];     // mass of a listed cluster
  float by_warp[kBlockWarps][kMaxGroup];
  int flag;
};

// Whether cluster `cluster` is one of those that stand for its bin.
__device__ __forceinline__ bool Sampled(int cluster, int stride) {
  constexpr uint32_t kHash = 2654435761u;
  return (static_cast<uint32_t>(cluster) * kHash >> 16) % stride == 0;
}

// The list of rows of clusters shared.clusters[0, count): cluster << 16 | place in the span.
// Returns their number.
__device__ int ListMembers(const Step& step, const Unit& unit, int span, int count,
                           PaperShared& shared, uint32_t* chosen) {
  const int thread = threadIdx.x;
  const uint16_t* members = unit.members + int64_t{span} * step.span_keys;
  Members of = {};
  if (thread < count) of = MembersOf(step, unit, span, shared.clusters[thread]);
  int total;
  const int begin = BlockScan(of.end - of.begin, shared.scratch, &total);
  if (thread < count) {
    shared.begins[thread] = begin;
    shared.firsts[thread] = static_cast<uint16_t>(of.begin);
  }
  if (thread == 0) shared.begins[count] = total;
  __syncthreads();
  for (int e = thread >> 5; e < count; e += kBlockWarps) {
    const uint32_t cluster = shared.clusters[e];
    const int rows = shared.begins[e + 1] - shared.begins[e];
    for (int i = thread & 31; i < rows; i += 32) {
      chosen[shared.begins[e] + i] =
          cluster << 16 | static_cast<uint32_t>(PlaceOf(step, members, shared.firsts[e] + i));
    }
  }
  __syncthreads();
  return total;
}

// The first `count` rows of the list to the span's, from place `to` on.
__device__ void StoreRows(const Step& step, int span, int64_t to, const uint32_t* chosen,
                          int count) {
  for (int i = threadIdx.x; i < count; i += kBlockThreads) {
    step.rows[to + i] = span * step.span_keys + static_cast<int>(chosen[i] & 0xffffu);
    step.tags[to + i] = static_cast<uint16_t>(chosen[i] >> 16);
  }
}

// Bins of cluster `thread` of the span. False: it has no members.
__device__ __forceinline__ bool ReadBinsOfCluster(const Step& step, const Unit& unit, int span,
                                                  PaperShared& shared) {
  const int cluster = threadIdx.x;
  if (cluster >= unit.SpanClusters(span, step.slots, step.span_slots)) return false;
  const int64_t base = int64_t{unit.number} * step.spans + span;
  const float* scores = step.scores + (base * step.span_slots + cluster) * step.group;
#pragma unroll
  for (int g = 0; g < kMaxGroup; ++g) {
    if (g < step.group) shared.bins[cluster][g] = static_cast<uint16_t>(BinOf(__ldcg(scores + g)));
  }
  const Members of = MembersOf(step, unit, span, cluster);
  return of.begin < of.end;
}

// The mean of y over a window, from all parts; where nothing was sampled, what the bin says.
__device__ float WindowMean(const Step& step, const Unit& unit, int g, int w, int bin) {
  const WindowSum* of = step.windows + (int64_t{unit.number} * step.parts * step.group + g) * 2 + w;
  const StridedSum sums(&of->sum, step.parts, step.group * 4);
  const StridedSum counts(&of->count, step.parts, step.group * 4);
  const float sum = sums.Get();
  const float count = counts.Get();
  return count > 0 ? sum / count : Exp2(LogitOfBin(bin));
}

// Fits the curve of head g and finds where its own selection ends. `bins`: room for
// them, and PlanningWarps() times as many words on for their masses. One warp.
__device__ void FindCut(const Step& step, const Unit& unit, int g, uint32_t* bins) {
  const int lane = threadIdx.x & 31;
  const int64_t at = int64_t{unit.number} * step.group + g;
  PaperRanks ranks = step.ranks[at];
  ranks.own_rows = ranks.all_rows;
  ranks.cut_bin = 0;
  if (ranks.window_stride[0] > 0) {  // else rank found nothing to fit
    const StridedSum fixed_sum(
        step.part_forced + int64_t{unit.number} * step.rank_parts * step.group + g, step.rank_parts,
        step.group);
    CopyBins(step.cluster_bins + at * kBins, bins);
    float* masses = reinterpret_cast<float*>(bins + PlanningWarps(step.group) * kBins);
    const auto* units = reinterpret_cast<const unsigned long long*>(step.bin_masses + at * kBins);
    const int lowest = ranks.head_bin / 32 * 32;
#pragma unroll 4
    for (int i = lowest + lane; i < kBins; i += 32)
      masses[i] = static_cast<float>(__ldcg(units + i)) * kMassUnit * Exp2(LogitOfBin(i));
    __syncwarp();
    const auto mass = [&](int bin, int) { return bin < ranks.head_bin ? 0.0f : masses[bin]; };
    const float fixed = fixed_sum.Get();
    const BinSums<float> chunks = SumBins<float>(bins, mass);
    const float head = fixed + WarpSum(chunks.sum);
    const auto h = static_cast<float>(ranks.head_rows);
    const auto n = static_cast<float>(ranks.all_rows);
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
    const auto curve = [&](float x) { return head + a * logf(x / h) + b * (x - h); };
    const float goal = step.target * curve(n);
    if (goal <= fixed) {
      ranks.cut_bin = kBins;  // the forced rows are enough
      ranks.own_rows = 0;
    } else if (head >= goal) {
      const auto place = FindBin<float>(bins, chunks, goal - fixed, mass);
      // Rounding may leave a sum of all that is less than itself.
      ranks.cut_bin = place.bin < 0 ? ranks.head_bin : place.bin;
      ranks.own_rows = place.bin < 0 ? ranks.head_rows : place.rows;
    } else {
      float low = h;
      float high = n;
      // Every step, 32 points between two ranks: five find the rank among 2^25.
      for (int i = 0; i < 5 && high - low > 1; ++i) {
        const float width = (high - low) / 32;
        const unsigned reached = __ballot_sync(kAllLanes, curve(low + width * (lane + 1)) >= goal);
        const int step_of = reached == 0 ? 31 : __ffs(static_cast<int>(reached)) - 1;
        high = low + width * (step_of + 1);
        low = low + width * step_of;
      }
      const auto place = FindBin<int>(bins, BinSums<int>{chunks.rows, chunks.rows},
                                      static_cast<int>(high), [](int, int count) { return count; });
      ranks.cut_bin = max(0, place.bin);
      ranks.own_rows = place.rows;
    }
  }
  if (lane == 0) step.ranks[at] = ranks;
}

template <class Row, int kDim, int kHeadTiles>
__global__ void __launch_bounds__(kBlockThreads, BlocksFor(kDim, kHeadTiles, 3))
    SampleKernel(const __grid_constant__ Step step) {
  extern __shared__ uint32_t chosen[];
  __shared__ PaperShared shared;
  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int warp = thread >> 5;
  WaitForPrevious();
  LetNextBegin();
  const Unit unit = ReadUnit(step, blockIdx.y);
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<Row::kIsBF16>(step, unit, q);
  if (IsDense(step, unit)) return;
  if (thread < step.group) {
    shared.ranks[thread] = step.ranks[int64_t{unit.number} * step.group + thread];
    shared.anchors[thread] = AnchorOf(step, unit, thread);
  }
  __syncthreads();
  WindowSum windows[2] = {};  // of head `thread`
  for (int span = blockIdx.x; span < unit.spans; span += gridDim.x) {
    const int64_t base = int64_t{unit.number} * step.spans + span;
    bool head = false;
    bool window = false;
    if (ReadBinsOfCluster(step, unit, span, shared)) {
      for (int g = 0; g < step.group; ++g) {
        const PaperRanks& ranks = shared.ranks[g];
        const int bin = shared.bins[thread][g];
        head = head || bin >= ranks.head_bin;
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          window = window || (bin == ranks.window_bin[w] &&
                              Sampled(span * step.span_slots + thread, ranks.window_stride[w]));
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
    const int rows = ListMembers(step, unit, span, listed, shared, chosen);
    const int64_t to = base * step.span_keys;
    StoreRows(step, span, to, chosen, shared.begins[heads]);
    ScoreRows<Row>(
        step, unit, q, rows, step.logits + to * step.group,
        [&](int i) { return span * step.span_keys + static_cast<int>(chosen[i] & 0xffffu); },
        [](int, int, int, float) {});
    __syncthreads();
    for (int e = warp; e < listed; e += kBlockWarps) {
      constexpr int kHeads = kHeadTiles * kTileHeads;
      float masses[kHeads] = {};
      for (int i = shared.begins[e] + lane; i < shared.begins[e + 1]; i += 32) {
#pragma unroll
        for (int g = 0; g < kHeads; ++g) {
          if (g < step.group)
            masses[g] += Exp2(step.logits[(to + i) * step.group + g] - shared.anchors[g]);
        }
      }
#pragma unroll
      for (int g = 0; g < kHeads; ++g) {
        if (g >= step.group) break;
        const float mass = WarpSum(masses[g]);
        if (lane != 0) continue;
        shared.sums[e][g] = mass;
        const int bin = shared.bins[shared.clusters[e]][g];
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
        const int bin = shared.bins[cluster][thread];
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          if (bin != ranks.window_bin[w] ||
              !Sampled(span * step.span_slots + cluster, ranks.window_stride[w]))
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
  if (!EndsLast(step, unit, gridDim.x, &shared.flag)) return;
  for (int g = warp; g < step.group; g += kBlockWarps)
    FindCut(step, unit, g, chosen + warp * kBins);
}

template <class Row, int kDim, int kHeadTiles>
__global__ void __launch_bounds__(kBlockThreads, BlocksFor(kDim, kHeadTiles, 3))
    CutKernel(const __grid_constant__ Step step) {
  extern __shared__ uint32_t chosen[];
  __shared__ PaperShared shared;
  const int thread = threadIdx.x;
  const Unit unit = ReadUnit(step, blockIdx.y);
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<Row::kIsBF16>(step, unit, q);
  WaitForPrevious();
  LetNextBegin();
  if (IsDense(step, unit)) return;
  if (thread < step.group)
    shared.ranks[thread] = step.ranks[int64_t{unit.number} * step.group + thread];
  __syncthreads();
  const LaneAnchors<kHeadTiles> anchors(step, unit);
  for (int span = blockIdx.x; span < unit.spans; span += gridDim.x) {
    const int64_t base = int64_t{unit.number} * step.spans + span;
    const int64_t to = base * step.span_keys;
    bool wanted = false;
    bool known = false;
    if (ReadBinsOfCluster(step, unit, span, shared)) {
      for (int g = 0; g < step.group; ++g) {
        const int bin = shared.bins[thread][g];
        wanted = wanted || bin >= shared.ranks[g].cut_bin;
        known = known || bin >= shared.ranks[g].head_bin;
      }
    }
    shared.wanted[thread] = wanted ? 1 : 0;
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
    const int rows = ListMembers(step, unit, span, fresh, shared, chosen);
    StoreRows(step, span, to + kept, chosen, rows);
    float mass[kHeadTiles][2] = {};
    const auto add = [&](int cluster, int n, int h, float logit) {
      const int head = LaneHead(n, h);
      if (shared.bins[cluster][head] >= shared.ranks[head].cut_bin)
        mass[n][h] += Exp2(logit - anchors.of[n][h]);
    };
    for (int i = thread / 4; i < kept; i += kBlockThreads / 4) {
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = LaneHead(n, h);
          if (head < step.group)
            add(step.tags[to + i], n, h, step.logits[(to + i) * step.group + head]);
        }
      }
    }
    ScoreRows<Row>(
        step, unit, q, rows, step.logits + (to + kept) * step.group,
        [&](int i) { return span * step.span_keys + static_cast<int>(chosen[i] & 0xffffu); },
        [&](int i, int n, int h, float logit) {
          add(static_cast<int>(chosen[i] >> 16), n, h, logit);
        });
    SumHeads(mass, step.group, shared.by_warp, step.exact + base * step.group);
    if (thread == 0) step.counts[base] = kept + rows;
  }
  if (EndsLast(step, unit, gridDim.x, &shared.flag) && thread < 32) CountTiles(step, unit, false);
}

}  // namespace

Status LaunchSample(const Step& step, Element type, Stream stream) {
  // At its end the block wants room for bins and their masses.
  const size_t shared =
      std::max<size_t>(step.span_keys, size_t{2} * PlanningWarps(step.group) * kBins) *
      sizeof(uint32_t);
  return DispatchStep(step, type, [&]<class Row, int kDim, int kHeadTiles>() {
    return Launch(SampleKernel<Row, kDim, kHeadTiles>, step, UnitGrid(step, step.parts), shared,
                  stream);
  });
}

Status LaunchCut(const Step& step, Element type, Stream stream) {
  const size_t shared = static_cast<size_t>(step.span_keys) * sizeof(uint32_t);
  return DispatchStep(step, type, [&]<class Row, int kDim, int kHeadTiles>() {
    return Launch(CutKernel<Row, kDim, kHeadTiles>, step, UnitGrid(step, step.parts), shared,
                  stream);
  });
}

}  // namespace tactic::cuda
