// K-means of the keys of one KV head in one segment (paper section 4.2): keys sampled at random as
// initial centroids, Euclidean assignment, centroid = mean of its members, until nothing moves or
// the iteration limit. No restarts, no k-means++. Mode tactic starts from keys at even distances,
// which measures the same and needs no seed.
#ifndef TACTIC_SRC_KMEANS_H_
#define TACTIC_SRC_KMEANS_H_

#include <cstdint>
#include <span>

#include "src/segment.h"
#include "tactic/options.h"
#include "tactic/rows_view.h"

namespace tactic {

// Number of clusters for `keys` keys: the nearest to keys / cluster_size, at least one.
inline int ClusterCount(int64_t keys, int cluster_size) {
  const int64_t count = (keys + cluster_size / 2) / cluster_size;
  return count < 1 ? 1 : static_cast<int>(count);
}

// Clusters the keys at keys + cells[i] * row_stride (KV head `kv_head` of `view`) into `out`, with
// room for `slots` clusters. Empty clusters are dropped. A key that is NaN or infinite sets
// out->always. Allocates its scratch (freed at the end). REQUIRES: 1 <= cells.size() <= 65,536;
// ClusterCount(cells.size(), options.cluster_size) <= slots, a multiple of 16.
void ClusterKeys(const RowsView& view, int kv_head, int head_dim, std::span<const uint32_t> cells,
                 const Options& options, uint64_t seed, int slots, Clusters* out);

}  // namespace tactic

#endif  // TACTIC_SRC_KMEANS_H_
