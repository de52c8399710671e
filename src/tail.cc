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

// Weights of the means of segment j, [group][slots + 1]: the unread mass of every scanned cluster;
// last, on the mean of all values, the mass of the skipped ones.
void MeanWeights(Step& step, int request, int kv_head, int64_t j, float* weights) {
  const RequestPlan& r = step.requests[request];
  const CodedSegment& segment = r.coded[j];
  const Clusters& clusters = segment.segment->head(kv_head);
  const int first = kv_head * step.group();
  const auto stride = static_cast<size_t>(step.slots) + 1;
  const uint8_t* kept = Kept(step, r, kv_head) + j * step.slots;
  const int count = std::min(segment.clusters, clusters.count);
  float half_variances[LayerShape::kMaxGroup];
  for (int g = 0; g < step.group(); ++g) {
    half_variances[g] =
        kCodeBooks[clusters.codes.bits].error * HeadOf(step, request, first + g).norm / 2;
  }
  std::fill_n(weights, stride * step.group(), 0.0f);
  cpu::UnreadMasses(
      {Keys(step, r, first) + segment.first_key, static_cast<size_t>(r.keys),
       clusters.codes.scales.data(), Read(step, r, kv_head) + segment.first_key / kKeyUnit,
       clusters.starts.data(), kept, count},
      step.group(), half_variances, weights, stride);
  for (int g = 0; g < step.group(); ++g) {
    float* of = weights + static_cast<size_t>(g) * stride;
    if (!HeadOf(step, request, first + g).tail) {
      std::fill_n(of, stride, 0.0f);
      continue;
    }
    const float* masses = Masses(step, r, first + g) + j * step.slots;
    of[step.slots] = cpu::SumMasses(masses, kept, static_cast<size_t>(step.slots)).skipped;
  }
}

void TailPart(Step& step, int request, int kv_head, int part, int thread) {
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
  float* const weights = step.scratch[thread].logits.data();
  const Share segments = step.Part(r, part);
  int64_t means = 0;
  for (int64_t j = segments.begin; j < segments.end; ++j) {
    const Clusters& clusters = r.coded[j].segment->head(kv_head);
    const int count = std::min(r.coded[j].clusters, clusters.count);
    const uint8_t* kept = Kept(step, r, kv_head) + j * step.slots;
    const auto scanned = std::count(kept, kept + count, uint8_t{1});
    means += scanned + (scanned < count ? 1 : 0);
    MeanWeights(step, request, kv_head, j, weights);
    const auto stride = static_cast<size_t>(step.slots) + 1;
    cpu::AddMeans(weights, stride, step.group(), clusters.codes.means.data(),
                  clusters.codes.mean_scales.data(), stride, dim, states, step.StateStride());
  }
  GroupOf(step, request, kv_head).means.fetch_add(means, std::memory_order_relaxed);
}

}  // namespace

void TailStage(Step& step, int thread) {
  ClaimParts(step, kTailUnits, [&](int request, int kv_head, int part) {
    TailPart(step, request, kv_head, part, thread);
  });
  AttendSelectedScored(step);
}

}  // namespace tactic
