// Segment: consecutive positions of a sequence that are indexed together, for every KV head of one
// layer.
//
// Immutable once built, shared by every sequence that has this history. Holds no keys: clusters,
// member lists and (mode tactic) codes only.
#ifndef TACTIC_SRC_SEGMENT_H_
#define TACTIC_SRC_SEGMENT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "src/codes.h"

namespace tactic {

// What mode tactic adds to the clusters of one KV head (codes.h). Keys are in member order.
struct Codes {
  // Residuals are described to the filter by their mean squares over runs of head_dim / kRuns
  // elements. A query's energy is not spread evenly over the elements, nor is the keys': with the
  // whole residual as one number a token that holds 99 % of the mass slipped through. 8 runs miss
  // more (99.5 % of cases reach P = 0.9 at 32K instead of 99.9 %), 32 cost more bytes than they
  // save.
  static constexpr int kRuns = 16;

  int bits = 0;
  float error = 0;              // mean variance of an element's error, over all keys
  std::vector<uint8_t> planes;  // [blocks][CodeBlockBytes]
  // [(blocks + 1) * kCodeBlock] ByteFloat: t of every key; 0 for padding, of which a vector of any
  // member may read some.
  std::vector<uint8_t> scales;
  std::vector<int8_t> centroids;          // [head_dim / 4][slots][4]: CentroidAt
  std::vector<uint16_t> centroid_scales;  // f16, [slots]
  std::vector<uint8_t> spreads;  // ByteFloat, [kRuns + 1][slots]: root mean square of an element of
                                 // each run; then how far the longest residual exceeds the rms one
  // Of values, [slots + 1][value_dim]: mean number `slots` is that of all members.
  std::vector<int8_t> means;
  std::vector<uint16_t> mean_scales;  // f16, [slots + 1]

  size_t MemoryBytes() const {
    return planes.capacity() + scales.capacity() + centroids.capacity() +
           centroid_scales.capacity() * sizeof(uint16_t) + spreads.capacity() + means.capacity() +
           mean_scales.capacity() * sizeof(uint16_t);
  }
};

// The clusters of one KV head.
struct Clusters {
  int count = 0;  // clusters in use; the rest of the slots are empty
  // Mode paper: f16 bits, [head_dim][slots]: a vector of centroids per dimension.
  std::vector<uint16_t> centroids;
  std::vector<uint32_t>
      starts;  // [slots + 1]: members of cluster c are members[starts[c] .. starts[c + 1])
  std::vector<uint16_t>
      members;  // offsets from the first clustered position; by cluster, then ascending
  // A key or value was NaN or infinite: there is one cluster, of all members, that every query has
  // to read.
  bool always = false;
  Codes codes;  // mode tactic

  uint32_t Size(int cluster) const { return starts[cluster + 1] - starts[cluster]; }
  size_t MemoryBytes() const {
    return centroids.capacity() * sizeof(uint16_t) + starts.capacity() * sizeof(uint32_t) +
           members.capacity() * sizeof(uint16_t) + codes.MemoryBytes();
  }
};

class Segment {
 public:
  // Indexes positions [first, end); positions of the segment before `first` (the sinks) are not
  // indexed.
  Segment(int64_t first, int64_t end, int kv_heads) : first_(first), end_(end), heads_(kv_heads) {}

  int64_t first() const { return first_; }
  int64_t end() const { return end_; }
  const Clusters& head(int kv_head) const { return heads_[kv_head]; }
  Clusters& mutable_head(int kv_head) { return heads_[kv_head]; }
  // Whether some KV head has to read all of it.
  bool always() const {
    for (const Clusters& head : heads_) {
      if (head.always) return true;
    }
    return false;
  }

  // Whether every KV head was indexed: false while that is under way, and for good when it was
  // aborted.
  bool Filled() const {
    return filled_.load(std::memory_order_acquire) == static_cast<int>(heads_.size());
  }
  void CountFilled() { filled_.fetch_add(1, std::memory_order_acq_rel); }

  size_t MemoryBytes() const {
    size_t bytes = sizeof(*this) + heads_.capacity() * sizeof(Clusters);
    for (const Clusters& head : heads_) bytes += head.MemoryBytes();
    return bytes;
  }

 private:
  int64_t first_;
  int64_t end_;
  std::vector<Clusters> heads_;
  std::atomic<int> filled_ = 0;
};

}  // namespace tactic

#endif  // TACTIC_SRC_SEGMENT_H_
