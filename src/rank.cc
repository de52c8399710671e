// Stage rank: q . centroid for every cluster, and attention over the rows that are read whatever
// the query. The latter comes first because its mass is needed to say how much is missing, and no
// key is read twice.
#include <limits>

#include "src/attend.h"
#include "src/segment.h"
#include "src/step.h"

namespace tactic {
namespace {

// Centroid scores of the query heads of one KV head over the segments of one part.
void ScorePart(Step& step, const RequestPlan& r, int kv_head, int part) {
  const int group = step.group();
  const cpu::QueryHeads queries = step.Queries(r, kv_head * group, group);
  float* scores = step.Scores(r, kv_head * group);
  uint32_t* sizes = step.Sizes(r, kv_head);
  const Share segments = step.Part(r, part);
  for (int64_t j = segments.begin; j < segments.end; ++j) {
    const int64_t base = j * step.slots;
    if (!r.segments[j]) {
      for (int c = 0; c < step.slots; ++c) sizes[base + c] = 0;
      continue;
    }
    const Clusters& clusters = r.segments[j]->head(kv_head);
    cpu::ScoreCentroids(queries, step.shape.head_dim, clusters.centroids.data(), step.slots,
                        scores + base, static_cast<size_t>(r.clusters));
    for (int c = 0; c < step.slots; ++c) sizes[base + c] = clusters.Size(c);
    if (clusters.always) {
      for (int g = 0; g < group; ++g)
        scores[g * r.clusters + base] = std::numeric_limits<float>::infinity();
    }
  }
}

}  // namespace

void RankStage(Step& step, int thread) {
  while (AttendForcedChunk(step)) {
  }
  ForParts(step, thread, [&](int request, int kv_head, int part) {
    ScorePart(step, step.requests[request], kv_head, part);
  });
}

}  // namespace tactic
