// Codes of the keys of one KV head in one segment, and the means of its values (mode tactic).
#ifndef TACTIC_SRC_ENCODE_H_
#define TACTIC_SRC_ENCODE_H_

#include <cstdint>
#include <span>

#include "src/segment.h"
#include "tactic/options.h"
#include "tactic/rows_view.h"
#include "tactic/shape.h"

namespace tactic {

// The keys and values of one KV head at the positions of a segment.
struct HeadPositions {
  const RowsView& keys;
  const RowsView& values;
  int kv_head;
  std::span<const uint32_t> cells;  // of the segment's positions, in order
};

// Makes every run of Options::kPage positions a cluster of `out`, which has room for `slots`.
void MakePages(int64_t positions, int slots, Clusters* out);

// Fills in out->codes for the clusters in `out`, whose f16 centroids it replaces. `query_norm`:
// mean of |q * scale|^2, or negative when unknown. Of an open segment, whose pages are coded as
// they fill up, the first page decides how many bits the codes have; `previous`, when not null, is
// the segment as it was: its clusters are the first of `out`, and their codes are taken over. Sets
// out->always when a key or value is NaN, infinite or too large for a code.
void EncodeClusters(const HeadPositions& head, const LayerShape& shape, const Options& options,
                    float query_norm, int slots, bool open, const Clusters* previous,
                    Clusters* out);

}  // namespace tactic

#endif  // TACTIC_SRC_ENCODE_H_
