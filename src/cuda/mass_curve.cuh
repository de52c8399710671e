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

// What was sampled for a window of a head; its loads are under way until it is asked for.
struct Window {
  unsigned long long units;
  unsigned long long rows;
  float of_bin;

  __device__ __forceinline__ Window(const Step& step, int64_t head, int w, int bin) {
    const WindowSum* of = step.windows + 2 * head + w;
    units = __ldcg(reinterpret_cast<const unsigned long long*>(&of->units));
    rows = __ldcg(reinterpret_cast<const unsigned long long*>(&of->rows));
    of_bin = Exp2(LogitOfBin(bin));
  }
  // The mean of y; where nothing was sampled, what the bin says.
  __device__ __forceinline__ float Mean() const {
    if (rows == 0) return of_bin;
    return static_cast<float>(units) * kMassUnit / static_cast<float>(rows) * of_bin;
  }
};

// Of `heads` query heads from number `head` on: bins, and masses of the keys of heads' clusters by
// bins, [heads][kBins] each. All threads; needs a barrier after it.
__device__ __forceinline__ void BringHeads(const Step& step, int64_t head, int heads,
                                           uint32_t* bins, float* masses) {
  // All threads have four bins of a head each, and some heads are under way at once.
  static_assert(kBins == 4 * kBlockThreads);
  constexpr int kAtOnce = 4;
  const int four = threadIdx.x;
  const auto* counts = reinterpret_cast<const uint4*>(step.cluster_bins + head * kBins);
  const auto* units = reinterpret_cast<const ulonglong2*>(step.bin_masses + head * kBins);
  for (int first = 0; first < heads; first += kAtOnce) {
    uint4 count[kAtOnce];
    ulonglong2 pairs[kAtOnce][2];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = min(first + i, heads - 1) * kBlockThreads + four;
      count[i] = __ldcg(counts + at);
      pairs[i][0] = __ldcg(units + 2 * at);
      pairs[i][1] = __ldcg(units + 2 * at + 1);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i >= heads) break;
      const int at = (first + i) * kBlockThreads + four;
      const auto mass = [&](unsigned long long of, int k) {
        return static_cast<float>(of) * kMassUnit * Exp2(LogitOfBin(4 * four + k));
      };
      reinterpret_cast<uint4*>(bins)[at] = count[i];
      reinterpret_cast<float4*>(masses)[at] = {mass(pairs[i][0].x, 0), mass(pairs[i][0].y, 1),
                                               mass(pairs[i][1].x, 2), mass(pairs[i][1].y, 3)};
    }
  }
}

// Fits the curve of head g, whose bins and their masses these are, and finds where its own
// selection ends. One warp.
__device__ inline void FindCut(const Step& step, const Unit& unit, int g, const uint32_t* bins,
                               const float* masses) {
  const int lane = threadIdx.x & 31;
  const int64_t at = int64_t{unit.number} * step.group + g;
  const StridedSum forced(
      step.part_forced + int64_t{unit.number} * step.rank_parts * step.group + g, step.rank_parts,
      step.group);
  PaperRanks ranks = step.ranks[at];
  const Window near_window(step, at, 0, ranks.window_bin[0]);
  const Window far_window(step, at, 1, ranks.window_bin[1]);
  ranks.own_rows = ranks.all_rows;
  ranks.cut_bin = 0;
  const float fixed = forced.Get();
  if (ranks.window_stride[0] > 0) {  // else rank found nothing to fit
    const auto mass = [&](int bin, int) { return bin < ranks.head_bin ? 0.0f : masses[bin]; };
    const BinSums<float> chunks = SumBins<float>(bins, mass);
    const float head = fixed + chunks.Total();
    const auto h = static_cast<float>(max(1, ranks.head_rows));
    const auto n = static_cast<float>(ranks.all_rows);
    const float near = near_window.Mean();
    const float far = far_window.Mean();
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
    const auto curve = [&](float x) { return head + a * __logf(x / h) + b * (x - h); };
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
      const auto place = FindBin<int>(bins, chunks.OfRows(), static_cast<int>(high),
                                      [](int, int count) { return count; });
      ranks.cut_bin = max(0, place.bin);
      ranks.own_rows = place.rows;
    }
  }
  float own = 0;
#pragma unroll 8
  for (int i = lane; i < kBins; i += 32) own += i >= ranks.cut_bin ? masses[i] : 0.0f;
  ranks.own_mass = fixed + WarpSum(own);
  if (lane == 0) step.ranks[at] = ranks;
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_MASS_CURVE_CUH_
