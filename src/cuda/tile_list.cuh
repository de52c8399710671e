// Mode paper: the rows of some clusters of a unit, listed in tiles of 16 (ListedTile).
#ifndef TACTIC_SRC_CUDA_TILE_LIST_CUH_
#define TACTIC_SRC_CUDA_TILE_LIST_CUH_

#include "src/cuda/step.cuh"
#include "src/cuda/tile_share.cuh"

namespace tactic::cuda {

// Logits of cluster `thread` of a span for the group's heads, relative to the anchors; on their way
// before anybody knows what the unit is.
template <int kHeads>
struct SpanScores {
  float of[kHeads] = {};

  __device__ __forceinline__ SpanScores(const Step& step, int unit, int span) {
    const auto cluster = static_cast<int>(threadIdx.x);
    if (span >= step.spans || cluster >= step.span_slots) return;
    LoadHeads(OfHeads(step, step.scores, FirstCluster(step, unit, span) + cluster), step.group, of);
  }
};

// Cluster `thread` of a span: its members, none if there is no such cluster, and its bins.
template <int kHeads>
struct SpanCluster {
  Members members;
  int bins[kHeads];

  __device__ __forceinline__ SpanCluster(const Step& step, const Unit& unit, int span,
                                         const SpanScores<kHeads>& scores) {
    const auto cluster = static_cast<int>(threadIdx.x);
    const bool there =
        unit.readable != 0 && cluster < unit.SpanClusters(span, step.slots, step.span_slots);
    members = there ? MembersOf(step, unit, span, cluster) : Members{};
#pragma unroll
    for (int g = 0; g < kHeads; ++g) bins[g] = BinOf(scores.of[g]);
  }
  __device__ __forceinline__ int Rows() const { return members.end - members.begin; }
};

// How a cluster is listed.
enum class Listing { kNot, kScored, kFresh };

// Lists the span's clusters, thread c's cluster c, and adds them to `size`. of_windows, of_heads:
// as in ListedTile; `owners`: of what is fresh. `scratch`: kBlockWarps words. All threads.
__device__ __forceinline__ void ListTiles(const Step& step, const Unit& unit, int span,
                                          const Members& members, Listing as, bool of_windows,
                                          bool of_heads, uint32_t owners, uint64_t* scratch,
                                          ListSize* size) {
  const int rows = as == Listing::kNot ? 0 : members.end - members.begin;
  const int tiles = RowTiles(rows);
  // Scored tiles, fresh ones, and rows, counted at once: none above the span's positions.
  static_assert(kMaxSlots * Options::kPage < 1 << 16);
  const bool fresh = as == Listing::kFresh;
  uint64_t all;
  const uint64_t before = BlockScan(
      static_cast<uint64_t>(rows) << 32 | static_cast<uint64_t>(fresh ? tiles << 16 : tiles),
      scratch, &all);
  const int64_t base = int64_t{unit.number} * step.spans + span;
  const auto scored_before = static_cast<uint32_t>(before) & 0xffffu;
  const auto fresh_before = static_cast<uint32_t>(before) >> 16;
  int64_t to = base * step.span_keys + (fresh ? step.span_keys - 1 - fresh_before : scored_before);
  for (int i = 0; i < rows; i += kTileRows, to += fresh ? -1 : 1) {
    const int here = min(kTileRows, rows - i);
    step.rows[to] = ListedTile::Of(members.begin + i, threadIdx.x, here, of_windows, of_heads).word;
    if (fresh) step.owners[to] = static_cast<uint16_t>(owners);
  }
  if (threadIdx.x != 0) return;
  const auto scored = static_cast<int>(static_cast<uint32_t>(all) & 0xffffu);
  const auto others = static_cast<int>(static_cast<uint32_t>(all) >> 16);
  step.counts[base] = scored;
  step.fresh_counts[base] = others;
  if (scored + others == 0) return;
  atomicAdd(&size->rows, static_cast<int>(all >> 32));
  atomicAdd(&size->scored, scored);
  atomicAdd(&size->fresh, others);
}

// A tile of a unit's list; the same for all lanes.
struct TilePlace {
  ListedTile tile;
  int span;

  // Number `i` of the list of scored tiles, not in a span ahead of `from`.
  __device__ __forceinline__ static TilePlace Find(const Step& step, const Unit& unit,
                                                   const SpanLists& list, int from, int i) {
    const int span = NextBefore(list.before, list.spans, from, i);
    const uint32_t entry = FirstRow(step, unit.number, span) + i - list.before[span];
    return {{__ldcg(step.rows + entry)}, span};
  }
  // Of row `i` of 16, or the last there is.
  __device__ __forceinline__ int Position(const Step& step, const Unit& unit, int i) const {
    const int first = span * step.span_keys;
    return first + PlaceOf(step, unit.members + first, SegmentOf(step, tile.Cluster()),
                           tile.First() + min(i, tile.Rows() - 1));
  }
  // Where row 0's logits are.
  __device__ __forceinline__ float* Logits(const Step& step, const Unit& unit) const {
    return OfHeads(step, step.logits, FirstRow(step, unit.number, span) + tile.First());
  }
  // The cluster among those of the unit, and where its scores are.
  __device__ __forceinline__ int Cluster(const Step& step) const {
    return span * step.span_slots + tile.Cluster();
  }
  __device__ __forceinline__ const float* Scores(const Step& step, const Unit& unit) const {
    return OfHeads(step, step.scores, FirstCluster(step, unit.number, span) + tile.Cluster());
  }
};

// One of the list of fresh tiles, and the heads whose own it is.
struct FreshTile {
  TilePlace place;
  uint32_t owners;

  __device__ __forceinline__ static FreshTile Find(const Step& step, const Unit& unit,
                                                   const SpanLists& list, int from, int i) {
    const int span = NextBefore(list.before, list.spans, from, i);
    const uint32_t entry = FirstRow(step, unit.number, span + 1) - 1 - (i - list.before[span]);
    return {{{__ldcg(step.rows + entry)}, span}, __ldcg(step.owners + entry)};
  }
};

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_TILE_LIST_CUH_
