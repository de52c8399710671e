// Bins of levels, added up and searched by one warp from the highest down. They are in shared
// memory: CopyBins brings them there, or mass_curve.cuh.
#ifndef TACTIC_SRC_CUDA_BINS_CUH_
#define TACTIC_SRC_CUDA_BINS_CUH_

#include <type_traits>

#include "src/cuda/step.cuh"

namespace tactic::cuda {

// Bins are read in chunks of 128, four neighbours to a lane: those of lane l in chunk c end 128 c +
// 4 l below the highest.
inline constexpr int kChunkBins = 128;
inline constexpr int kChunks = kBins / kChunkBins;
static_assert(kChunks <= 32);
__device__ __forceinline__ int LowestOfLane(int chunk, int lane) {
  return kBins - kChunkBins * chunk - 4 * lane - 4;
}
__device__ __forceinline__ uint4 ReadBins(const uint32_t* bins, int lowest) {
  return *reinterpret_cast<const uint4*>(bins + lowest);
}

// Warps of a block that plan for a group of so many heads, each with room for a head's bins.
__host__ __device__ constexpr int PlanningWarps(int group) {
  return group < kBlockWarps ? group : kBlockWarps;
}

// One head's bins from device memory. One warp.
__device__ __forceinline__ void CopyBins(const uint32_t* from, uint32_t* to) {
  const int lane = threadIdx.x & 31;
  uint4 all[kChunks];
#pragma unroll
  for (int c = 0; c < kChunks; ++c)
    all[c] = __ldcg(reinterpret_cast<const uint4*>(from) + 32 * c + lane);
  __syncwarp();  // no lane still reads the bins of the warp's last head
#pragma unroll
  for (int c = 0; c < kChunks; ++c) reinterpret_cast<uint4*>(to)[32 * c + lane] = all[c];
  __syncwarp();
}

// What chunk `lane` holds, value(bin, count) and counts, added up; and both with all chunks above.
template <class T>
struct BinSums {
  T sum = 0;
  int rows = 0;
  T down_to = 0;
  int rows_down_to = 0;

  __device__ __forceinline__ T Total() const { return __shfl_sync(kAllLanes, down_to, 31); }
  __device__ __forceinline__ BinSums<int> OfRows() const {
    return {rows, rows, rows_down_to, rows_down_to};
  }
};
// Integers are sums of counts, which need not be added up twice.
template <class T>
inline constexpr bool kAreCounts = std::is_same_v<T, int>;

template <class T, class Value>
__device__ __forceinline__ BinSums<T> SumBins(const uint32_t* bins, const Value& value) {
  const int lane = threadIdx.x & 31;
  T sums[kChunks];
  int rows[kChunks];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int lowest = LowestOfLane(c, lane);
    const uint4 counts = ReadBins(bins, lowest);
    sums[c] = 0;
    rows[c] = 0;
#pragma unroll
    for (int j = 3; j >= 0; --j) {
      const auto count = static_cast<int>(Word(counts, j));
      sums[c] += value(lowest + j, count);
      rows[c] += count;
    }
  }
  BinSums<T> mine;
  mine.sum = WarpSums(sums);
  if (lane >= kChunks) mine.sum = 0;
  mine.down_to = WarpScan(mine.sum, lane);
  if constexpr (kAreCounts<T>) {
    mine.rows = mine.sum;
    mine.rows_down_to = mine.down_to;
  } else {
    mine.rows = WarpSums(rows);
    if (lane >= kChunks) mine.rows = 0;
    mine.rows_down_to = WarpScan(mine.rows, lane);
  }
  return mine;
}

// The highest bin down to which the bins hold `need`; -1: they hold less.
template <class T>
struct BinPlace {
  int bin;
  T through;   // the sum down to it, or of all
  int rows;    // counts down to it, or of all
  int in_bin;  // its count
};
template <class T, class Value>
__device__ __forceinline__ BinPlace<T> FindBin(const uint32_t* bins, const BinSums<T>& chunks,
                                               T need, const Value& value) {
  const int lane = threadIdx.x & 31;
  const unsigned holds = __ballot_sync(kAllLanes, lane < kChunks && chunks.down_to >= need);
  if (holds == 0) return {-1, chunks.Total(), chunks.OfRows().Total(), 0};
  const int chunk = __ffs(static_cast<int>(holds)) - 1;
  const T above = __shfl_sync(kAllLanes, chunks.down_to - chunks.sum, chunk);
  const int rows_above = __shfl_sync(kAllLanes, chunks.rows_down_to - chunks.rows, chunk);
  const int lowest = LowestOfLane(chunk, lane);
  const uint4 counts = ReadBins(bins, lowest);
  T sums[4];  // from the highest of the four down
  int rows[4];
  T sum = 0;
  int count = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const auto here = static_cast<int>(Word(counts, 3 - j));
    sum += value(lowest + 3 - j, here);
    count += here;
    sums[j] = sum;
    rows[j] = count;
  }
  const T before = above + WarpScan(sum, lane) - sum;
  const int rows_before =
      kAreCounts<T> ? static_cast<int>(before) : rows_above + WarpScan(count, lane) - count;
  const unsigned here = __ballot_sync(kAllLanes, before + sum >= need);
  // Rounding may leave the chunk's sum, added up in another order, just below: then its last bin.
  const int owner = here == 0 ? 31 : __ffs(static_cast<int>(here)) - 1;
  int at = 3;
#pragma unroll
  for (int j = 2; j >= 0; --j) at = before + sums[j] >= need ? j : at;
  T through = before;
  int rows_through = rows_before;
  int in_bin = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (j != at) continue;
    through = before + sums[j];
    rows_through = rows_before + rows[j];
    in_bin = static_cast<int>(Word(counts, 3 - j));
  }
  return {__shfl_sync(kAllLanes, lowest + 3 - at, owner), __shfl_sync(kAllLanes, through, owner),
          __shfl_sync(kAllLanes, rows_through, owner), __shfl_sync(kAllLanes, in_bin, owner)};
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_BINS_CUH_
