#include "src/kmeans.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "src/check.h"
#include "src/cpu/kernels.h"
#include "src/half.h"
#include "src/random.h"

namespace tactic {
namespace {

// A mean of finite f32 keys may exceed what f16 holds; the largest half still ranks it first or
// last.
uint16_t CentroidHalf(double value) {
  constexpr double kLargestHalf = 65504.0;
  return FloatToHalf(static_cast<float>(std::clamp(value, -kLargestHalf, kLargestHalf)));
}

// Centroids as the assignment kernel reads them: [dim][padded], with half the squared norm of each.
class Centroids {
 public:
  Centroids(int dim, int padded)
      : dim_(dim),
        padded_(padded),
        columns_(static_cast<size_t>(dim) * padded),
        half_norms_(padded, std::numeric_limits<float>::infinity()) {}

  void Set(int c, const float* key) {
    double norm = 0;
    for (int i = 0; i < dim_; ++i) {
      columns_[static_cast<size_t>(i) * padded_ + c] = key[i];
      norm += static_cast<double>(key[i]) * key[i];
    }
    half_norms_[c] = static_cast<float>(norm / 2);
  }

  void Assign(const std::vector<float>& keys, std::vector<uint16_t>* labels) const {
    cpu::AssignNearest(keys.data(), labels->size(), dim_, columns_.data(), half_norms_.data(),
                       padded_, labels->data());
  }

 private:
  int dim_;
  int padded_;
  std::vector<float> columns_;
  std::vector<float> half_norms_;
};

// The middles of `count` even shares of [0, n).
std::vector<uint32_t> EvenlySpaced(size_t n, int count) {
  std::vector<uint32_t> at(count);
  for (int c = 0; c < count; ++c) {
    at[c] = static_cast<uint32_t>((2 * static_cast<size_t>(c) + 1) * n / (2 * count));
  }
  return at;
}

// Means of the members of every cluster, [count][dim]; sizes by the way. Sums in double: the order
// of thousands of terms must not show in the result.
void Means(const std::vector<float>& keys, int dim, const std::vector<uint16_t>& labels, int count,
           std::vector<double>* means, std::vector<uint32_t>* sizes) {
  means->assign(static_cast<size_t>(count) * dim, 0.0);
  sizes->assign(count, 0);
  for (size_t i = 0; i < labels.size(); ++i) {
    double* mean = means->data() + static_cast<size_t>(labels[i]) * dim;
    const float* key = keys.data() + i * dim;
    for (int x = 0; x < dim; ++x) mean[x] += key[x];
    ++(*sizes)[labels[i]];
  }
  for (int c = 0; c < count; ++c) {
    if ((*sizes)[c] == 0) continue;
    double* mean = means->data() + static_cast<size_t>(c) * dim;
    for (int x = 0; x < dim; ++x) mean[x] /= (*sizes)[c];
  }
}

}  // namespace

void ClusterKeys(const RowsView& view, int kv_head, int head_dim, std::span<const uint32_t> cells,
                 const Options& options, uint64_t seed, int slots, Clusters* out) {
  const size_t n = cells.size();
  const int count = ClusterCount(static_cast<int64_t>(n), options.cluster_size);
  TACTIC_CHECK(n >= 1 && n <= Options::kLargestSegment && count <= slots &&
               slots % cpu::kCentroidLanes == 0);

  std::vector<float> keys(n * head_dim);
  cpu::LoadRows({view.Head(kv_head), view.row_stride, view.type, head_dim}, cells.data(), n,
                keys.data());

  *out = Clusters();
  out->centroids.assign(static_cast<size_t>(head_dim) * slots, 0);
  out->starts.assign(slots + 1, static_cast<uint32_t>(n));
  out->starts[0] = 0;
  out->members.resize(n);
  if (!std::all_of(keys.begin(), keys.end(), [](float x) { return std::isfinite(x); })) {
    out->always = true;
    out->count = 1;
    std::iota(out->members.begin(), out->members.end(), static_cast<uint16_t>(0));
    return;
  }

  const int padded = (count + cpu::kCentroidLanes - 1) / cpu::kCentroidLanes * cpu::kCentroidLanes;
  Centroids centroids(head_dim, padded);
  const std::vector<uint32_t> initial =
      options.mode == Mode::kTactic
          ? EvenlySpaced(n, count)
          : SampleDistinct(static_cast<uint32_t>(n), static_cast<uint32_t>(count), seed);
  for (int c = 0; c < count; ++c)
    centroids.Set(c, keys.data() + static_cast<size_t>(initial[c]) * head_dim);

  std::vector<uint16_t> labels(n);
  std::vector<uint16_t> previous;
  std::vector<double> means;
  std::vector<uint32_t> sizes;
  std::vector<float> rounded(head_dim);
  for (int iteration = 0; iteration < options.kmeans_iterations; ++iteration) {
    centroids.Assign(keys, &labels);
    if (labels == previous) break;
    Means(keys, head_dim, labels, count, &means, &sizes);
    for (int c = 0; c < count; ++c) {
      if (sizes[c] == 0) continue;  // keeps its place: it may win keys back
      const double* mean = means.data() + static_cast<size_t>(c) * head_dim;
      for (int x = 0; x < head_dim; ++x) rounded[x] = static_cast<float>(mean[x]);
      centroids.Set(c, rounded.data());
    }
    previous = labels;
  }

  // `means` and `sizes` belong to `labels`: the last pass either computed them or changed nothing.
  std::vector<int> slot_of(count, -1);
  uint32_t start = 0;
  for (int c = 0; c < count; ++c) {
    if (sizes[c] == 0) continue;
    const int slot = out->count++;
    slot_of[c] = slot;
    out->starts[slot] = start;
    start += sizes[c];
    for (int x = 0; x < head_dim; ++x) {
      out->centroids[static_cast<size_t>(x) * slots + slot] =
          CentroidHalf(means[static_cast<size_t>(c) * head_dim + x]);
    }
  }
  std::vector<uint32_t> next(out->starts.begin(), out->starts.begin() + out->count);
  for (size_t i = 0; i < n; ++i)
    out->members[next[slot_of[labels[i]]]++] = static_cast<uint16_t>(i);
}

}  // namespace tactic
