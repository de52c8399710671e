#include "tactic/sequence_index.h"

#include <algorithm>
#include <string>

#include "src/check.h"
#include "src/cpu/kernels.h"
#include "src/encode.h"
#include "src/kmeans.h"
#include "src/random.h"
#include "src/segment.h"
#include "tactic/isa.h"

namespace tactic {
namespace {

Status BadRange(int64_t begin, int64_t end, int64_t size) {
  return Status::OutOfRange(
      "positions [" + std::to_string(begin) + ", " + std::to_string(end) +
      ") are not within the sequence; expected 0 <= begin <= end <= " + std::to_string(size));
}

// Room for clusters per segment and KV head.
int Slots(const Options& options) {
  int clusters = ClusterCount(options.MaxSegment(), options.cluster_size);
  if (options.mode == Mode::kTactic) {  // pages, too
    clusters = std::max(clusters, (options.MaxSegment() + Options::kPage - 1) / Options::kPage);
  }
  return (clusters + cpu::kCentroidLanes - 1) / cpu::kCentroidLanes * cpu::kCentroidLanes;
}

}  // namespace

SequenceIndex::SequenceIndex(const LayerShape& shape, const Options& options)
    : shape_(shape), options_(options), slots_(Slots(options)) {
  TACTIC_CHECK(shape.Validate().ok() && options.Validate().ok());
  (void)IsaStatus();  // applies TACTIC_FORCE_ISA before the first kernel runs; Plan reports a bad
                      // value
}

void SequenceIndex::Append(int64_t n) {
  TACTIC_CHECK(n >= 0);
  size_ += n;
}

Status SequenceIndex::Truncate(int64_t n) {
  if (n < 0 || n > size_) {
    return Status::OutOfRange("n is " + std::to_string(n) +
                              "; expected a number of positions from 0 to " +
                              std::to_string(size_));
  }
  return RemoveRange(n, size_);
}

Status SequenceIndex::RemoveRange(int64_t begin, int64_t end) {
  if (begin < 0 || begin > end || end > size_) return BadRange(begin, end, size_);
  if (begin == end) return Status::Ok();
  size_ -= end - begin;
  while (!segments_.empty() && (!segments_.back() || segments_.back()->end() > begin))
    segments_.pop_back();
  if (open_ && open_->end() > begin) open_ = nullptr;
  return Status::Ok();
}

Status SequenceIndex::Invalidate(int64_t begin, int64_t end) {
  if (begin < 0 || begin > end || end > size_) return BadRange(begin, end, size_);
  if (begin == end) return Status::Ok();
  const int64_t length = options_.MaxSegment();
  const int64_t last =
      std::min<int64_t>((end - 1) / length, static_cast<int64_t>(segments_.size()) - 1);
  for (int64_t j = begin / length; j <= last; ++j) segments_[j] = nullptr;
  if (open_ && open_->end() > begin && open_->first() < end) open_ = nullptr;
  return Status::Ok();
}

int SequenceIndex::PlanBuild(Building building) {
  pending_.clear();
  const int64_t closable = std::max<int64_t>(0, size_ - options_.recent);
  const int64_t length = options_.MaxSegment();
  int64_t end_of_all = closable / length * length;
  if (options_.segment_size == 0) {  // the last one grows in steps of the update interval
    end_of_all += closable % length / options_.update_interval * options_.update_interval;
  }
  for (int64_t j = 0; j * length < end_of_all; ++j) {
    const int64_t end = std::min((j + 1) * length, end_of_all);
    const int64_t first = std::max<int64_t>(j * length, options_.sinks);
    if (first >= end) continue;  // nothing but sinks
    if (j >= std::ssize(segments_)) segments_.resize(j + 1);
    if (segments_[j] && segments_[j]->end() == end && segments_[j]->Filled()) continue;
    pending_.push_back({j, std::make_shared<Segment>(first, end, shape_.kv_heads), nullptr});
    segments_[j] = pending_.back().segment;
  }
  if (options_.mode == Mode::kTactic && building == Building::kAll) PlanOpen(end_of_all);
  return static_cast<int>(pending_.size()) * shape_.kv_heads;
}

// The open segment follows the closed ones, which end at `closed`.
void SequenceIndex::PlanOpen(int64_t closed) {
  const int64_t first = std::max<int64_t>(closed, options_.sinks);
  const int64_t pages = std::max<int64_t>(0, size_ - options_.recent - first) / Options::kPage;
  const int64_t end = first + pages * Options::kPage;
  if (pages == 0) {
    open_ = nullptr;
    return;
  }
  const bool kept = open_ && open_->Filled() && open_->first() == first;
  if (kept && open_->end() == end) return;
  pending_.push_back({kOpen, std::make_shared<Segment>(first, end, shape_.kv_heads),
                      kept && open_->end() < end ? open_ : nullptr});
  open_ = pending_.back().segment;
}

void SequenceIndex::SetQueryNorms(std::span<const float> mean_squares) {
  TACTIC_CHECK(std::ssize(mean_squares) == shape_.kv_heads);
  query_norms_.assign(mean_squares.begin(), mean_squares.end());
}

void SequenceIndex::BuildUnit(int unit, const RowsView& keys, const RowsView& values,
                              std::span<const uint32_t> cells) {
  const Pending& pending = pending_[unit / shape_.kv_heads];
  const int kv_head = unit % shape_.kv_heads;
  Segment& segment = *pending.segment;
  Clusters* clusters = &segment.mutable_head(kv_head);
  const int64_t positions = segment.end() - segment.first();
  const auto own = cells.subspan(segment.first(), static_cast<size_t>(positions));
  const bool open = pending.ordinal == kOpen;
  if (options_.mode == Mode::kTactic && (open || options_.index == IndexKind::kPages)) {
    MakePages(positions, slots_, clusters);
  } else {
    // Every segment and head draws its own initial centroids, the same ones whenever it is rebuilt.
    const uint64_t seed =
        Random(options_.seed ^ (static_cast<uint64_t>(pending.ordinal) << 32 | kv_head)).Next();
    ClusterKeys(keys, kv_head, shape_.head_dim, own, options_, seed, slots_, clusters);
  }
  if (options_.mode == Mode::kTactic) {
    EncodeClusters({keys, values, kv_head, own}, shape_, options_,
                   query_norms_.empty() ? -1 : query_norms_[kv_head], slots_, open,
                   pending.previous ? &pending.previous->head(kv_head) : nullptr, clusters);
  }
  segment.CountFilled();
}

int SequenceIndex::UsableSegments(int64_t num_tokens) const {
  int usable = static_cast<int>(segments_.size());
  while (usable > 0 &&
         (!segments_[usable - 1] || segments_[usable - 1]->end() + options_.recent > num_tokens)) {
    --usable;
  }
  return usable;
}

int SequenceIndex::UsablePages(int64_t num_tokens) const {
  if (!open_) return 0;
  const int64_t end = std::min(open_->end(), num_tokens - options_.recent);
  return static_cast<int>(std::max<int64_t>(0, end - open_->first()) / Options::kPage);
}

size_t SequenceIndex::MemoryBytes() const {
  size_t bytes = segments_.capacity() * sizeof(segments_[0]);
  if (open_) bytes += open_->MemoryBytes();
  for (const auto& segment : segments_) {
    if (segment) bytes += segment->MemoryBytes();
  }
  return bytes;
}

}  // namespace tactic
