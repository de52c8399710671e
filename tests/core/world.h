// World: sequences with indexed keys, requests for new tokens, and a decode step over them; what
// the oracle needs to judge it is read back from the storage and from the index.
#ifndef TACTIC_TESTS_CORE_WORLD_H_
#define TACTIC_TESTS_CORE_WORLD_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "gtest/gtest.h"
#include "src/half.h"
#include "src/reference/oracle.h"
#include "src/segment.h"
#include "tactic/decode.h"
#include "tactic/sequence_index.h"
#include "tactic/thread_team.h"
#include "tests/core/rows.h"

namespace tactic {

// How keys are drawn. Queries point at some key, so that attention has something to find.
enum class KeyKind {
  kClustered,    // around a few dozen centers
  kHeavyTailed,  // lengths log-normal: a few keys dominate
  kEqual,        // all the same
};

struct WorldSpec {
  LayerShape shape = {4, 1, 64, 64};
  Options options = Options::For(Mode::kPaper);
  DecodeParams params = {0.125f, 0, false};
  ElementType key_type = ElementType::kF16;
  ElementType value_type = ElementType::kF16;
  Layout layout = Layout::kCellMajor;
  KeyKind keys = KeyKind::kClustered;
  std::vector<int> lengths = {1000};  // of the sequences
  struct Token {
    int sequence = 0;
    int hidden = 0;  // so many of the newest positions are not visible
  };
  std::vector<Token> tokens = {{0, 0}};  // one request each
  uint32_t seed = 1;
};

class World {
 public:
  explicit World(const WorldSpec& spec) : spec_(spec), random_(spec.seed) {
    const int total = std::accumulate(spec.lengths.begin(), spec.lengths.end(), 0) + 7;
    const LayerShape& shape = spec.shape;
    keys_ = std::make_unique<Rows>(spec.key_type, shape.head_dim, shape.kv_heads, total, 1,
                                   spec.layout);
    values_ = std::make_unique<Rows>(spec.value_type, shape.value_dim, shape.kv_heads, total, 3,
                                     spec.layout);
    // Cells in no order, the sequences' mixed; seven belong to nobody and stay NaN.
    std::vector<uint32_t> cells(total);
    std::iota(cells.begin(), cells.end(), 0u);
    std::shuffle(cells.begin(), cells.end(), random_);
    auto next = cells.begin();
    for (int length : spec.lengths) {
      cells_.emplace_back(next, next + length);
      next += length;
      FillSequence(cells_.back());
      indexes_.push_back(std::make_unique<SequenceIndex>(shape, spec.options));
      indexes_.back()->Append(length);
      Build(static_cast<int>(indexes_.size()) - 1);
    }
    for (const WorldSpec::Token& token : spec.tokens) AddToken(token);
  }

  void Build(int sequence) {
    SequenceIndex& index = *indexes_[sequence];
    const int units = index.PlanBuild();
    for (int unit = 0; unit < units; ++unit) {
      index.BuildUnit(unit, keys_->View(), values_->View(), cells_[sequence]);
    }
  }

  // The requests, with pointers into this world; `dense` leaves the index out.
  std::vector<DecodeRequest> Requests(bool dense = false) {
    std::vector<DecodeRequest> requests;
    for (size_t i = 0; i < spec_.tokens.size(); ++i) {
      const WorldSpec::Token& token = spec_.tokens[i];
      DecodeRequest request;
      request.q = q_[i].data();
      request.q_stride = QStride();
      request.keys = keys_->View();
      request.values = values_->View();
      request.cells = Visible(static_cast<int>(i));
      request.index = dense ? nullptr : indexes_[token.sequence].get();
      request.out = out_[i].data();
      request.out_stride = OutStride();
      requests.push_back(request);
    }
    return requests;
  }

  // Plans and runs all phases. The output buffers hold NaN before.
  Status Run(int threads = 1, bool dense = false) {
    for (std::vector<float>& out : out_) std::fill(out.begin(), out.end(), std::nanf(""));
    const std::vector<DecodeRequest> requests = Requests(dense);
    TACTIC_RETURN_IF_ERROR(step_.Plan(spec_.shape, spec_.options, spec_.params, requests, threads));
    if (threads == 1) {
      step_.Run();
      return Status::Ok();
    }
    std::unique_ptr<ThreadTeam> team;
    TACTIC_RETURN_IF_ERROR(ThreadTeam::Create(threads, &team));
    RunStep(&step_, team.get());
    return Status::Ok();
  }

  // --- what happened ---

  const DecodeStep& step() const { return step_; }
  std::span<const float> Out(int request, int q_head) const {
    return std::span(out_[request])
        .subspan(q_head * OutStride(), static_cast<size_t>(spec_.shape.value_dim));
  }
  // All outputs, for comparing runs bit by bit.
  const std::vector<std::vector<float>>& outputs() const { return out_; }
  const HeadReport& Report(int request, int q_head) const {
    return step_.head_reports()[static_cast<size_t>(request) * spec_.shape.q_heads + q_head];
  }
  // Positions that were attended.
  std::vector<int64_t> Selected(int request, int kv_head) const {
    const std::vector<uint32_t>& cells = cells_[spec_.tokens[request].sequence];
    std::vector<int64_t> positions;
    for (uint32_t cell : step_.SelectedCells(request, kv_head)) {
      positions.push_back(std::find(cells.begin(), cells.end(), cell) - cells.begin());
    }
    return positions;
  }

  // --- what the oracle works on ---

  const WorldSpec& spec() const { return spec_; }
  WorldSpec& mutable_spec() { return spec_; }
  SequenceIndex& index(int sequence) { return *indexes_[sequence]; }
  const SequenceIndex& index(int sequence) const { return *indexes_[sequence]; }
  Rows& keys() { return *keys_; }
  Rows& values() { return *values_; }
  std::vector<float>& q(int request) { return q_[request]; }
  const std::vector<uint32_t>& cells(int sequence) const { return cells_[sequence]; }
  std::span<const uint32_t> Visible(int request) const {
    const WorldSpec::Token& token = spec_.tokens[request];
    const std::vector<uint32_t>& cells = cells_[token.sequence];
    return std::span(cells).first(cells.size() - static_cast<size_t>(token.hidden));
  }
  oracle::Row Query(int request, int q_head) const {
    const float* q = q_[request].data() + q_head * QStride();
    return {q, q + spec_.shape.head_dim};
  }
  oracle::Rows Keys(int request, int kv_head) const { return Decoded(*keys_, request, kv_head); }
  oracle::Rows Values(int request, int kv_head) const {
    return Decoded(*values_, request, kv_head);
  }

  // Clusters of the segments that the request may use, by segment, then number; `forced` becomes
  // every other visible position. A segment may be used when `recent` visible positions follow it.
  std::vector<oracle::Cluster> ClustersOf(int request, int kv_head,
                                          std::vector<int64_t>* forced) const {
    const SequenceIndex& index = *indexes_[spec_.tokens[request].sequence];
    const auto visible = static_cast<int64_t>(Visible(request).size());
    std::vector<bool> clustered(visible, false);
    std::vector<oracle::Cluster> clusters;
    const bool dense = spec_.options.mode == Mode::kDense || visible < spec_.options.dense_below;
    for (const auto& segment : index.segments()) {
      if (dense || !segment || segment->end() + spec_.options.recent > visible) continue;
      const Clusters& from = segment->head(kv_head);
      for (int c = 0; c < from.count; ++c) {
        oracle::Cluster cluster;
        for (int x = 0; x < spec_.shape.head_dim; ++x) {
          const size_t at = static_cast<size_t>(x) * index.slots() + c;
          cluster.centroid.push_back(HalfToFloat(from.centroids[at]));
        }
        for (uint32_t i = from.starts[c]; i < from.starts[c + 1]; ++i) {
          cluster.members.push_back(segment->first() + from.members[i]);
          clustered[cluster.members.back()] = true;
        }
        clusters.push_back(std::move(cluster));
      }
    }
    forced->clear();
    for (int64_t p = 0; p < visible; ++p) {
      if (!clustered[p]) forced->push_back(p);
    }
    return clusters;
  }

 private:
  size_t QStride() const { return static_cast<size_t>(spec_.shape.head_dim) + 4; }
  size_t OutStride() const { return static_cast<size_t>(spec_.shape.value_dim) + 1; }

  oracle::Rows Decoded(const Rows& rows, int request, int kv_head) const {
    oracle::Rows decoded;
    for (uint32_t cell : Visible(request)) decoded.push_back(rows.Get(cell, kv_head));
    return decoded;
  }

  void FillSequence(const std::vector<uint32_t>& cells) {
    const int dim = spec_.shape.head_dim;
    std::vector<std::vector<float>> centers;
    for (int c = 0; c < 40; ++c) centers.push_back(RandomRow(dim, random_));
    std::normal_distribution<float> normal;
    for (uint32_t cell : cells) {
      for (int h = 0; h < spec_.shape.kv_heads; ++h) {
        std::vector<float> key = RandomRow(dim, random_, 0.5f);
        const std::vector<float>& center = centers[random_() % centers.size()];
        const float length = std::exp(0.6f * normal(random_));
        for (int x = 0; x < dim; ++x) {
          if (spec_.keys == KeyKind::kClustered) key[x] += center[x];
          if (spec_.keys == KeyKind::kHeavyTailed) key[x] *= length;
          if (spec_.keys == KeyKind::kEqual) key[x] = centers[h][x];
        }
        keys_->Set(cell, h, key);
        values_->Set(cell, h, RandomRow(spec_.shape.value_dim, random_));
      }
    }
  }

  void AddToken(const WorldSpec::Token& token) {
    const LayerShape& shape = spec_.shape;
    std::vector<float> q((shape.q_heads - 1) * QStride() + shape.head_dim, std::nanf(""));
    const std::vector<uint32_t>& cells = cells_[token.sequence];
    for (int h = 0; h < shape.q_heads; ++h) {
      std::vector<float> head = RandomRow(shape.head_dim, random_);
      if (!cells.empty()) {
        const oracle::Row key = keys_->Get(cells[random_() % cells.size()], h / shape.group());
        for (int x = 0; x < shape.head_dim; ++x) head[x] += 2 * static_cast<float>(key[x]);
      }
      std::copy(head.begin(), head.end(), q.begin() + static_cast<ptrdiff_t>(h * QStride()));
    }
    q_.push_back(std::move(q));
    out_.emplace_back((shape.q_heads - 1) * OutStride() + shape.value_dim);
  }

  WorldSpec spec_;
  std::mt19937 random_;
  std::unique_ptr<Rows> keys_;
  std::unique_ptr<Rows> values_;
  std::vector<std::vector<uint32_t>> cells_;  // [sequence][position]
  std::vector<std::unique_ptr<SequenceIndex>> indexes_;
  std::vector<std::vector<float>> q_;    // [request]
  std::vector<std::vector<float>> out_;  // [request]
  DecodeStep step_;
};

}  // namespace tactic

#endif  // TACTIC_TESTS_CORE_WORLD_H_
