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

// Tiles that blocks share evenly, no more blocks than tiles: the first blocks have one more each.
class EvenShares {
 public:
  __device__ __forceinline__ EvenShares(int all, int blocks)
      : each_(all / blocks), longer_(all - each_ * blocks) {}
  // The first tile of block `block`.
  __device__ __forceinline__ int Begin(int block) const {
    return block * each_ + min(block, longer_);
  }
  __device__ __forceinline__ int BlockOf(int tile) const {
    const int by_longer = tile / (each_ + 1);
    return by_longer < longer_ ? by_longer : longer_ + (tile - longer_ * (each_ + 1)) / each_;
  }

 private:
  int each_;
  int longer_;
};

// Calls work(share) for the units of which this block has tiles, one after the other, where
// before[u] of `all` are what the units ahead of u cost, in tiles, and `blocks` of the grid have
// work. To begin with a unit costs `lead` tiles.
template <class Work>
__device__ void ForEachShare(const int* before, int units, int lead, int all, int blocks,
                             const Work& work) {
  if (static_cast<int>(blockIdx.x) >= blocks) return;
  const EvenShares shares(all, blocks);
  const int begin = shares.Begin(blockIdx.x);
  const int stop = shares.Begin(blockIdx.x + 1);
  for (int u = LastBefore(before, units, begin); u < units && before[u] + lead < stop; ++u) {
    const int first = before[u] + lead;
    const int next = before[u + 1];
    const int at = max(begin, first);
    if (next <= at) continue;  // a unit without tiles, or the last of one before
    const int first_block = shares.BlockOf(first);
    work(UnitShare{u, at - first, min(stop, next) - first, first_block,
                   shares.BlockOf(next - 1) - first_block + 1});
  }
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_TILE_SHARE_CUH_
