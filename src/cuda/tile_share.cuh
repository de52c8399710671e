// How the blocks of a stage share what all units have to do: units differ by orders of magnitude,
// and within a unit what a query looks for crowds in few spans. So all tiles of all units are one
// sequence, of which every block has an even share.
#ifndef TACTIC_SRC_CUDA_TILE_SHARE_CUH_
#define TACTIC_SRC_CUDA_TILE_SHARE_CUH_

#include "src/cuda/step.cuh"

namespace tactic::cuda {

// Adds up count(j) for j in [0, n), from `first` on: before[j], and before[n]. All threads.
template <class Count>
__device__ int AddUp(int n, int first, int* before, int* scratch, const Count& count) {
  int all = first;
  for (int j0 = 0; j0 < n; j0 += kBlockThreads) {
    const int j = j0 + static_cast<int>(threadIdx.x);
    int sum;
    const int place = BlockScan(j < n ? count(j) : 0, scratch, &sum);
    if (j < n) before[j] = all + place;
    all += sum;
  }
  if (threadIdx.x == 0) before[n] = all;
  __syncthreads();
  return all;
}

// The last j in [0, n) with before[j] <= i, as before[0] is.
__device__ __forceinline__ int LastBefore(const int* before, int n, int i) {
  int low = 0;
  int high = n;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (before[middle] <= i)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// The same from `from` on, as before[from] is, where i is often within it.
__device__ __forceinline__ int NextBefore(const int* before, int n, int from, int i) {
  if (i < before[from + 1]) return from;
  return from + 1 + LastBefore(before + from + 1, n - from - 1, i);
}

// What a unit's spans list, as one sequence.
struct SpanLists {
  const int* before;  // [spans + 1]: what is ahead of each span's; last: all
  int spans;
  int total;
};

// Of a unit that some of the blocks share: tiles [begin, end) are this block's.
struct UnitShare {
  int unit;
  int begin;
  int end;
  int first_block;  // of `blocks` that have tiles of it
  int blocks;
};

// Calls work(share) for the units of which this block has tiles, one after the other, where
// before[u] of `all` are what the units ahead of u cost, in tiles, and `blocks` of the grid have
// work. To begin with a unit costs `lead` tiles.
template <class Work>
__device__ void ForEachShare(const int* before, int units, int lead, int64_t all, int64_t blocks,
                             const Work& work) {
  if (blockIdx.x >= blocks) return;
  // Tile x is block ((x + 1) * blocks - 1) / all's.
  const auto block_of = [&](int64_t tile) {
    return static_cast<int>(((tile + 1) * blocks - 1) / all);
  };
  const int begin = static_cast<int>(all * blockIdx.x / blocks);
  const int stop = static_cast<int>(all * (blockIdx.x + 1) / blocks);
  for (int u = LastBefore(before, units, begin); u < units && before[u] + lead < stop; ++u) {
    const int first = before[u] + lead;
    const int next = before[u + 1];
    const int at = max(begin, first);
    if (next <= at) continue;  // a unit without tiles, or the last of one before
    const int first_block = block_of(first);
    work(UnitShare{u, at - first, min(stop, next) - first, first_block,
                   block_of(next - 1) - first_block + 1});
  }
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_TILE_SHARE_CUH_
