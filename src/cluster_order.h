// ClusterOrder: clusters by descending score, sorted only where somebody looks.
//
// A decode step needs the order of three short stretches of ranks (the exact head and two windows)
// and the end of a prefix. So clusters are dropped into 256 buckets of equal score width, and a
// bucket is sorted when a rank inside it is visited. The order is exactly that of a full sort:
// score descending, then number ascending (clusters are numbered by position).
#ifndef TACTIC_SRC_CLUSTER_ORDER_H_
#define TACTIC_SRC_CLUSTER_ORDER_H_

#include <algorithm>
#include <array>
#include <bitset>
#include <cmath>
#include <cstdint>
#include <limits>

namespace tactic {

class ClusterOrder {
 public:
  // scores[c], sizes[c] (members; 0: an empty slot) for c in [0, n); both must outlive this.
  // `order` and `bucket_of` are scratch of n entries. Scores may be infinite (+inf: must be read);
  // with a NaN among them ordered() is false and there is no order.
  ClusterOrder(const float* scores, const uint32_t* sizes, int n, uint32_t* order,
               uint8_t* bucket_of)
      : scores_(scores), sizes_(sizes), order_(order) {
    // In double: neither the difference of two floats nor the inverse of a tiny one overflows
    // there.
    double low = std::numeric_limits<double>::infinity();
    double high = -low;
    for (int c = 0; c < n; ++c) {
      if (sizes[c] == 0) continue;
      ordered_ = ordered_ && !std::isnan(scores[c]);
      if (scores[c] == std::numeric_limits<float>::infinity()) must_read_ += sizes[c];
      if (!std::isfinite(scores[c])) continue;
      low = std::min<double>(low, scores[c]);
      high = std::max<double>(high, scores[c]);
    }
    if (!ordered_) return;
    if (low > high) low = high = 0;  // no finite score
    const double per_score = (kBuckets - 1) / (high > low ? high - low : 1.0);
    std::array<uint32_t, kBuckets> clusters{};
    std::array<int64_t, kBuckets> tokens{};
    for (int c = 0; c < n; ++c) {
      if (sizes[c] == 0) continue;
      // Clamped before the conversion: infinite scores land in the outer buckets.
      const double place = std::clamp((high - scores[c]) * per_score, 0.0, kBuckets - 1.0);
      const auto bucket = static_cast<uint8_t>(place);
      bucket_of[c] = bucket;
      ++clusters[bucket];
      tokens[bucket] += sizes[c];
    }
    std::array<uint32_t, kBuckets> next{};
    for (int b = 0; b < kBuckets; ++b) {
      next[b] = first_cluster_[b];
      first_cluster_[b + 1] = first_cluster_[b] + clusters[b];
      first_token_[b + 1] = first_token_[b] + tokens[b];
    }
    for (int c = 0; c < n; ++c) {
      if (sizes[c] != 0) order_[next[bucket_of[c]]++] = static_cast<uint32_t>(c);
    }
  }

  // Whether every score could be ordered.
  bool ordered() const { return ordered_; }
  int64_t num_tokens() const { return first_token_[kBuckets]; }
  // The members of clusters with score +inf: the first ranks.
  int64_t must_read() const { return must_read_; }

  // Calls f(cluster, begin, end) for every run of members [begin, end) of a cluster that holds
  // ranks [first, last), by rank. REQUIRES: ordered(), 0 <= first <= last <= num_tokens().
  template <class F>
  void Visit(int64_t first, int64_t last, const F& f) {
    int b = static_cast<int>(std::upper_bound(first_token_.begin(), first_token_.end(), first) -
                             first_token_.begin()) -
            1;
    for (; b < kBuckets && first_token_[b] < last; ++b) {
      Sort(b);
      int64_t rank = first_token_[b];
      for (uint32_t i = first_cluster_[b]; i < first_cluster_[b + 1] && rank < last; ++i) {
        const uint32_t c = order_[i];
        const int64_t begin = std::max<int64_t>(first - rank, 0);
        const int64_t end = std::min<int64_t>(last - rank, sizes_[c]);
        if (begin < end) f(c, static_cast<uint32_t>(begin), static_cast<uint32_t>(end));
        rank += sizes_[c];
      }
    }
  }

  // The set of ranks [0, last) in no particular order: calls f(cluster, members) with the first
  // `members` members of each.
  template <class F>
  void VisitPrefix(int64_t last, const F& f) {
    for (int b = 0; b < kBuckets && first_token_[b] < last; ++b) {
      const bool whole = first_token_[b + 1] <= last;
      if (!whole) Sort(b);
      int64_t left = last - first_token_[b];
      for (uint32_t i = first_cluster_[b]; i < first_cluster_[b + 1] && left > 0; ++i) {
        const uint32_t c = order_[i];
        f(c, static_cast<uint32_t>(std::min<int64_t>(left, sizes_[c])));
        left -= sizes_[c];
      }
    }
  }

 private:
  static constexpr int kBuckets = 256;

  void Sort(int b) {
    if (sorted_[b]) return;
    sorted_[b] = true;
    std::sort(order_ + first_cluster_[b], order_ + first_cluster_[b + 1],
              [this](uint32_t x, uint32_t y) {
                return scores_[x] > scores_[y] || (scores_[x] == scores_[y] && x < y);
              });
  }

  const float* scores_;
  const uint32_t* sizes_;
  uint32_t* order_;
  bool ordered_ = true;
  int64_t must_read_ = 0;
  std::array<uint32_t, kBuckets + 1> first_cluster_{};
  std::array<int64_t, kBuckets + 1> first_token_{};
  std::bitset<kBuckets> sorted_;
};

}  // namespace tactic

#endif  // TACTIC_SRC_CLUSTER_ORDER_H_
