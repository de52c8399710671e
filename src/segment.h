// Segment: consecutive positions of a sequence whose keys were clustered together, for every KV
// head of one layer.
//
// Immutable once built, shared by every sequence that has this history. Holds no keys: centroids,
// sizes and member lists only.
#ifndef TACTIC_SRC_SEGMENT_H_
#define TACTIC_SRC_SEGMENT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tactic {

// The clusters of one KV head.
struct Clusters {
  int count = 0;  // clusters in use; the rest of the slots are empty
  std::vector<uint16_t>
      centroids;  // f16 bits, [head_dim][slots]: a vector of centroids per dimension
  std::vector<uint32_t>
      starts;  // [slots + 1]: members of cluster c are members[starts[c] .. starts[c + 1])
  std::vector<uint16_t>
      members;  // offsets from the first clustered position; by cluster, then ascending
  // A key was NaN or infinite: there is one cluster, of all members, that every query has to read.
  bool always = false;

  uint32_t Size(int cluster) const { return starts[cluster + 1] - starts[cluster]; }
  size_t MemoryBytes() const {
    return centroids.capacity() * sizeof(uint16_t) + starts.capacity() * sizeof(uint32_t) +
           members.capacity() * sizeof(uint16_t);
  }
};

class Segment {
 public:
  // Clusters positions [first, end); positions of the segment before `first` (the sinks) are not
  // clustered.
  Segment(int64_t first, int64_t end, int kv_heads) : first_(first), end_(end), heads_(kv_heads) {}

  int64_t first() const { return first_; }
  int64_t end() const { return end_; }
  const Clusters& head(int kv_head) const { return heads_[kv_head]; }
  Clusters& mutable_head(int kv_head) { return heads_[kv_head]; }

  // Whether every KV head was clustered: false while that is under way, and for good when it was
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
