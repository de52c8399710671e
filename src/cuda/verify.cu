// Stage select (mode tactic): exact keys of the rows that the codes point at, and, where these fall
// short of what the codes promised, of more.
//
// Round 0 reads what the estimates ask for; in a later one there is something to read where exact
// masses were found to miss the target (heads.cuh). Rows are listed by span, in an order that
// does not depend on timing.
#include <algorithm>

#include "src/cuda/choose_rows.cuh"
#include "src/cuda/heads.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/scan_tile.cuh"
#include "src/cuda/step.cuh"
#include "src/cuda/sum_heads.cuh"

namespace tactic::cuda {
namespace {

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
        const int level = LevelInPair(of_heads[k >> 1][n], k & 1);
        if (level >= shared.low.of[head] && level < shared.high.of[head])
          mass[n][k & 1] += Exp2(logit - anchors.of[n][k & 1]);
      }
    }
  }
}

// The mass of rows that another head had read and that lie in a head's new range: of the first
// `count` from `rows` on, four lanes to a row. Several rows are looked up at once, since each is
// a chain of reads.
template <int kHeadTiles>
__device__ __forceinline__ void AddReadRows(const Step& step, const VerifyShared& shared,
                                            int64_t rows, int count, const uint16_t* levels,
                                            const LaneAnchors<kHeadTiles>& anchors,
                                            float (&mass)[kHeadTiles][2]) {
  constexpr int kAhead = 4;
  constexpr int kApart = kBlockThreads / 4;
  const uint16_t* tags = step.tags + rows;
  const float* logits = step.logits + rows * step.group;
  for (int first = static_cast<int>(threadIdx.x) / 4; first < count; first += kAhead * kApart) {
    uint32_t members[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) members[a] = __ldcg(tags + min(first + a * kApart, count - 1));
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      const int head = LaneHead(n, 0);
      if (head >= step.group) continue;
      uint32_t pairs[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
        pairs[a] = __ldcg(
            reinterpret_cast<const uint32_t*>(levels + (members[a] * step.level_stride + head)));
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int i = first + a * kApart;
        if (i >= count) break;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if (head + h >= step.group) continue;
          const int level = LevelInPair(pairs[a], h);
          if (level < shared.low.of[head + h] || level >= shared.high.of[head + h]) continue;
          mass[n][h] += Exp2(__ldcg(logits + (i * step.group + head + h)) - anchors.of[n][h]);
        }
      }
    }
  }
}

// Masses of a tile of heads that a group has, in shared memory.
__host__ __device__ __forceinline__ int MassStride(const Step& step) {
  return step.tail != 0 ? step.group : 0;
}

// Long rows need more registers than four blocks leave.
template <class Row, int kDim, int kHeadTiles>
__global__ void __launch_bounds__(kBlockThreads, BlocksFor(kDim, kHeadTiles, kDim <= 64 ? 4 : 3))
    VerifyKernel(const __grid_constant__ Step step) {
  // chosen: number of the member << 16 | place in the span; then what SpanTiles has.
  extern __shared__ uint32_t chosen[];
  __shared__ VerifyShared shared;
  __shared__ uint4 query[QueryTile<kDim, kHeadTiles>::kPieces * 32];
  const int thread = threadIdx.x;
  // Who has nothing to read any more does not begin to. (Before the wait this may be out of date,
  // and not the same for all: then the unit has been reading, and is asked again.)
  const bool done = step.round > 0 && __ldcg(step.reading + blockIdx.y) == 0;
  ReadUnit(step, blockIdx.y, &shared.unit);
  const int64_t heads = int64_t{blockIdx.y} * step.group;
  // Of heads that the group does not have, no key is read.
  const bool there = thread < step.group;
  if (thread == 0) shared.low.all = shared.high.all = 0;
  if (thread < kMaxGroup)
    shared.half[thread] =
        there ? CodeError(step.bits) * step.queries[heads + thread].norm / 2 * kLog2e : 0.0f;
  if (__syncthreads_and(done) != 0) {
    WaitForPrevious();
    return;
  }
  const Unit& unit = shared.unit;
  ShareQuery<Row::kIsBF16, kDim, kHeadTiles>(step, unit, query);
  const LaneAnchors<kHeadTiles> anchors(step, unit);
  WaitForPrevious();
  LetNextBegin();
  const bool reading = !IsDense(step, unit) && __ldcg(step.reading + unit.number) != 0;
  if (thread < kMaxGroup) {
    shared.low.Set(thread, there ? __ldcg(&step.masses[heads + thread].low) : kNoKey);
    shared.high.Set(thread, there ? __ldcg(&step.masses[heads + thread].high) : kNoKey);
  }
  if (!reading) return;
  const int tile_room = TilesOfSpan(step);
  for (int number = blockIdx.x; number < unit.spans; number += gridDim.x) {
    const int64_t base = int64_t{unit.number} * step.spans + number;
    const int64_t rows = base * step.span_keys;
    const int first = number * step.span_keys;
    SpanTiles span;
    span.tiles = reinterpret_cast<ScanTile*>(chosen + step.span_keys);
    span.count = __ldcg(step.scan_counts + base);
    span.stride = MassStride(step);
    span.masses = reinterpret_cast<float*>(span.tiles + tile_room);
    span.fresh = reinterpret_cast<uint16_t*>(span.masses + tile_room * span.stride);
    span.levels = step.levels + rows * step.level_stride;
    span.scales = unit.key_scales + first;
    const int before = step.round > 0 ? __ldcg(step.counts + base) : 0;
    // Most spans have no more than that, which need not wait for their number.
    const uint32_t* tiles = step.scan_tiles + base * tile_room;
    for (int i = thread; i == thread || i < span.count; i += kBlockThreads) {
      if (i < tile_room) span.tiles[i].word = __ldcg(tiles + i);
    }
    if (thread < kMaxSlots) shared.touched[thread] = 0;
    __syncthreads();
    const auto by_heads = [&](const auto& f) {
      if (kHeadTiles == 1 && step.group <= 4)
        f.template operator()<4>();
      else
        f.template operator()<kHeadTiles * kTileHeads>();
    };
    const bool masses = step.tail != 0;
    const bool all_masses = masses && step.round == 0;
    by_heads([&]<int kHeads>() {
      if (all_masses)
        ChooseRows<kHeads, true>(step, shared, span);
      else
        ChooseRows<kHeads, false>(step, shared, span);
    });
    __syncthreads();
    const int fresh = ListFresh(span, shared, chosen);
    __syncthreads();
    if (masses && !all_masses && fresh > 0) {
      by_heads([&]<int kHeads>() { RenewMasses<kHeads>(step, shared, span); });
      __syncthreads();
    }
    for (int i = thread; i < fresh; i += kBlockThreads) {
      const auto key = static_cast<int>(chosen[i]);
      const int place = PlaceOf(step, unit.members + first, key / step.segment_size, key);
      chosen[i] = static_cast<uint32_t>(key << 16 | place);
      step.rows[rows + before + i] = ListedRow(before + i, place);
      step.tags[rows + before + i] = static_cast<uint16_t>(key);
    }
    if (masses && (all_masses || fresh > 0)) AddUpMasses(step, shared, span, base, all_masses);
    float mass[kHeadTiles][2] = {};
    AddReadRows(step, shared, rows, before, span.levels, anchors, mass);
    __syncthreads();
    ScoreRows<Row, kDim>(step, unit, shared, query, {chosen, fresh}, first, span.levels,
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
  const size_t tiles = TilesOfSpan(step);
  const size_t words = step.span_keys + tiles * (1 + MassStride(step)) + (tiles + 1) / 2;
  // At its end the block wants room to plan in.
  const size_t shared =
      std::max(words, size_t(PlanningWarps(step.group)) * kBins) * sizeof(uint32_t);
  return DispatchStep(of_round, type, [&]<class Row, int kDim, int kHeadTiles>() {
    return Launch(VerifyKernel<Row, kDim, kHeadTiles>, of_round, UnitGrid(step, step.parts), shared,
                  stream);
  });
}

}  // namespace tactic::cuda
