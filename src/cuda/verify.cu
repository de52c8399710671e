// Stage select (mode tactic): exact keys of the rows that the codes point at, and, where these fall
// short of what the codes promised, of more.
//
// Round 0 reads what the estimates ask for; in a later one there is something to read where exact
// masses were found to miss the target (heads.cuh). Rows are listed by span, in an order that
// does not depend on timing.
#include <algorithm>

#include "src/cuda/heads.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/step.cuh"
#include "src/cuda/sum_heads.cuh"

namespace tactic::cuda {
namespace {

struct VerifyShared {
  alignas(16) int low[kMaxGroup];   // keys from here up are read after this round
  alignas(16) int high[kMaxGroup];  // and from here up before
  alignas(16) float half[kMaxGroup];
  int flags[2];  // of PlanUnit
  int last;      // of EndsLast, which is still being read when PlanUnit begins
  int scratch[kBlockWarps];
  // Of the span's kept clusters.
  Members members[kMaxSlots];
  uint8_t clusters[kMaxSlots];
  int counts[kMaxSlots];  // of new rows, then where they go
  float by_warp[kBlockWarps][kMaxGroup];
};

// What of a key says whether it is read: its levels for all heads of the group, in pairs, and its
// scale.
template <int kHeads>
struct KeyFacts {
  uint32_t pairs[kHeads / 2];
  uint32_t scale;  // a byte float

  __device__ __forceinline__ void Load(const Step& step, const uint16_t* levels,
                                       const uint8_t* scales, uint32_t key) {
#pragma unroll
    for (int p = 0; p < kHeads / 2; ++p) {
      pairs[p] =
          2 * p < step.group
              ? __ldcg(reinterpret_cast<const uint32_t*>(levels + key * step.level_stride) + p)
              : 0;
    }
    scale = __ldg(scales + key);
  }
  __device__ __forceinline__ int Of(int g) const {
    return static_cast<int>(pairs[g / 2] >> g % 2 * 16 & 0xffffu);
  }
};

// Which of a cluster's members [begin, end) are new: bit l of word w is of its member 32 w + l.
// `words` has room for those of cluster e of the list from place begin / 32 + e on. Returns how
// many; kMasses: leaves the mass of what is not read. One warp. kHeads: the group, or more.
// `next`: facts of its first members.
template <int kHeads, bool kMasses>
__device__ __forceinline__ int ChooseRows(const Step& step, const VerifyShared& shared,
                                          uint32_t begin, uint32_t end, const uint16_t* levels,
                                          const uint8_t* scales, KeyFacts<kHeads> next,
                                          uint32_t* words, float* unread) {
  const uint32_t lane = threadIdx.x & 31;
  int count = 0;
  float masses[kHeads] = {};
  for (uint32_t first = begin; first < end; first += 32) {
    const KeyFacts<kHeads> of = next;
    if (first + 32 < end) next.Load(step, levels, scales, min(first + 32 + lane, end - 1));
    bool read = false;
    bool before = false;
#pragma unroll
    for (int g = 0; g < kHeads; ++g) {
      read = read || of.Of(g) >= shared.low[g];
      before = before || of.Of(g) >= shared.high[g];
    }
    const bool there = first + lane < end;
    if constexpr (kMasses) {
      const float scale = FromByteFloat(of.scale);
#pragma unroll
      for (int g = 0; g < kHeads; ++g) {
        // Without v / 2, which corrects the mean of an exponential and not this sum.
        const float mass =
            Exp2(LogitOfLevel(of.Of(g)) - fminf(shared.half[g] * (scale * scale), kLargestHalf));
        masses[g] += there && !read ? mass : 0.0f;
      }
    }
    const unsigned all = __ballot_sync(kAllLanes, there && read && !before);
    if (lane == 0) words[(first - begin) / 32] = all;
    count += __popc(all);
  }
  if constexpr (kMasses) {
    const float mass = WarpSums(masses);
    if (lane < step.group) unread[lane] = mass;
  }
  return count;
}

// Chooses rows of all kept clusters of the span that is number `base` of all, a cluster to a warp.
template <int kHeads>
__device__ void ChooseAll(const Step& step, VerifyShared& shared, int kept, int64_t base,
                          const uint16_t* levels, const uint8_t* scales, uint32_t* words) {
  const int lane = threadIdx.x & 31;
  int e = static_cast<int>(threadIdx.x >> 5);
  if (e >= kept) return;
  const auto first_of = [&](int cluster) {
    const Members of = shared.members[cluster];
    KeyFacts<kHeads> facts;
    facts.Load(step, levels, scales, min(of.begin + lane, of.end - 1));
    return facts;
  };
  KeyFacts<kHeads> next = first_of(e);
  for (; e < kept; e += kBlockWarps) {
    const KeyFacts<kHeads> facts = next;
    if (e + kBlockWarps < kept) next = first_of(e + kBlockWarps);
    const Members of = shared.members[e];
    const auto choose = [&]<bool kMasses>() {
      return ChooseRows<kHeads, kMasses>(
          step, shared, of.begin, of.end, levels, scales, facts, words + of.begin / 32 + e,
          step.unread + (base * step.span_slots + shared.clusters[e]) * step.group);
    };
    // A later round changes the masses of few clusters.
    const bool masses = step.tail != 0;
    int count = 0;
    if (step.round > 0 || !masses) count = choose.template operator()<false>();
    if (masses && (step.round == 0 || count > 0)) count = choose.template operator()<true>();
    if (lane == 0) shared.counts[e] = count;
  }
}

// Rows that a block chose, each the number of the member << 16 | its place in the span.
struct ChosenRows {
  const uint32_t* rows;
  int count;

  __device__ __forceinline__ uint32_t Of(int tile, int i) const {
    return rows[min(tile * kTileRows + i, count - 1)];
  }
};

// Logits of the chosen rows, to `to`, and the mass of what lies in the heads' ranges. `query`: the
// group's, QueryTile pieces; `first`: the span's first position. All warps share the rows.
template <class Row, int kDim, int kHeadTiles>
__device__ __forceinline__ void ScoreRows(const Step& step, const Unit& unit,
                                          const VerifyShared& shared, const uint4* query,
                                          const ChosenRows& chosen, int first,
                                          const uint16_t* levels, float* to,
                                          const LaneAnchors<kHeadTiles>& anchors,
                                          float (&mass)[kHeadTiles][2]) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  int tile = static_cast<int>(threadIdx.x >> 5);
  if (tile * kTileRows >= chosen.count) return;
  const auto row = [&](int of, int i) {
    return KeyRow<Row>(step, unit, first + static_cast<int>(chosen.Of(of, i) & 0xffffu));
  };
  // A full span has many tiles, and its block ends last: the next tile's rows are looked up while
  // this one's keys are on their way, and so are the levels.
  const uint8_t* low = row(tile, r);
  const uint8_t* high = row(tile, r + 8);
  for (; tile * kTileRows < chosen.count; tile += kBlockWarps) {
    KeyTile<Row, kDim> keys;
    keys.Load(low, high, lane);
    uint32_t of_heads[2][kHeadTiles];  // levels for both heads of the lane
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t member = chosen.Of(tile, r + 8 * i) >> 16;
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
        const int head = LaneHead(n, 0);
        const uint16_t* at = levels + (member * step.level_stride + head);
        of_heads[i][n] = head < step.group ? __ldcg(reinterpret_cast<const uint32_t*>(at)) : 0;
      }
    }
    low = row(tile + kBlockWarps, r);
    high = row(tile + kBlockWarps, r + 8);
    QueryTile<kDim, kHeadTiles> q;
    q.Read(query, lane);
    float s[kHeadTiles][4];
    keys.Score(q, s);
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int head = LaneHead(n, k & 1);
        const int i = tile * kTileRows + r + (k >> 1) * 8;
        if (head >= step.group || i >= chosen.count) continue;
        const float logit = Capped(s[n][k] * step.key_unit, step.softcap);
        to[i * step.group + head] = logit;
        const int level = static_cast<int>(of_heads[k >> 1][n] >> (k & 1) * 16 & 0xffffu);
        if (level >= shared.low[head] && level < shared.high[head])
          mass[n][k & 1] += Exp2(logit - anchors.of[n][k & 1]);
      }
    }
  }
}

template <class Row, int kDim, int kHeadTiles>
__global__ void __launch_bounds__(kBlockThreads, BlocksFor(kDim, kHeadTiles, 4))
    VerifyKernel(const __grid_constant__ Step step) {
  // chosen: number of the member << 16 | place in the span; then words of ChooseRows.
  extern __shared__ uint32_t chosen[];
  __shared__ VerifyShared shared;
  __shared__ uint4 query[QueryTile<kDim, kHeadTiles>::kPieces * 32];
  uint32_t* words = chosen + step.span_keys;
  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int warp = thread >> 5;
  const Unit unit = ReadUnit(step, blockIdx.y);
  if (thread < 32) {
    QueryTile<kDim, kHeadTiles> q;
    LoadQuery<Row::kIsBF16>(step, unit, q);
    q.Write(query, lane);
  }
  WaitForPrevious();
  LetNextBegin();
  if (IsDense(step, unit) || __ldcg(step.reading + unit.number) == 0) return;
  const int64_t heads = int64_t{unit.number} * step.group;
  // Of heads that the group does not have, no key is read.
  if (thread < kMaxGroup) {
    const bool there = thread < step.group;
    shared.low[thread] = there ? __ldcg(&step.masses[heads + thread].low) : kNoKey;
    shared.high[thread] = there ? __ldcg(&step.masses[heads + thread].high) : kNoKey;
    shared.half[thread] =
        there ? CodeError(step.bits) * step.queries[heads + thread].norm / 2 * kLog2e : 0.0f;
  }
  const LaneAnchors<kHeadTiles> anchors(step, unit);
  for (int span = blockIdx.x; span < unit.spans; span += gridDim.x) {
    const int64_t base = int64_t{unit.number} * step.spans + span;
    const int64_t rows = base * step.span_keys;
    const uint16_t* members = unit.members + int64_t{span} * step.span_keys;
    const uint8_t* scales = unit.key_scales + int64_t{span} * step.span_keys;
    const uint16_t* levels = step.levels + rows * step.level_stride;
    const int first = span * step.span_keys;
    const int before = step.round > 0 ? __ldcg(step.counts + base) : 0;
    const int kept = __ldcg(step.kept_counts + base);
    if (thread < kept) {
      const int cluster = __ldcg(step.kept_list + base * step.span_slots + thread);
      shared.clusters[thread] = static_cast<uint8_t>(cluster);
      shared.members[thread] = MembersOf(step, unit, span, cluster);
    }
    __syncthreads();
    if (kHeadTiles == 1 && step.group <= 4)
      ChooseAll<4>(step, shared, kept, base, levels, scales, words);
    else
      ChooseAll<kHeadTiles * kTileHeads>(step, shared, kept, base, levels, scales, words);
    __syncthreads();
    int fresh;
    const int place = BlockScan(thread < kept ? shared.counts[thread] : 0, shared.scratch, &fresh);
    if (thread < kept) shared.counts[thread] = place;
    __syncthreads();
    for (int e = warp; e < kept; e += kBlockWarps) {
      const int cluster = shared.clusters[e];
      const int begin = shared.members[e].begin;
      const int end = shared.members[e].end;
      int to = shared.counts[e];
      for (int key = begin; key < end; key += 32) {
        const uint32_t word = words[begin / 32 + e + (key - begin) / 32];
        if ((word >> lane & 1) != 0) {
          const int i = to + __popc(word & ((1u << lane) - 1));
          const int place_in_span = PlaceOf(step, members, cluster, key + lane);
          chosen[i] = static_cast<uint32_t>(key + lane) << 16 | place_in_span;
          step.rows[rows + before + i] = ListedRow(before + i, place_in_span);
          step.tags[rows + before + i] = static_cast<uint16_t>(key + lane);
        }
        to += __popc(word);
      }
    }
    float mass[kHeadTiles][2] = {};
    // Rows that another head had read may lie in a head's new range.
    for (int i = thread / 4; i < before; i += kBlockThreads / 4) {
      const int key = step.tags[rows + i];
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = LaneHead(n, h);
          if (head >= step.group) continue;
          const int level = levels[key * step.level_stride + head];
          if (level < shared.low[head] || level >= shared.high[head]) continue;
          mass[n][h] += Exp2(step.logits[(rows + i) * step.group + head] - anchors.of[n][h]);
        }
      }
    }
    __syncthreads();
    ScoreRows<Row, kDim>(step, unit, shared, query, {chosen, fresh}, first, levels,
                         step.logits + (rows + before) * step.group, anchors, mass);
    SumHeads(mass, step.group, shared.by_warp, step.exact + base * step.group);
    if (thread == 0) step.counts[base] = before + fresh;
  }
  if (EndsLast(step, unit, gridDim.x, &shared.last))
    PlanUnit(step, unit, step.round + 1, shared.flags, chosen);
}

}  // namespace

Status LaunchVerify(const Step& step, Element type, int round, Stream stream) {
  Step of_round = step;
  of_round.round = round;
  const size_t words = step.span_keys + step.span_keys / 32 + kMaxSlots + 1;
  // At its end the block wants room to plan in.
  const size_t shared =
      std::max(words, size_t(PlanningWarps(step.group)) * kBins) * sizeof(uint32_t);
  return DispatchStep(of_round, type, [&]<class Row, int kDim, int kHeadTiles>() {
    return Launch(VerifyKernel<Row, kDim, kHeadTiles>, of_round, UnitGrid(step, step.parts), shared,
                  stream);
  });
}

}  // namespace tactic::cuda
