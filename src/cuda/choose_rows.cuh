// Stage select (mode tactic): which scanned keys of a span are read, and the masses of the others.
#ifndef TACTIC_SRC_CUDA_CHOOSE_ROWS_CUH_
#define TACTIC_SRC_CUDA_CHOOSE_ROWS_CUH_

#include "src/cuda/scan_tile.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {

// One of two levels that are stored side by side.
__device__ __forceinline__ int LevelInPair(uint32_t pair, int which) {
  return static_cast<int>(pair >> which * 16 & 0xffffu);
}

// What of a key says whether it is read: its levels for all heads of the group, in pairs, and its
// scale.
template <int kHeads>
struct KeyFacts {
  uint32_t pairs[kHeads / 2];
  uint32_t scale;  // a byte float

  __device__ __forceinline__ void Load(const Step& step, const uint16_t* levels,
                                       const uint8_t* scales, uint32_t key) {
    const uint16_t* from = levels + key * step.level_stride;
    if (step.level_stride % 4 == 0) {
#pragma unroll
      for (int p = 0; p < kHeads / 2; p += 2) {
        uint2 two = {};
        if (2 * p < step.group) two = __ldcg(reinterpret_cast<const uint2*>(from + 2 * p));
        pairs[p] = two.x;
        pairs[p + 1] = two.y;
      }
    } else {
#pragma unroll
      for (int p = 0; p < kHeads / 2; ++p)
        pairs[p] = 2 * p < step.group ? __ldcg(reinterpret_cast<const uint32_t*>(from) + p) : 0;
    }
    scale = __ldg(scales + key);
  }
  __device__ __forceinline__ int Of(int g) const { return LevelInPair(pairs[g / 2], g % 2); }
};

// A level for each head.
struct Thresholds {
  alignas(16) int of[kMaxGroup];
  // Less one in pairs, as levels are; of 0, which everything reaches, `all` says so.
  alignas(16) uint32_t below[kMaxGroup / 2];
  int all;

  // Thread g sets head g's, for all kMaxGroup of them; `all` is 0 before it.
  __device__ __forceinline__ void Set(int g, int level) {
    of[g] = level;
    if (level == 0) all = 1;
    reinterpret_cast<uint16_t*>(below)[g] = static_cast<uint16_t>(max(level, 1) - 1);
  }
  // Whether any head's level is as high.
  template <int kHeads>
  __device__ __forceinline__ bool Reaches(const KeyFacts<kHeads>& facts) const {
    uint32_t above = static_cast<uint32_t>(all);
#pragma unroll
    for (int p = 0; p < kHeads / 2; ++p) above |= __vmaxu2(facts.pairs[p], below[p]) ^ below[p];
    return above != 0;
  }
};

struct VerifyShared {
  Unit unit;
  Thresholds low;   // keys from here up are read after this round
  Thresholds high;  // and from here up before
  alignas(16) float half[kMaxGroup];
  int flags[2];  // of PlanUnit
  int last;      // of EndsLast, which is still being read when PlanUnit begins
  int scratch[kBlockWarps];
  uint8_t touched[kMaxSlots];  // clusters of which this round reads something new
  float by_warp[kBlockWarps][kMaxGroup];
};

// Of two neighbouring tiles, the one that this half of a warp looks at, and a member for each lane.
struct HalfTile {
  int number;  // in the span; the upper half's may be beyond the last, which it then looks at
  ScanTile tile;
  bool there;  // the lane has a member of its own

  HalfTile() = default;
  __device__ __forceinline__ HalfTile(const ScanTile* tiles, int count, int first) {
    number = first + static_cast<int>(threadIdx.x >> 4 & 1);
    tile = tiles[min(number, count - 1)];
    there = number < count && Lane() < tile.Count();
  }
  static __device__ __forceinline__ int Lane() { return static_cast<int>(threadIdx.x & 15); }
  __device__ __forceinline__ int Key() const { return tile.Key(Lane()); }
};

// Scanned tiles of a span, and what is found of them.
struct SpanTiles {
  ScanTile* tiles;
  int count;
  uint16_t* fresh;  // bit i of tile t's: its member i is new
  float* masses;    // [tile][stride]: of members that are not read
  int stride;
  const uint16_t* levels;
  const uint8_t* scales;
};

// Leaves the masses of what is not read of two tiles. One warp.
template <int kHeads>
__device__ __forceinline__ void LeaveMasses(const Step& step, const VerifyShared& shared,
                                            const SpanTiles& span, const HalfTile& at,
                                            const KeyFacts<kHeads>& of, bool read) {
  const float scale = FromByteFloat(of.scale);
  float masses[kHeads];
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
    // Without v / 2, which corrects the mean of an exponential and not this sum.
    const float mass =
        Exp2(LogitOfLevel(of.Of(g)) - fminf(shared.half[g] * (scale * scale), kLargestHalf));
    masses[g] = at.there && !read ? mass : 0.0f;
  }
  const float mass = WarpSums<16>(masses);
  const int head = HalfTile::Lane();
  if (head < step.group && at.number < span.count)
    span.masses[at.number * span.stride + head] = mass;
}

// Which members are new, and, kMasses, the masses of what is not read. kHeads: the group, or more.
template <int kHeads, bool kMasses>
__device__ void ChooseRows(const Step& step, const VerifyShared& shared, const SpanTiles& span) {
  constexpr int kAhead = kHeads <= 4 ? 4 : 2;  // whose facts are under way at once
  constexpr int kApart = 2 * kBlockWarps;
  for (int first = 2 * static_cast<int>(threadIdx.x >> 5); first < span.count;
       first += kApart * kAhead) {
    HalfTile at[kAhead];
    KeyFacts<kHeads> facts[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      at[a] = HalfTile(span.tiles, span.count, first + kApart * a);
      facts[a].Load(step, span.levels, span.scales, at[a].Key());
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (first + kApart * a >= span.count) break;
      const bool read = shared.low.Reaches(facts[a]);
      const bool before = shared.high.Reaches(facts[a]);
      const unsigned fresh = __ballot_sync(kAllLanes, at[a].there && read && !before);
      if (HalfTile::Lane() == 0 && at[a].number < span.count)
        span.fresh[at[a].number] = static_cast<uint16_t>(fresh >> (threadIdx.x & 16));
      if constexpr (kMasses) LeaveMasses(step, shared, span, at[a], facts[a], read);
    }
  }
}

// The masses of tiles of clusters that were touched.
template <int kHeads>
__device__ void RenewMasses(const Step& step, const VerifyShared& shared, const SpanTiles& span) {
  for (int first = 2 * static_cast<int>(threadIdx.x >> 5); first < span.count;
       first += 2 * kBlockWarps) {
    const HalfTile at(span.tiles, span.count, first);
    if (!__any_sync(kAllLanes, shared.touched[at.tile.Cluster()] != 0)) continue;
    KeyFacts<kHeads> facts;
    facts.Load(step, span.levels, span.scales, at.Key());
    LeaveMasses(step, shared, span, at, facts, shared.low.Reaches(facts));
  }
}

// Adds up masses of tiles by cluster, all or those that were touched. `base`: number of the span
// among all.
__device__ __forceinline__ void AddUpMasses(const Step& step, const VerifyShared& shared,
                                            const SpanTiles& span, int64_t base, bool all) {
  float* unread = step.unread + base * step.span_slots * step.group;
  const int shift = 32 - __clz(step.group - 1);  // heads, rounded up to a power of two
  for (int i = threadIdx.x; i < span.count << shift; i += kBlockThreads) {
    const int tile = i >> shift;
    const int head = i - (tile << shift);
    if (head >= step.group) continue;
    const int cluster = span.tiles[tile].Cluster();
    if (tile > 0 && span.tiles[tile - 1].Cluster() == cluster) continue;
    if (!all && shared.touched[cluster] == 0) continue;
    float sum = 0;
    for (int t = tile; t < span.count && span.tiles[t].Cluster() == cluster; ++t)
      sum += span.masses[t * span.stride + head];
    unread[cluster * step.group + head] = sum;
  }
}

// Lists the fresh members of the span's tiles by number; returns how many. All threads.
__device__ __forceinline__ int ListFresh(const SpanTiles& span, VerifyShared& shared,
                                         uint32_t* chosen) {
  int all = 0;
  for (int t0 = 0; t0 < span.count; t0 += kBlockThreads) {
    const int tile = t0 + static_cast<int>(threadIdx.x);
    unsigned fresh = tile < span.count ? span.fresh[tile] : 0;
    int sum;
    uint32_t* to = chosen + all + BlockScan(__popc(fresh), shared.scratch, &sum);
    all += sum;
    if (fresh == 0) continue;
    shared.touched[span.tiles[tile].Cluster()] = 1;
    for (; fresh != 0; fresh &= fresh - 1)
      *to++ = static_cast<uint32_t>(span.tiles[tile].First() + __ffs(fresh) - 1);
  }
  return all;
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_CHOOSE_ROWS_CUH_
