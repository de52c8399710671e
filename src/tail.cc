// Stage attend of mode tactic: values of the rows that were read, and means of values for the rest.
//
// Unread members of a scanned cluster count with exp(estimated logit) on the mean of the cluster's
// values (without v / 2, which corrects the mean of an exponential and not this sum: measured a
// third less error); skipped clusters count with their estimated mass on the mean of their segment.
#include <algorithm>

#include "src/attend.h"
#include "src/coded_units.h"

namespace tactic {
namespace {

// weights[c] = mass of the unread members of cluster c, for one query head and segment.
void ClusterWeights(Step& step, int request, int q_head, int64_t j, float* weights) {
  constexpr uint32_t kWindow = 1024;
  alignas(64) float unread[kWindow];
  const RequestPlan& r = step.requests[request];
  const int kv_head = q_head / step.group();
  const CodedSegment& segment = r.coded[j];
  const Clusters& clusters = segment.segment->head(kv_head);
  const Codes& codes = clusters.codes;
  const uint8_t* kept = Kept(step, r, kv_head) + j * step.slots;
  const float* keys = Keys(step, r, q_head) + segment.first_key;
  const uint64_t* read = Read(step, r, kv_head) + segment.first_key / kKeyUnit;
  const float half_variance = kCodeBooks[codes.bits].error * HeadOf(step, request, q_head).norm / 2;
  const int count = std::min(segment.clusters, clusters.count);
  std::fill_n(weights, count, 0.0f);
  const auto coded = static_cast<uint32_t>(codes.scales.size());
  int c = 0;
  for (uint32_t begin = 0; begin < clusters.starts[count]; begin += kWindow) {
    const uint32_t end = std::min(coded, begin + kWindow);
    cpu::UnreadWeights(keys + begin, codes.scales.data() + begin, end - begin, half_variance,
                       read + begin / kKeyUnit, unread);
    for (; c < count && clusters.starts[c] < end; ++c) {
      const uint32_t last = std::min(end, clusters.starts[c + 1]);
      if (kept[c] != 0) {
        for (uint32_t i = std::max(begin, clusters.starts[c]); i < last; ++i)
          weights[c] += unread[i - begin];
      }
      if (clusters.starts[c + 1] > end) break;  // goes on in the next window
    }
  }
}

void TailPart(Step& step, int request, int kv_head, int part) {
  const RequestPlan& r = step.requests[request];
  const int first = kv_head * step.group();
  const int dim = step.shape.value_dim;
  const int slot = 2 * step.chunks + part;
  bool any = false;
  for (int g = 0; g < step.group(); ++g) any = any || HeadOf(step, request, first + g).tail;
  if (!any) return;
  float* states = step.States(request, kv_head, slot);
  step.Used(request, kv_head, slot) = 1;
  for (int g = 0; g < step.group(); ++g) {
    float* state = states + static_cast<size_t>(g) * step.StateStride();
    ClearState(state, dim);
    StateMax(state, dim) = HeadOf(step, request, first + g).reference;
  }
  float weights[Options::kLargestSegment / 32];
  const Share segments = step.Part(r, part);
  int64_t means = 0;
  for (int64_t j = segments.begin; j < segments.end; ++j) {
    const Clusters& clusters = r.coded[j].segment->head(kv_head);
    const int count = std::min(r.coded[j].clusters, clusters.count);
    const uint8_t* kept = Kept(step, r, kv_head) + j * step.slots;
    const auto scanned = std::count(kept, kept + count, uint8_t{1});
    means += scanned + (scanned < count ? 1 : 0);
    for (int g = 0; g < step.group(); ++g) {
      if (!HeadOf(step, request, first + g).tail) continue;
      float* state = states + static_cast<size_t>(g) * step.StateStride();
      const Codes& codes = clusters.codes;
      if (scanned > 0) {
        ClusterWeights(step, request, first + g, j, weights);
        cpu::AddMeans(weights, codes.means.data(), codes.mean_scales.data(),
                      static_cast<size_t>(count), dim, state);
      }
      const float* masses = Masses(step, r, first + g) + j * step.slots;
      float skipped = 0;
      for (int c = 0; c < count; ++c) skipped += kept[c] != 0 ? 0 : masses[c];
      cpu::AddMeans(&skipped, codes.means.data() + static_cast<size_t>(step.slots) * dim,
                    codes.mean_scales.data() + step.slots, 1, dim, state);
    }
  }
  GroupOf(step, request, kv_head).means.fetch_add(means, std::memory_order_relaxed);
}

}  // namespace

void TailStage(Step& step) {
  ClaimParts(step, kTailUnits,
             [&](int request, int kv_head, int part) { TailPart(step, request, kv_head, part); });
  AttendSelectedScored(step);
}

}  // namespace tactic
