// How far down a query head's keys are read in mode tactic: threshold.h and oracle_tactic.h, on
// bins of levels. One warp for a head; all of a unit's in the block that ends a stage last.
#ifndef TACTIC_SRC_CUDA_HEADS_CUH_
#define TACTIC_SRC_CUDA_HEADS_CUH_

#include "src/cuda/bins.cuh"
#include "src/cuda/step.cuh"
#include "src/selection_rule.h"

namespace tactic::cuda {

inline constexpr int kNoKey = kLastLevel + 1;  // a threshold that no key reaches

// Estimated mass of the keys that were not read.
__device__ __forceinline__ float UnreadKeys(const HeadMass& m) {
  return fmaxf(kResolution * m.total, m.total - m.estimated);
}

__device__ __forceinline__ float Believed(const HeadMass& m) {
  return m.exact / (m.exact + UnreadKeys(m) + m.skipped);
}

__device__ __forceinline__ float KeyMass(int bin, int count) {
  return static_cast<float>(count) * Exp2(LogitOfBin(bin));
}

// What may not have been read, with margins.
__device__ __forceinline__ float UnreadAtMost(const Step& step, const HeadMass& m) {
  return step.unread_margin * UnreadKeys(m) + step.skipped_margin * m.skipped;
}
// Whether the head has to read more, as it has where masses are NaN, and can.
__device__ __forceinline__ bool FallsShort(const Step& step, const HeadMass& m) {
  return !(m.exact >= step.target * (m.exact + UnreadAtMost(step, m))) && m.low != 0;
}

// Lowers m.low to where the head, which falls short, has read enough, by what is known. `ratio`:
// what keys keep of what their codes promise.
__device__ __forceinline__ void PlanHead(const Step& step, const uint32_t* bins,
                                         const BinSums<float>& chunks, float ratio, HeadMass& m) {
  const float unread = UnreadAtMost(step, m);
  const float p = step.target;
  // x more, by estimate, is S + ratio x = P (S + ratio x + unread - margin x).
  const float more =
      (p * (m.exact + unread) - m.exact) / (ratio * (1 - p) + p * step.unread_margin);
  const auto place = FindBin<float>(bins, chunks, m.estimated + more, KeyMass);
  const int low = place.bin < 0 ? 0 : place.bin * kLevelsPerBin;
  if (low >= m.high) return;  // rounding: there is nothing in between
  m.low = low;
  m.estimated = place.through;
  m.rows = place.rows;
}

// What follows a stage: scan, or a round of verify. `after`: rounds that were read. All threads of
// the block; `flags`: two ints, `room`: PlanningWarps() * kBins words of shared memory.
__device__ __forceinline__ void PlanUnit(const Step& step, const Unit& unit, int after, int* flags,
                                         uint32_t* room) {
  const int lane = threadIdx.x & 31;
  int& dense = flags[0];
  int& reading = flags[1];
  if (threadIdx.x == 0) dense = reading = 0;
  __syncthreads();
  for (int g = threadIdx.x >> 5; g < step.group; g += kBlockWarps) {
    const int64_t head = int64_t{unit.number} * step.group + g;
    const int64_t by_segment = int64_t{unit.number} * step.segments * step.group + g;
    HeadMass m = {};
    if (after > 0) m = step.masses[head];
    const StridedSum fixed(
        step.part_forced + int64_t{unit.number} * step.rank_parts * step.group + g, step.rank_parts,
        step.group);
    const StridedSum skipped(step.skipped + by_segment, unit.segments, step.group);
    const StridedSum found(step.exact + int64_t{unit.number} * step.spans * step.group + g,
                           unit.spans, step.group);
    const StridedSum errors(unit.errors, unit.segments, 1);
    uint32_t* bins = room + (threadIdx.x >> 5) * kBins;
    if (after <= step.rounds) CopyBins(step.key_bins + head * kBins, bins);
    float ratio = 1;
    BinSums<float> chunks;
    if (after == 0) {
      chunks = SumBins<float>(bins, KeyMass);
      m.fixed = fixed.Get();
      m.skipped = skipped.Get();
      m.total = chunks.Total();
      m.exact = m.fixed;
      m.low = kNoKey;
      // A key whose level has no room: its mass is unknown.
      if (lane == 0 && bins[kBins - 1] != 0) atomicOr(&dense, 1);
      const float error = errors.Get() / unit.segments * step.queries[head].norm;
      ratio = Exp2(-kGpuCaution * kLog2e * error);
    } else {
      m.exact += found.Get();
      if (m.estimated > 0) ratio = fminf((m.exact - m.fixed) / m.estimated, 1.0f);
    }
    m.high = m.low;
    if (after <= step.rounds) {
      if (FallsShort(step, m)) {
        if (after > 0) chunks = SumBins<float>(bins, KeyMass);
        PlanHead(step, bins, chunks, fmaxf(ratio, kLeastRatio), m);
      }
      m.rounds += after > 0 && m.low < m.high;
      if (static_cast<float>(m.rows + unit.forced) > step.dense_share * unit.tokens)
        if (lane == 0) atomicOr(&dense, 1);
    }
    if (lane != 0) continue;
    if (m.low < m.high || after == 0) {
      atomicOr(&reading, 1);
    } else if (step.rounds > 0 && Believed(m) < step.target - kLargestShortfall) {
      atomicOr(&dense, 1);
    }
    step.masses[head] = m;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  if (lane == 0) step.reading[unit.number] = dense == 0 && reading != 0 ? 1 : 0;
  if (dense != 0 || after > 0) CountTiles(step, unit, dense != 0);
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_HEADS_CUH_
