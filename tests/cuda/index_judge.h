// Judges what an index stores against the specification in double precision.
//
// Every stage is judged given what the stage before it stored: members, then centroids of these
// members, then residuals to these centroids. Numbers on the device are f32: where a rounding or a
// choice is within kSlack of its boundary, either side is right.
#ifndef TACTIC_TESTS_CUDA_INDEX_JUDGE_H_
#define TACTIC_TESTS_CUDA_INDEX_JUDGE_H_

#include <algorithm>
#include <cmath>
#include <vector>

#include "src/reference/oracle_codes.h"
#include "tactic/options.h"
#include "tests/core/read_level.h"
#include "tests/cuda/index_world.h"

namespace tactic::cuda {

constexpr double kSlack = 1e-4;      // relative
constexpr double kByteSlack = 2e-3;  // of a byte

inline bool IsByteFloatOf(uint8_t byte, double x) {
  const double stored = ByteToFloat(byte);
  return stored >= oracle::ByteFloat(x * (1 - kSlack)) &&
         stored <= oracle::ByteFloat(x * (1 + kSlack));
}

// One KV head. `rows` of the layer: [position][dim].
struct HeadRows {
  oracle::Rows keys;
  oracle::Rows values;
};

class IndexJudge {
 public:
  // Of keys, one in `stride` has its code judged: the rotation of the oracle is slow.
  IndexJudge(const Stored& stored, int stride)
      : stored_(stored), view_(stored.view), stride_(stride) {}

  void JudgeHead(int head, const HeadRows& rows) {
    head_ = head;
    rows_ = &rows;
    for (segment_ = 0; segment_ < view_.closed; ++segment_)
      JudgeSegment(view_.slots, view_.segment_size);
    if (view_.pages > 0) JudgeSegment(view_.pages, view_.pages * Options::kPage);
  }

  // Positions of a cluster, as stored.
  std::vector<int64_t> Members(int head, int segment, int cluster) const {
    const uint16_t* starts = stored_.starts.data() + stored_.At(head, segment, view_.slots + 1);
    const uint16_t* members =
        stored_.members.data() + stored_.At(head, segment, view_.segment_size);
    std::vector<int64_t> positions;
    for (int i = starts[cluster]; i < starts[cluster + 1]; ++i)
      positions.push_back(int64_t{segment} * view_.segment_size + members[i]);
    return positions;
  }

  // Choices of a level that were too close to call, of how many.
  long close() const { return close_; }
  long elements() const { return elements_; }

 private:
  using Row = oracle::Row;

  // Positions [lead, length) of the segment are members of the first `clusters` clusters.
  void JudgeSegment(int clusters, int length) {
    const int lead = std::min(length, std::max(0, view_.sinks - segment_ * view_.segment_size));
    const uint16_t* starts = stored_.starts.data() + stored_.At(head_, segment_, view_.slots + 1);
    const bool pages = segment_ == view_.closed;
    std::vector<int> seen(length, 0);
    bool ascending = true;
    bool first_ones = true;  // clusters without members come last
    for (int c = 0; c < clusters; ++c) {
      const auto positions = Members(head_, segment_, c);
      ascending = ascending && std::is_sorted(positions.begin(), positions.end());
      if (c > 0 && !pages)
        first_ones = first_ones && (positions.empty() || starts[c] > starts[c - 1]);
      for (int64_t p : positions) {
        const int64_t offset = p - int64_t{segment_} * view_.segment_size;
        if (offset < length) ++seen[offset];
      }
      if (!positions.empty()) JudgeCluster(c, positions);
    }
    bool each_once = true;
    for (int i = 0; i < length; ++i) each_once = each_once && seen[i] == (i >= lead ? 1 : 0);
    CHECK(starts[0] == 0 && starts[clusters] == length - lead, "head %d segment %d: %d members",
          head_, segment_, starts[clusters]);
    for (int c = clusters; c <= view_.slots; ++c)
      CHECK(starts[c] == length - lead, "head %d segment %d slot %d", head_, segment_, c);
    CHECK(ascending, "head %d segment %d", head_, segment_);
    CHECK(first_ones, "head %d segment %d", head_, segment_);
    CHECK(each_once, "head %d segment %d", head_, segment_);
    if (view_.bits == 0) return;
    JudgePadding(length - lead);
    JudgeSegmentMean(clusters, starts);
  }

  // Whether `bytes` times the f16 step are `exact`.
  void JudgeBytes(const Row& exact, double largest, const int8_t* bytes, uint16_t scale,
                  const char* what) {
    double most = 0;
    for (double x : exact) most = std::max(most, std::fabs(x));
    const double step = HalfToFloat(scale);
    const double error = 1e-6 * largest;  // of the sum, in f32
    CHECK(step * 127 >= most - error && step <= (most + error) / 127 * (1 + 0x1p-10) + 0x1p-24,
          "%s: a step of %g for %g", what, step, most);
    double worst = 0;
    for (size_t x = 0; x < exact.size(); ++x)
      worst = std::max(worst, std::fabs(bytes[x] * step - exact[x]) - error);
    CHECK(worst <= (0.5 + kByteSlack) * step, "%s: off by %g of a step of %g", what, worst, step);
  }

  Row MeanOf(const oracle::Rows& rows, const std::vector<int64_t>& positions, double* largest) {
    Row mean(view_.head_dim, 0.0);
    *largest = 0;
    for (int64_t p : positions) {
      for (int x = 0; x < view_.head_dim; ++x) {
        mean[x] += rows[p][x];
        *largest = std::max(*largest, std::fabs(rows[p][x]));
      }
    }
    for (double& x : mean) x /= static_cast<double>(positions.size());
    return mean;
  }

  void JudgeCluster(int c, const std::vector<int64_t>& positions) {
    const size_t slot = stored_.At(head_, segment_, view_.slots) + c;
    const int8_t* bytes = stored_.centroids.data() + slot * view_.head_dim;
    const ClusterFacts& facts = stored_.facts[slot];
    double largest;
    const Row mean = MeanOf(rows_->keys, positions, &largest);
    JudgeBytes(mean, largest, bytes, facts.scale, "centroid");
    if (view_.bits == 0) return;
    const size_t mean_slot = stored_.At(head_, segment_, view_.slots + 1) + c;
    const Row of_values = MeanOf(rows_->values, positions, &largest);
    JudgeBytes(of_values, largest, stored_.means.data() + mean_slot * view_.head_dim,
               stored_.mean_scales[mean_slot], "mean of values");

    const int dim = view_.head_dim;
    const double step = HalfToFloat(facts.scale);
    const uint16_t* starts = stored_.starts.data() + stored_.At(head_, segment_, view_.slots + 1);
    Row runs(kRuns, 0.0);
    double longest = 0;
    double all = 0;
    for (size_t i = 0; i < positions.size(); ++i) {
      Row residual(dim);
      for (int x = 0; x < dim; ++x) {
        residual[x] = rows_->keys[positions[i]][x] - step * bytes[x];
        runs[x * kRuns / dim] += residual[x] * residual[x];
      }
      const double square = oracle::Dot(residual, residual);
      longest = std::max(longest, square);
      all += square;
      if (positions[i] % stride_ == 0) JudgeCode(starts[c] + static_cast<int>(i), residual);
    }
    const auto size = static_cast<double>(positions.size());
    bool spreads = true;
    for (int r = 0; r < kRuns; ++r) {
      const double spread = std::sqrt(runs[r] / (size * dim / kRuns));
      spreads = spreads && IsByteFloatOf(facts.spreads[r], spread);
    }
    CHECK(spreads, "head %d segment %d cluster %d of %g", head_, segment_, c, size);
    CHECK(IsByteFloatOf(facts.longest, all > 0 ? std::sqrt(longest / (all / size)) : 1),
          "head %d segment %d cluster %d: %g", head_, segment_, c, ByteToFloat(facts.longest));
  }

  const uint8_t* Block(int key) const {
    const size_t first = stored_.At(head_, segment_, view_.segment_size);
    return stored_.codes.data() +
           (first + key) / kCodeBlock * CodeBlockBytes(view_.head_dim, view_.bits);
  }

  void JudgeCode(int key, const Row& residual) {
    const oracle::Code code = oracle::EncodeResidual(residual, view_.bits);
    const Row y = oracle::Rotated(residual);
    const double square = oracle::Dot(y, y);
    const double rms = std::sqrt(square / static_cast<double>(y.size()));
    const auto& boundaries = oracle::QuantiserOf(view_.bits).boundary;
    Row levels;
    bool right = true;
    for (int x = 0; x < view_.head_dim; ++x) {
      levels.push_back(ReadLevel(Block(key), view_.head_dim, view_.bits, key % kCodeBlock, x));
      ++elements_;
      if (levels[x] == code.levels[x]) continue;
      bool near = std::fabs(y[x]) <= kSlack * rms;
      for (double b : boundaries)
        near = near || std::fabs(std::fabs(y[x]) - b * rms) <= kSlack * rms;
      ++close_;
      right = right && near;
    }
    CHECK(right, "code of head %d segment %d key %d", head_, segment_, key);
    const double along = oracle::Dot(y, levels);
    const uint8_t scale = stored_.key_scales[stored_.At(head_, segment_, view_.segment_size) + key];
    CHECK(IsByteFloatOf(scale, along > 0 ? square / along : 0),
          "scale of head %d segment %d key %d: %g for %g", head_, segment_, key, ByteToFloat(scale),
          square / along);
  }

  void JudgePadding(int keys) {
    bool zero = true;
    for (int key = keys; key % kCodeBlock != 0; ++key) {
      zero = zero && stored_.key_scales[stored_.At(head_, segment_, view_.segment_size) + key] == 0;
      for (size_t row = 0; row < CodeRows(view_.head_dim, view_.bits); ++row) {
        for (int j = 0; j < 4; ++j)
          zero = zero && Block(key)[row * kCodeRow + 4 * (key % kCodeBlock) + j] == 0;
      }
    }
    CHECK(zero, "head %d segment %d", head_, segment_);
  }

  void JudgeSegmentMean(int clusters, const uint16_t* starts) {
    const size_t slot = stored_.At(head_, segment_, view_.slots + 1);
    Row mean(view_.head_dim, 0.0);
    double largest = 0;
    if (starts[clusters] == 0) return;
    for (int c = 0; c < clusters; ++c) {
      const double step = HalfToFloat(stored_.mean_scales[slot + c]);
      largest = std::max(largest, step * 127);
      for (int x = 0; x < view_.head_dim; ++x) {
        mean[x] += step * stored_.means[(slot + c) * view_.head_dim + x] *
                   (starts[c + 1] - starts[c]) / starts[clusters];
      }
    }
    JudgeBytes(mean, largest, stored_.means.data() + (slot + view_.slots) * view_.head_dim,
               stored_.mean_scales[slot + view_.slots], "mean of all values");
    double squares = 0;
    for (int i = 0; i < starts[clusters]; ++i)
      squares += std::pow(
          ByteToFloat(stored_.key_scales[stored_.At(head_, segment_, view_.segment_size) + i]), 2);
    const double error = oracle::ElementError(view_.bits) * squares / starts[clusters];
    CHECK(std::fabs(stored_.errors[stored_.At(head_, segment_, 1)] - error) <= 1e-4 * error,
          "head %d segment %d", head_, segment_);
  }

  const Stored& stored_;
  const DeviceIndex& view_;
  const int stride_;
  const HeadRows* rows_ = nullptr;
  int head_ = 0;
  int segment_ = 0;
  long close_ = 0;
  long elements_ = 0;
};

}  // namespace tactic::cuda

#endif  // TACTIC_TESTS_CUDA_INDEX_JUDGE_H_
