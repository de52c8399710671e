// Mode paper: the curve that is fitted to a query head's masses, and where it reaches the target
// (section 4.4 of the paper).
#ifndef TACTIC_SRC_CUDA_MASS_CURVE_CUH_
#define TACTIC_SRC_CUDA_MASS_CURVE_CUH_

#include "src/cuda/bins.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {

// Masses of bins are integers, so that their sums do not depend on the order: in units of 2^-20 of
// the mass of a key whose logit is the bin's.
inline constexpr float kMassUnit = 0x1p-20f;
inline constexpr float kLargestMass = 0x1p40f;

// The mean of y over a window; where nothing was sampled, what the bin says.
__device__ inline float WindowMean(const Step& step, const Unit& unit, int g, int w, int bin) {
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
__device__ inline void FindCut(const Step& step, const Unit& unit, int g, uint32_t* bins) {
  const int lane = threadIdx.x & 31;
  const int64_t at = int64_t{unit.number} * step.group + g;
  PaperRanks ranks = step.ranks[at];
  ranks.own_rows = ranks.all_rows;
  ranks.cut_bin = 0;
  const float fixed =
      SumOver(step.part_forced + int64_t{unit.number} * step.rank_parts * step.group + g,
              step.rank_parts, step.group);
  if (ranks.window_stride[0] > 0) {  // else rank found nothing to fit
    CopyBins(step.cluster_bins + at * kBins, bins);
    float* masses = reinterpret_cast<float*>(bins + PlanningWarps(step.group) * kBins);
    const int lowest = ranks.head_bin / 32 * 32;
#pragma unroll 4
    for (int i = lowest + lane; i < kBins; i += 32) masses[i] = BinMass(step, at, i);
    __syncwarp();
    const auto mass = [&](int bin, int) { return bin < ranks.head_bin ? 0.0f : masses[bin]; };
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
  float own = 0;
#pragma unroll 8
  for (int i = ranks.cut_bin + lane; i < kBins; i += 32) own += BinMass(step, at, i);
  ranks.own_mass = fixed + WarpSum(own);
  if (lane == 0) step.ranks[at] = ranks;
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_MASS_CURVE_CUH_
