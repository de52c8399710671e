// SequenceIndex: the clustered keys of one sequence in one layer.
//
// Positions 0 .. size()-1 are the sequence's tokens in order. They are clustered in segments at
// fixed boundaries: segment j holds positions [j S, (j+1) S), the last one is closed only once
// `recent` newer positions exist, so what is indexed is a function of the sequence alone, never of
// how it came about. A position that no segment covers is read exactly.
//
// In mode tactic the positions behind the last closed segment form an open one, in whole pages of
// Options::kPage positions, so that what is read exactly stays short; it is replaced when a page or
// the segment is complete.
//
// Segments are immutable once built and reference-counted: a Fork costs O(segments) and shares
// them. An index never reads or keeps keys; building does, through a RowsView and the caller's cell
// list.
//
// Thread safety: const methods may run concurrently; Build units of one plan may run concurrently
// with each other; everything else needs exclusive access.
#ifndef TACTIC_SEQUENCE_INDEX_H_
#define TACTIC_SEQUENCE_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "tactic/options.h"
#include "tactic/rows_view.h"
#include "tactic/shape.h"
#include "tactic/status.h"

namespace tactic {

class Segment;  // src/segment.h

// What of an index is built.
enum class Building : uint8_t {
  kAll,     // what a decode step may use
  kClosed,  // full segments only: while a prompt is read, the newest positions change with every
            // batch, and nobody decodes yet
};

class SequenceIndex {
 public:
  // REQUIRES: shape.Validate().ok() and options.Validate().ok().
  SequenceIndex(const LayerShape& shape, const Options& options);

  int64_t size() const { return size_; }

  // Adds `n` >= 0 positions at the end.
  void Append(int64_t n);
  // Keeps the first `n` positions. OutOfRange unless 0 <= n <= size().
  Status Truncate(int64_t n);
  // Removes positions [begin, end); later ones move down. Every segment from `begin` on is dropped.
  // OutOfRange unless 0 <= begin <= end <= size().
  Status RemoveRange(int64_t begin, int64_t end);
  // The engine rewrote the keys of positions [begin, end): drops the segments that hold them.
  // OutOfRange as RemoveRange.
  Status Invalidate(int64_t begin, int64_t end);
  // A second sequence with the same history; segments are shared.
  SequenceIndex Fork() const { return *this; }

  // --- building: PlanBuild, then every unit once, on any threads ---

  // Lays out the segments that are due and returns the number of independent units of clustering
  // that fill them; 0 when the index is up to date. The segments appear in segments() at once but
  // may be read only after all units ran. What an aborted step left unfilled is planned again, and
  // what kClosed leaves out by the next plan of kAll.
  int PlanBuild(Building building = Building::kAll);
  // Clusters (and codes) unit `unit` of the plan. `cells[p]` is the cell of position p; REQUIRES
  // cells.size() >= size(), keys and values readable at these cells, and units 0 .. PlanBuild()-1
  // each run exactly once. Mode paper does not look at `values`.
  void BuildUnit(int unit, const RowsView& keys, const RowsView& values,
                 std::span<const uint32_t> cells);

  // Mode tactic with bits = 0: mean of |q * scale|^2 over the query heads of each KV head and some
  // tokens of this model; [kv_heads]. It decides how many bits segments built from now on get: 3
  // without it. Call it before the first build, with the same values for every index of a layer.
  void SetQueryNorms(std::span<const float> mean_squares);

  // --- reading ---

  // Closed segments by ordinal; null where none is closed.
  std::span<const std::shared_ptr<const Segment>> segments() const { return segments_; }
  // The open segment; null when there is none.
  const std::shared_ptr<const Segment>& open() const { return open_; }
  // Segments of this index that a token with `num_tokens` visible positions may use: [0, result).
  int UsableSegments(int64_t num_tokens) const;
  // Pages of the open segment that such a token may use: the first so many.
  int UsablePages(int64_t num_tokens) const;
  // Clusters that a segment has room for, per KV head: ids of a query's clusters are segment *
  // slots() + cluster.
  int slots() const { return slots_; }

  const LayerShape& shape() const { return shape_; }
  const Options& options() const { return options_; }
  // Bytes of segments (shared ones counted in full).
  size_t MemoryBytes() const;

 private:
  LayerShape shape_;
  Options options_;
  int64_t size_ = 0;
  int slots_ = 0;
  std::vector<std::shared_ptr<const Segment>> segments_;
  std::shared_ptr<const Segment> open_;
  std::vector<float> query_norms_;  // [kv_heads], or empty
  struct Pending {
    int64_t ordinal;  // kOpen: the open segment
    std::shared_ptr<Segment> segment;
    std::shared_ptr<const Segment> previous;  // what the open segment was; may be null
  };
  static constexpr int64_t kOpen = -1;
  void PlanOpen(int64_t closed);
  std::vector<Pending> pending_;  // of the last PlanBuild
};

}  // namespace tactic

#endif  // TACTIC_SEQUENCE_INDEX_H_
