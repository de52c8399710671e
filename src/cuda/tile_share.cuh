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

// A count for every span of a unit, as AddUp() asks for them: thread t for number t first. Those
// are on their way before anybody knows what the unit is.
class SpanCount {
 public:
  // `all`: [unit][span], or null where nobody will ask.
  __device__ __forceinline__ SpanCount(const Step& step, const int32_t* all, int unit)
      : of_(all + int64_t{unit} * step.spans),
        first_(all != nullptr && static_cast<int>(threadIdx.x) < step.spans
                   ? __ldcg(of_ + threadIdx.x)
                   : 0) {}
  __device__ __forceinline__ int operator[](int span) const {
    return span < kBlockThreads ? first_ : __ldcg(of_ + span);
  }

 private:
  const int32_t* of_;
  int first_;
};

// Two counts in one number, which are added up at once.
using TwoCounts = uint64_t;
__device__ __forceinline__ TwoCounts Two(int first, int second) {
  return static_cast<uint64_t>(static_cast<uint32_t>(second)) << 32 | static_cast<uint32_t>(first);
}
__device__ __forceinline__ int First(TwoCounts two) { return static_cast<int>(two & 0xffffffffu); }
__device__ __forceinline__ int Second(TwoCounts two) { return static_cast<int>(two >> 32); }

// AddUp() of two counts, the second from 0 on.
template <class Count>
__device__ void AddUpTwo(int n, int first, int* before, int* before_second, TwoCounts* scratch,
                         const Count& count) {
  TwoCounts all = Two(first, 0);
  for (int j0 = 0; j0 <= n; j0 += kBlockThreads) {
    const int j = j0 + static_cast<int>(threadIdx.x);
    TwoCounts sum;
    const TwoCounts place = all + BlockScan(j < n ? count(j) : TwoCounts{0}, scratch, &sum);
    if (j <= n) {
      before[j] = First(place);
      before_second[j] = Second(place);
    }
    all += sum;
  }
  __syncthreads();
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
};

// The blocks that have tiles of a unit.
struct BlockRange {
  int first;
  int count;
};

// The tiles of all units, which `blocks` of the grid share evenly, no more blocks than tiles.
// Shares that are longer by one lie among the others: units of the same length end where blocks do,
// if there are as many blocks for each.
struct TileShares {
  const int* before;  // [units + 1]: what is ahead of each unit, in tiles; last: all
  int units;
  int lead;  // what it costs to begin with a unit
  int blocks;

  // The first tile of a block: block * all / blocks.
  __device__ __forceinline__ int Begin(int block) const {
    const int all = before[units];
    const int each = all / blocks;
    return block * each + block * (all - each * blocks) / blocks;
  }
  // The last block that begins at or before a tile. Floats miss it by one at most, with as many
  // blocks as a grid of attend has; to divide exactly takes 64 bits, or calls a function.
  __device__ __forceinline__ int BlockOf(int tile) const {
    const float share = __fdividef(static_cast<float>(blocks), static_cast<float>(before[units]));
    const auto block = static_cast<int>(static_cast<float>(tile) * share);
    return block - (Begin(block) > tile) + (Begin(block + 1) <= tile);
  }
  // Asked for when the tiles are done, and not worked out before.
  __device__ __forceinline__ BlockRange BlocksOf(int unit) const {
    const TileShares here = {before, OnlyHere(units), lead, OnlyHere(blocks)};
    unit = OnlyHere(unit);
    const int first = here.BlockOf(before[unit] + lead);
    return {first, here.BlockOf(before[unit + 1] - 1) - first + 1};
  }
};

// Calls work(share) for the units of which this block has tiles, one after the other.
template <class Work>
__device__ void ForEachShare(const TileShares& shares, const Work& work) {
  if (static_cast<int>(blockIdx.x) >= shares.blocks) return;
  const int* before = shares.before;
  const int begin = shares.Begin(blockIdx.x);
  const int stop = shares.Begin(blockIdx.x + 1);
  for (int u = LastBefore(before, shares.units, begin);
       u < shares.units && before[u] + shares.lead < stop; ++u) {
    const int first = before[u] + shares.lead;
    const int next = before[u + 1];
    const int at = max(begin, first);
    if (next <= at) continue;  // a unit without tiles, or the last of one before
    work(UnitShare{u, at - first, min(stop, next) - first});
  }
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_TILE_SHARE_CUH_
