// What is known of a query head in mode tactic, and how far down its keys are read: threshold.h and
// oracle_tactic.h, on bins of levels. One warp for a head.
#ifndef TACTIC_SRC_CUDA_HEADS_CUH_
#define TACTIC_SRC_CUDA_HEADS_CUH_

#include "src/cuda/step.cuh"

namespace tactic::cuda {

inline constexpr int kNoKey = kLastLevel + 1;  // a threshold that no key reaches
// A selection that believes, after its last round, to hold less than the target by more than this
// is no selection (threshold.h).
inline constexpr float kLargestShortfall = 0.1f;

struct HeadMass {
  float fixed;      // of the forced rows, exact
  float skipped;    // estimated, of skipped clusters
  float total;      // estimated, of all scanned keys
  float exact;      // of forced rows and own ones
  float estimated;  // of own rows, what the codes said
  int rows;         // own, without the forced ones

  __device__ __forceinline__ float Believed() const {
    return exact / (exact + fmaxf(0.0f, total - estimated) + skipped);
  }
};

// Mass and number of the keys in the lane's share of the bins: 64 of them, from the highest down,
// those of bin `from` and above.
struct LaneBins {
  float mass = 0;
  int rows = 0;
};
inline constexpr int kBinsPerLane = kBins / 32;

__device__ __forceinline__ LaneBins ReadLaneBins(const uint32_t* bins, int lane, int from) {
  LaneBins sum;
  const int first = kBins - (lane + 1) * kBinsPerLane;
#pragma unroll 4
  for (int i = kBinsPerLane - 4; i >= 0; i -= 4) {
    const uint4 four = __ldcg(reinterpret_cast<const uint4*>(bins + first + i));
#pragma unroll
    for (int j = 3; j >= 0; --j) {
      const int bin = first + i + j;
      const auto count = static_cast<int>(Word(four, j));
      if (bin < from) continue;
      sum.mass += static_cast<float>(count) * Exp2(LogitOfBin(bin));
      sum.rows += count;
    }
  }
  return sum;
}

// The highest bin from which on the bins hold `need`: 0 where they do not. `all`: ReadLaneBins from
// bin 0.
__device__ __forceinline__ int FindBin(const uint32_t* bins, float need, const LaneBins& all,
                                       int lane) {
  const float through = WarpScan(all.mass, lane);
  const unsigned reached = __ballot_sync(kAllLanes, through >= need);
  if (reached == 0) return 0;
  const int owner = __ffs(static_cast<int>(reached)) - 1;
  float before = __shfl_sync(kAllLanes, through - all.mass, owner);
  int top = kBins - owner * kBinsPerLane;  // bins from here up hold `before`
  // Two steps of 32 bins.
  for (int step = 0; step < kBinsPerLane / 32; ++step) {
    const int bin = top - 1 - lane;
    const float mass = static_cast<float>(__ldcg(bins + bin)) * Exp2(LogitOfBin(bin));
    const float so_far = before + WarpScan(mass, lane);
    const unsigned here = __ballot_sync(kAllLanes, so_far >= need);
    if (here != 0) return top - __ffs(static_cast<int>(here));
    before = __shfl_sync(kAllLanes, so_far, 31);
    top -= 32;
  }
  return top;  // rounding: the share's sum said that it is reached
}

__device__ __forceinline__ float Cautious(const Step& step, const HeadMass& m, float estimated) {
  return step.unread_margin * fmaxf(0.0f, m.total - estimated) + step.skipped_margin * m.skipped;
}

// The estimated mass x to be read on top of m.exact: S + ratio x = P (S + ratio x + unread -
// margin x).
__device__ __forceinline__ float MassToAdd(const Step& step, const HeadMass& m, float unread,
                                           float ratio) {
  const float p = step.target;
  return (p * (m.exact + unread) - m.exact) / (ratio * (1 - p) + p * step.unread_margin);
}

// What is known of head g after `rounds` rounds were read; `all` becomes its bins.
__device__ __forceinline__ HeadMass MassAfter(const Step& step, const Unit& unit, int g, int rounds,
                                              LaneBins* all) {
  const int lane = threadIdx.x & 31;
  const int64_t head = int64_t{unit.number} * step.group + g;
  const uint32_t* bins = step.key_bins + head * kBins;
  const int64_t by_segment = int64_t{unit.number} * step.segments * step.group + g;
  const int64_t round_stride = int64_t{step.batch} * step.kv_heads * step.segments * step.group;
  HeadMass m;
  m.fixed = SumOver(step.part_forced + int64_t{unit.number} * step.parts * step.group + g,
                    step.parts, step.group);
  m.skipped = SumOver(step.skipped + by_segment, unit.segments, step.group);
  *all = ReadLaneBins(bins, lane, 0);
  m.total = WarpSum(all->mass);
  m.exact = m.fixed;
  m.estimated = 0;
  m.rows = 0;
  int threshold = kNoKey;
  const int64_t heads = int64_t{step.batch} * step.kv_heads * step.group;
  for (int round = 0; round < rounds; ++round) {
    const int now = __ldcg(step.thresholds + round * heads + head);
    if (now == threshold) continue;  // nothing was read
    m.exact += SumOver(step.exact + round * round_stride + by_segment, unit.segments, step.group);
    threshold = now;
  }
  if (threshold != kNoKey) {
    const LaneBins own = ReadLaneBins(bins, lane, threshold / kLevelsPerBin);
    m.estimated = WarpSum(own.mass);
    m.rows = WarpSum(own.rows);
  }
  return m;
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_HEADS_CUH_
