// Stage budget of mode tactic: estimated logits of all members of the clusters that were kept,
// then, for each query head, how far down their order it has to read.
#include <algorithm>
#include <cmath>

#include "src/coded_units.h"
#include "src/recount.h"

namespace tactic {
namespace {

// Lists the blocks that hold members of kept clusters of one segment. Returns the end of the list.
uint32_t* ListBlocks(Step& step, const RequestPlan& r, int kv_head, int64_t j, uint32_t* list) {
  const CodedSegment& segment = r.coded[j];
  const Clusters& clusters = segment.segment->head(kv_head);
  const int64_t base = j * step.slots;
  const uint8_t* kept = Kept(step, r, kv_head) + base;
  const int count = std::min(segment.clusters, clusters.count);
  const auto first_block = static_cast<uint32_t>(segment.first_key / kCodeBlock);
  uint32_t next = first_block;  // the first block that is not in the list yet
  for (int c = 0; c < count; ++c) {
    if (kept[c] == 0) continue;
    next = std::max(next, first_block + clusters.starts[c] / kCodeBlock);
    const uint32_t end = first_block + (clusters.starts[c + 1] + kCodeBlock - 1) / kCodeBlock;
    while (next < end) *list++ = next++;
  }
  return list;
}

// Scores of their centroids for all keys of one segment, -inf for those that are skipped: [group]
// rows in the thread's scratch. Returns the distance of rows.
size_t SpreadSegment(Step& step, const RequestPlan& r, int kv_head, int64_t j, float* scores) {
  const CodedSegment& segment = r.coded[j];
  const Clusters& clusters = segment.segment->head(kv_head);
  const int count = std::min(segment.clusters, clusters.count);
  const int64_t base = j * step.slots;
  const size_t padded = (clusters.starts[count] + kCodeBlock - 1) / kCodeBlock * kCodeBlock;
  for (int g = 0; g < step.group(); ++g) {
    cpu::SpreadScores(clusters.starts.data(), Kept(step, r, kv_head) + base, count,
                      step.Scores(r, kv_head * step.group() + g) + base,
                      scores + static_cast<size_t>(g) * (padded + kCodeBlock));
  }
  return padded + kCodeBlock;
}

void ScanPart(Step& step, int request, int kv_head, int part, int thread) {
  const RequestPlan& r = step.requests[request];
  CodedGroup& group = GroupOf(step, request, kv_head);
  const int first = kv_head * step.group();
  const Share keys = PartKeys(step, r, part);
  float* sums = step.coded.sums.data() + PartSlot(step, request, kv_head, part, 0);
  cpu::MassBins* bins = step.coded.bins.data() + PartSlot(step, request, kv_head, part, 0);
  std::fill_n(sums, step.group(), 0.0f);
  std::fill_n(Read(step, r, kv_head) + keys.begin / kKeyUnit, (keys.end - keys.begin) / kKeyUnit,
              uint64_t{0});
  BlockCount(step, request, kv_head, part) = 0;
  if (group.everything) return;
  std::fill_n(reinterpret_cast<uint8_t*>(bins), sizeof(*bins) * step.group(), uint8_t{0});
  cpu::CodeQuery queries[LayerShape::kMaxGroup];
  const Share segments = step.Part(r, part);
  uint32_t* const list = Blocks(step, r, kv_head) + keys.begin / kCodeBlock;
  uint32_t* end = list;
  int64_t bytes = 0;
  for (int64_t j = segments.begin; j < segments.end; ++j) {
    const Codes& codes = r.coded[j].segment->head(kv_head).codes;
    uint32_t* const begin = end;
    end = ListBlocks(step, r, kv_head, j, begin);
    if (begin == end) continue;
    const auto count = static_cast<size_t>(end - begin);
    bytes += static_cast<int64_t>(count *
                                  (CodeBlockBytes(step.shape.head_dim, codes.bits) + kCodeBlock));
    for (int g = 0; g < step.group(); ++g) {
      const CodedHead& head = HeadOf(step, request, first + g);
      queries[g] = head.query;
      queries[g].half_variance = kCodeBooks[codes.bits].error * head.norm / 2;
      queries[g].floor = head.floor;
    }
    float* const scores = step.scratch[thread].scores.data();
    const size_t score_stride = SpreadSegment(step, r, kv_head, j, scores);
    cpu::ScanCodes({codes.planes.data(), codes.scales.data(), codes.bits, step.shape.head_dim},
                   queries, step.group(), step.params.softcap, begin, count,
                   static_cast<uint32_t>(r.coded[j].first_key / kCodeBlock), scores, score_stride,
                   Keys(step, r, first), static_cast<size_t>(r.keys), sums, bins);
  }
  BlockCount(step, request, kv_head, part) = static_cast<uint32_t>(end - list);
  group.scanned.fetch_add(bytes, std::memory_order_relaxed);
}

// Code error of a query head over all codes, in logits.
double CodeError(const RequestPlan& r, int kv_head, float norm) {
  double squares = 0;
  double tokens = 0;
  for (const CodedSegment& segment : r.coded) {
    const auto n = static_cast<double>(segment.tokens);
    squares += n * segment.segment->head(kv_head).codes.error;
    tokens += n;
  }
  return std::sqrt(squares / tokens * norm);
}

void FindThresholds(Step& step, int request, int kv_head) {
  const RequestPlan& r = step.requests[request];
  CodedGroup& group = GroupOf(step, request, kv_head);
  const int first = kv_head * step.group();
  const auto tokens = static_cast<double>(std::ssize(r.request.cells));
  double most = 0;  // rows that some head reads
  for (int g = 0; g < step.group() && !group.everything; ++g) {
    CodedHead& head = HeadOf(step, request, first + g);
    cpu::MassBins* bins = step.coded.bins.data() + PartSlot(step, request, kv_head, 0, g);
    head.total = step.coded.sums[PartSlot(step, request, kv_head, 0, g)];
    for (int part = 1; part < r.parts; ++part) {
      const int64_t slot = PartSlot(step, request, kv_head, part, g);
      head.total += step.coded.sums[slot];
      const cpu::MassBins& more = step.coded.bins[slot];
      for (int b = 0; b < cpu::kMassBins; ++b) {
        bins->mass[b] += more.mass[b];
        bins->count[b] += more.count[b];
      }
    }
    if (!std::isfinite(head.total)) group.everything = true;
    const double unread = Unread(step.options, head, 0);
    double& code_error = step.reports[step.Query(request, first + g)].code_error;
    code_error = CodeError(r, kv_head, head.norm);
    const double need = EstimatedMassFor(step.options, head.fixed, unread, FirstRatio(code_error));
    const Threshold threshold = ThresholdFor(step, request, kv_head, g, need);
    head.threshold = threshold.key;
    head.range = {threshold.key, kNoKey};
    head.exact = head.fixed;
    head.estimated = 0;
    head.rows = 0;
    const double rows = threshold.key == kEveryKey ? tokens : threshold.rows;
    most = std::max(most, rows);
  }
  const bool all =
      most + static_cast<double>(std::ssize(r.forced)) > step.options.dense_share * tokens;
  if (all) group.everything = true;
}

}  // namespace

void ScanStage(Step& step, int thread) {
  ClaimParts(step, kScanUnits, [&](int request, int kv_head, int part) {
    ScanPart(step, request, kv_head, part, thread);
    if (LastUnit(step, kScanUnits, request, kv_head)) FindThresholds(step, request, kv_head);
  });
}

}  // namespace tactic
