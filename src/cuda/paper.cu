// Stages budget and select of mode paper: the order of clusters, the fitted mass curve, the prefix
// that reaches the target (sections 4.3 to 4.5 of the paper).
//
// Clusters whose logits fall into the same of kBins bins, 1/16 octave wide, count as tied and are
// read together: ranks, the head and the cut end where a bin does. So no sorting is needed, and no
// more is read than one bin on top of what the published order would.
//
// Rank has found the heads: the first ranks of each query head. Sample scores the keys of these
// clusters, and of a few around the two ranks at which the curve is fitted; its last block fits it.
// Cut lists what is selected and scores what of it lies beyond the heads. It leaves the logits of
// heads where sample put them, whose order it repeats.
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

// A cluster of a span whose rows are listed.
struct Listed {
  int first;  // its first member's number in the span
  int rows;
  int at;    // of its first row in the list
  int slot;  // of its first row's logits
};

struct PaperShared {
  PaperRanks ranks[kMaxGroup];
  uint64_t scratch[kBlockWarps];
  Listed listed[kMaxSlots];
  uint16_t bins[kMaxSlots][kMaxGroup];  // of listed clusters
  uint32_t windows[kMaxSlots];          // of listed clusters: bit 2 g + w, stands for it
  uint32_t window_rows[kMaxGroup * 2];
  float by_warp[kBlockWarps][kMaxGroup];
  int flag;
};

// Four numbers that are counted over the clusters of a span in one scan, none above its positions.
static_assert(kMaxSlots * Options::kPage < 1 << 16);
__device__ __forceinline__ uint64_t Counts(int a, int b, int c, int d) {
  return static_cast<uint64_t>(static_cast<uint32_t>(d << 16 | c)) << 32 |
         static_cast<uint32_t>(b << 16 | a);
}
template <int kNumber>
__device__ __forceinline__ int CountOf(uint64_t counts) {
  return static_cast<int>(counts >> 16 * kNumber & 0xffff);
}

// Whether cluster `cluster` is one of those that stand for its bin.
__device__ __forceinline__ bool Sampled(int cluster, int stride) {
  constexpr uint32_t kHash = 2654435761u;
  return stride > 0 && (static_cast<uint32_t>(cluster) * kHash >> 16) % stride == 0;
}

// Cluster `thread` of a span: its members, none if there is no such cluster, and its bins.
template <int kHeads>
struct SpanCluster {
  Members members;
  int bins[kHeads];

  __device__ __forceinline__ SpanCluster(const Step& step, const Unit& unit, int span) {
    const int cluster = threadIdx.x;
    const bool there = span < unit.spans &&
                       cluster < unit.SpanClusters(span, step.slots, step.span_slots);
    members = there ? MembersOf(step, unit, span, cluster) : Members{};
    const int64_t base = int64_t{unit.number} * step.spans + span;
    const float* scores = step.scores + (base * step.span_slots + cluster) * step.group;
#pragma unroll
    for (int g = 0; g < kHeads; ++g)
      bins[g] = there && g < step.group ? BinOf(__ldcg(scores + g)) : 0;
  }
  __device__ __forceinline__ int Rows() const { return members.end - members.begin; }
  // Enters it into the list.
  __device__ __forceinline__ void List(PaperShared& shared, int e, int at, int slot) const {
    shared.listed[e] = {members.begin, Rows(), at, slot};
#pragma unroll
    for (int g = 0; g < kHeads; ++g) shared.bins[e][g] = static_cast<uint16_t>(bins[g]);
  }
};

// For all rows of the first `count` clusters of the list: write(e, listed, i, place) of row i of
// cluster e, `place` its place in the span.
template <class Write>
__device__ __forceinline__ void ListRows(const Step& step, const Unit& unit, int span, int count,
                                         const PaperShared& shared, const Write& write) {
  const uint16_t* members = unit.members + int64_t{span} * step.span_keys;
  for (int e = static_cast<int>(threadIdx.x >> 5); e < count; e += kBlockWarps) {
    const Listed of = shared.listed[e];
    const int segment = of.first - of.first % step.segment_size;
    for (int i = static_cast<int>(threadIdx.x & 31); i < of.rows; i += 32)
      write(e, of, i, segment + static_cast<int>(__ldg(members + of.first + i)));
  }
}

__device__ __forceinline__ void AddUnits(uint64_t* to, float mass) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to),
            static_cast<unsigned long long>(fminf(mass, kLargestMass) / kMassUnit));
}

// Adds the masses of a tile's rows to those of their clusters' bins, for the clusters of heads, and
// to the windows that their clusters stand for. `chosen`: cluster of the list << 16, for `count`
// rows; the first `heads` clusters are those of heads. One warp.
template <int kHeadTiles>
__device__ __forceinline__ void AddMasses(const Step& step, const Unit& unit,
                                          const PaperShared& shared,
                                          const LaneAnchors<kHeadTiles>& anchors,
                                          const uint32_t* chosen, int count, int heads, int tile,
                                          const float (&s)[kHeadTiles][4]) {
  const int lane = threadIdx.x & 31;
  const int low = tile * kTileRows + (lane >> 2);
  const int high = low + 8;
  const auto cluster_of = [&](int i) {
    return static_cast<int>(chosen[min(i, count - 1)] >> 16);
  };
  const int of_low = cluster_of(low);
  const int of_high = cluster_of(high);
  const int last = __shfl_sync(kAllLanes, of_high, 31);
  for (int e = __shfl_sync(kAllLanes, of_low, 0); e <= last; ++e) {
    const bool has_low = low < count && of_low == e;
    const bool has_high = high < count && of_high == e;
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int head = LaneHead(n, h);
        const int bin = shared.bins[e][head];
        const float of_bin = anchors.of[n][h] + LogitOfBin(bin);
        float mass = has_low ? Exp2(s[n][h] - of_bin) : 0.0f;
        mass += has_high ? Exp2(s[n][h + 2] - of_bin) : 0.0f;
#pragma unroll
        for (int k = 4; k < 32; k <<= 1) mass += __shfl_xor_sync(kAllLanes, mass, k);
        if (lane >= 4 || head >= step.group) continue;
        const int64_t at = int64_t{unit.number} * step.group + head;
        if (e < heads) AddUnits(step.bin_masses + at * kBins + bin, mass);
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          if ((shared.windows[e] >> (2 * head + w) & 1) != 0)
            AddUnits(&step.windows[2 * at + w].units, mass);
        }
      }
    }
  }
}

// The mean of y over a window; where nothing was sampled, what the bin says.
__device__ float WindowMean(const Step& step, const Unit& unit, int g, int w, int bin) {
  const WindowSum* of = step.windows + (int64_t{unit.number} * step.group + g) * 2 + w;
  const auto read = [](const uint64_t* p) {
    return static_cast<float>(__ldcg(reinterpret_cast<const unsigned long long*>(p)));
  };
  const float of_bin = Exp2(LogitOfBin(bin));
  const float rows = read(&of->rows);
  return rows > 0 ? read(&of->units) * kMassUnit / rows * of_bin : of_bin;
}

// Mass of the keys of heads' clusters in bin `bin` of query head `at`.
__device__ __forceinline__ float BinMass(const Step& step, int64_t at, int bin) {
  const auto* units = reinterpret_cast<const unsigned long long*>(step.bin_masses + at * kBins);
  return static_cast<float>(__ldcg(units + bin)) * kMassUnit * Exp2(LogitOfBin(bin));
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
    const int lowest = ranks.head_bin / 32 * 32;
#pragma unroll 4
    for (int i = lowest + lane; i < kBins; i += 32) masses[i] = BinMass(step, at, i);
    __syncwarp();
    const auto mass = [&](int bin, int) { return bin < ranks.head_bin ? 0.0f : masses[bin]; };
    const float fixed = fixed_sum.Get();
    const BinSums<float> chunks = SumBins<float>(bins, mass);
    const float head = fixed + WarpSum(chunks.sum);
    const auto h = static_cast<float>(max(1, ranks.head_rows));
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

// The mass of head g's own selection, forced rows and all. One warp.
__device__ void FindOwnMass(const Step& step, const Unit& unit, int g) {
  const int lane = threadIdx.x & 31;
  const int64_t at = int64_t{unit.number} * step.group + g;
  const StridedSum forced(
      step.part_forced + int64_t{unit.number} * step.rank_parts * step.group + g, step.rank_parts,
      step.group);
  const StridedSum beyond(step.exact + int64_t{unit.number} * step.spans * step.group + g,
                          unit.spans, step.group);
  const int cut = step.ranks[at].cut_bin;
  float mass = 0;
#pragma unroll 8
  for (int i = cut + lane; i < kBins; i += 32) mass += BinMass(step, at, i);
  mass = WarpSum(mass) + forced.Get() + beyond.Get();
  if (lane == 0) step.ranks[at].own_mass = mass;
}

template <class Row, int kDim, int kHeadTiles>
__global__ void __launch_bounds__(kBlockThreads, BlocksFor(kDim, kHeadTiles, 3))
    SampleKernel(const __grid_constant__ Step step) {
  extern __shared__ uint32_t chosen[];  // cluster of the list << 16 | place in the span
  __shared__ PaperShared shared;
  const int thread = threadIdx.x;
  const int warp = thread >> 5;
  WaitForPrevious();
  LetNextBegin();
  const Unit unit = ReadUnit(step, blockIdx.y);
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<Row::kIsBF16>(step, unit, q);
  if (IsDense(step, unit)) return;
  const int64_t heads_before = int64_t{unit.number} * step.group;
  if (thread < step.group) shared.ranks[thread] = step.ranks[heads_before + thread];
  if (thread < step.group * 2) shared.window_rows[thread] = 0;
  const LaneAnchors<kHeadTiles> anchors(step, unit);
  constexpr int kHeads = kHeadTiles * kTileHeads;
  SpanCluster<kHeads> cluster(step, unit, blockIdx.x);
  __syncthreads();
  for (int span = blockIdx.x; span < unit.spans; span += gridDim.x) {
    const int64_t to = (int64_t{unit.number} * step.spans + span) * step.span_keys;
    bool head = false;
    uint32_t windows = 0;
    if (cluster.Rows() > 0) {
#pragma unroll
      for (int g = 0; g < kHeads; ++g) {
        if (g >= step.group) break;
        const PaperRanks& ranks = shared.ranks[g];
        head = head || cluster.bins[g] >= ranks.head_bin;
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          if (cluster.bins[g] != ranks.window_bin[w] ||
              !Sampled(span * step.span_slots + thread, ranks.window_stride[w]))
            continue;
          windows |= 1u << (2 * g + w);
          atomicAdd(shared.window_rows + 2 * g + w, static_cast<uint32_t>(cluster.Rows()));
        }
      }
    }
    const bool other = !head && windows != 0;
    uint64_t all;
    const uint64_t before =
        BlockScan(Counts(head ? 1 : 0, head ? cluster.Rows() : 0, other ? 1 : 0,
                         other ? cluster.Rows() : 0),
                  shared.scratch, &all);
    const int heads = CountOf<0>(all);
    const int head_rows = CountOf<1>(all);
    const int rows = head_rows + CountOf<3>(all);
    if (head || other) {
      const int e = head ? CountOf<0>(before) : heads + CountOf<2>(before);
      const int at = head ? CountOf<1>(before) : head_rows + CountOf<3>(before);
      cluster.List(shared, e, at, at);
      shared.windows[e] = windows;
    }
    __syncthreads();
    ListRows(step, unit, span, heads + CountOf<2>(all), shared,
             [&](int e, const Listed& of, int i, int place) {
               chosen[of.at + i] = static_cast<uint32_t>(e << 16 | place);
             });
    __syncthreads();
    float* const logits = step.logits + to * step.group;
    ScoreTiles<Row>(
        step, unit, q, rows,
        [&](int i) { return span * step.span_keys + static_cast<int>(chosen[i] & 0xffffu); },
        [&](int tile, const float(&s)[kHeadTiles][4]) {
          ForEachLogit(step, head_rows, tile, s, [&](int i, int n, int h, float logit) {
            logits[i * step.group + LaneHead(n, h)] = logit;
          });
          AddMasses(step, unit, shared, anchors, chosen, rows, heads, tile, s);
        });
    cluster = SpanCluster<kHeads>(step, unit, span + gridDim.x);
  }
  __syncthreads();
  if (thread < step.group * 2 && shared.window_rows[thread] != 0) {
    auto* const to = &step.windows[2 * heads_before + thread].rows;
    atomicAdd(reinterpret_cast<unsigned long long*>(to),
              static_cast<unsigned long long>(shared.window_rows[thread]));
  }
  if (!EndsLast(step, unit, gridDim.x, &shared.flag)) return;
  for (int g = warp; g < step.group; g += kBlockWarps)
    FindCut(step, unit, g, chosen + warp * kBins);
}

template <class Row, int kDim, int kHeadTiles>
__global__ void __launch_bounds__(kBlockThreads, BlocksFor(kDim, kHeadTiles, 3))
    CutKernel(const __grid_constant__ Step step) {
  extern __shared__ uint32_t chosen[];  // of rows beyond heads, likewise
  __shared__ PaperShared shared;
  const int thread = threadIdx.x;
  const int warp = thread >> 5;
  const Unit unit = ReadUnit(step, blockIdx.y);
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<Row::kIsBF16>(step, unit, q);
  WaitForPrevious();
  LetNextBegin();
  if (IsDense(step, unit)) return;
  if (thread < step.group)
    shared.ranks[thread] = step.ranks[int64_t{unit.number} * step.group + thread];
  const LaneAnchors<kHeadTiles> anchors(step, unit);
  constexpr int kHeads = kHeadTiles * kTileHeads;
  SpanCluster<kHeads> cluster(step, unit, blockIdx.x);
  __syncthreads();
  for (int span = blockIdx.x; span < unit.spans; span += gridDim.x) {
    const int64_t base = int64_t{unit.number} * step.spans + span;
    const int64_t to = base * step.span_keys;
    bool wanted = false;
    bool head = false;
    if (cluster.Rows() > 0) {
#pragma unroll
      for (int g = 0; g < kHeads; ++g) {
        if (g >= step.group) break;
        wanted = wanted || cluster.bins[g] >= shared.ranks[g].cut_bin;
        head = head || cluster.bins[g] >= shared.ranks[g].head_bin;
      }
    }
    const bool fresh = wanted && !head;
    uint64_t all;
    const uint64_t before =
        BlockScan(Counts(wanted ? 1 : 0, wanted ? cluster.Rows() : 0, head ? cluster.Rows() : 0,
                         fresh ? cluster.Rows() : 0),
                  shared.scratch, &all);
    const int head_rows = CountOf<2>(all);
    const int fresh_rows = CountOf<3>(all);
    if (wanted) {
      cluster.List(shared, CountOf<0>(before), CountOf<1>(before),
                   head ? CountOf<2>(before) : head_rows + CountOf<3>(before));
    }
    __syncthreads();
    ListRows(step, unit, span, CountOf<0>(all), shared,
             [&](int e, const Listed& of, int i, int place) {
               step.rows[to + of.at + i] = ListedRow(of.slot + i, place);
               if (of.slot >= head_rows)
                 chosen[of.slot - head_rows + i] = static_cast<uint32_t>(e << 16 | place);
             });
    __syncthreads();
    float mass[kHeadTiles][2] = {};
    ScoreRows<Row>(
        step, unit, q, fresh_rows, step.logits + (to + head_rows) * step.group,
        [&](int i) { return span * step.span_keys + static_cast<int>(chosen[i] & 0xffffu); },
        [&](int i, int n, int h, float logit) {
          const int head_number = LaneHead(n, h);
          if (shared.bins[chosen[i] >> 16][head_number] >= shared.ranks[head_number].cut_bin)
            mass[n][h] += Exp2(logit - anchors.of[n][h]);
        });
    SumHeads(mass, step.group, shared.by_warp, step.exact + base * step.group);
    if (thread == 0) step.counts[base] = CountOf<1>(all);
    cluster = SpanCluster<kHeads>(step, unit, span + gridDim.x);
  }
  if (!EndsLast(step, unit, gridDim.x, &shared.flag)) return;
  if (thread < 32) CountTiles(step, unit, false);
  for (int g = kBlockWarps - 1 - warp; g < step.group; g += kBlockWarps)
    FindOwnMass(step, unit, g);
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
