// What the last block of stage rank finds for the next: which clusters a head needs, or, in mode
// paper, where its head and windows are.
#ifndef TACTIC_SRC_CUDA_RANK_PLAN_CUH_
#define TACTIC_SRC_CUDA_RANK_PLAN_CUH_

#include "src/cuda/bins.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {

// From how much estimated mass on a cluster is kept: the smallest are skipped while, taken at the
// upper end of their bins, they add up to no more than the budget. One warp.
__device__ inline void FindFilter(const Step& step, const Unit& unit, int g) {
  const int lane = threadIdx.x & 31;
  const int64_t parts = int64_t{unit.number} * step.rank_parts * step.group + g;
  const float at_least = SumOver(step.part_forced + parts, step.rank_parts, step.group) +
                         SumOver(step.part_floors + parts, step.rank_parts, step.group);
  const float rest = (1 - step.target) * at_least;
  constexpr int kPerLane = kMassBins / 32;
  const int64_t head = int64_t{unit.number} * step.group + g;
  const uint32_t* bins = step.cluster_bins + head * kBins + lane * kPerLane;
  float masses[kPerLane];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    sum += static_cast<float>(__ldcg(bins + i)) * Exp2(LogitAboveMassBin(lane * kPerLane + i));
    masses[i] = sum;
  }
  const float before = WarpScan(sum, lane) - sum;
  int skipped = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) skipped += before + masses[i] <= step.skip_share * rest;
  skipped = WarpSum(skipped);
  if (lane != 0) return;
  step.filters[head] = {skipped > 0 ? LogitAboveMassBin(skipped - 1) : -2 * kBelowAnchor,
                        log2f(step.skip_token * rest)};
}

// A curve needs so many ranks; below, everything is read.
inline constexpr int kLeastRanks = 32;
inline constexpr int kLeastWindow = 8;
// At 1M tokens, four times as many raise the share of heads that reach P from 54 to 55 %, and the
// rows that are selected from 14,000 to 31,000.
inline constexpr int kMostOfWindow = 256;

// Mode paper: head and windows of query head g. True: a cluster's logit has no place in the bins.
// `bins`: room for them. One warp.
__device__ inline bool FindRanks(const Step& step, const Unit& unit, int g, uint32_t* bins) {
  const int lane = threadIdx.x & 31;
  const int64_t at = int64_t{unit.number} * step.group + g;
  CopyBins(step.cluster_bins + at * kBins, bins);
  const auto count = [](int, int in_bin) { return in_bin; };
  const BinSums<int> chunks = SumBins<int>(bins, count);
  const int all = chunks.Total();
  PaperRanks ranks = {};  // bin 0: the head is everything
  ranks.head_rows = all;
  if (all >= kLeastRanks && step.target < 1) {
    const int head = max(1, static_cast<int>(ceilf(step.head_share * static_cast<float>(all))));
    const auto place = FindBin<int>(bins, chunks, head, count);
    // The lowest bin has all that is negligible, however much of a sharp head's ranks that is.
    const auto lowest = static_cast<int>(bins[0]);
    ranks.head_bin = max(1, place.bin);
    ranks.head_rows = place.bin > 0 ? place.rows : all - lowest;
    const int share = static_cast<int>(step.window_share * all);
    const int width = min(max(kLeastWindow, share), kMostOfWindow);
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      const float share = w == 0 ? step.near_window : step.far_window;
      const auto window = FindBin<int>(bins, chunks, max(1, static_cast<int>(share * all)), count);
      ranks.window_bin[w] = window.bin;
      ranks.window_stride[w] = max(1, window.in_bin / width);
      ranks.window_rank[w] = window.rows - 0.5f * window.in_bin;
    }
  }
  ranks.all_rows = all;
  if (lane == 0) step.ranks[at] = ranks;
  return bins[kBins - 1] != 0;
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_RANK_PLAN_CUH_
