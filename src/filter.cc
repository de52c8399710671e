// Stage rank of mode tactic: scores of all clusters, attention over the forced rows, then, for each
// KV head, which clusters can be left out (docs/algorithm.md).
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/attend.h"
#include "src/code_query.h"
#include "src/coded_units.h"
#include "src/mass.h"

namespace tactic {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Logs of the numbers of members; -inf for empty slots and for pages that may not be used yet.
void LogSizes(const CodedSegment& segment, int kv_head, int slots, float* out) {
  constexpr uint32_t kCommon = 256;
  static const auto* const logs = [] {
    static float table[kCommon];
    for (uint32_t n = 0; n < kCommon; ++n) table[n] = std::log(static_cast<float>(n));
    return table;
  }();
  const Clusters& clusters = segment.segment->head(kv_head);
  for (int c = 0; c < slots; ++c) {
    const uint32_t size = c < segment.clusters && c < clusters.count ? clusters.Size(c) : 0;
    out[c] = size < kCommon ? logs[size] : std::log(static_cast<float>(size));
  }
}

void ScorePart(Step& step, int request, int kv_head, int part, int thread) {
  const RequestPlan& r = step.requests[request];
  const int group = step.group();
  const int first = kv_head * group;
  const cpu::QueryHeads heads = step.Queries(r, first, group);
  float energy[LayerShape::kMaxGroup][Codes::kRuns];
  int32_t parts[LayerShape::kMaxGroup][LayerShape::kMaxDim / 2];
  cpu::CentroidQuery queries[LayerShape::kMaxGroup];
  const int dim = step.shape.head_dim;
  for (int g = 0; g < group; ++g) {
    const float* q = heads.q + g * heads.stride;
    for (int run = 0, x = 0; run < Codes::kRuns; ++run) {
      float sum = 0;
      for (; x * Codes::kRuns < (run + 1) * dim; ++x) {
        const float scaled = q[x] * heads.scale;
        sum += scaled * scaled;
      }
      energy[g][run] = sum;
    }
    queries[g] = SplitQuery(q, dim, heads.scale, parts[g]);
  }
  std::vector<float>& log_sizes = step.scratch[thread].logits;
  const Share segments = step.Part(r, part);
  for (int64_t j = segments.begin; j < segments.end; ++j) {
    const Codes& codes = r.coded[j].segment->head(kv_head).codes;
    const int64_t base = j * step.slots;
    cpu::ScoreByteCentroids(queries, group, dim, codes.centroids.data(),
                            codes.centroid_scales.data(), step.slots, step.Scores(r, first) + base,
                            static_cast<size_t>(r.clusters));
    LogSizes(r.coded[j], kv_head, step.slots, log_sizes.data());
    const cpu::ClusterFacts facts = {codes.spreads.data(), log_sizes.data(), step.slots};
    for (int g = 0; g < group; ++g) {
      float* masses = Masses(step, r, first + g) + base;
      float* floors = masses - step.coded.masses.data() + step.coded.floors.data();
      float* tokens = masses - step.coded.masses.data() + step.coded.tokens.data();
      cpu::EstimateClusters(facts, step.Scores(r, first + g) + base, energy[g], dim,
                            step.params.softcap, masses, floors, tokens);
    }
  }
}

// The largest x for which the masses of at most x add up to at most `budget`.
float LargestSkipped(const float* masses, int64_t n, double budget) {
  const auto count = static_cast<size_t>(n);
  auto high = static_cast<float>(budget);
  if (!(high > 0)) return -1;
  if (cpu::SumUpTo(masses, count, high) <= budget) return high;
  float low = high * 0x1p-24f;  // not one of a million such would matter
  constexpr int kSteps = 12;
  for (int i = 0; i < kSteps; ++i) {
    const float middle = std::sqrt(low) * std::sqrt(high);
    (cpu::SumUpTo(masses, count, middle) <= budget ? low : high) = middle;
  }
  return low;
}

// The query as the codes are scanned with.
void PrepareQuery(Step& step, int request, int q_head, CodedHead* head) {
  const RequestPlan& r = step.requests[request];
  const int dim = step.shape.head_dim;
  int32_t* packed =
      step.coded.packed.data() + step.Query(request, q_head) * (CodeQueryDim(dim) / 4);
  head->query = PackQuery(r.request.q + q_head * r.request.q_stride, dim, step.params.scale, packed,
                          &head->norm);
  head->query.reference = head->reference;
}

// A head's masses relative to its reference; false when something is not finite.
bool Estimate(Step& step, int request, int q_head, double* at_least) {
  const RequestPlan& r = step.requests[request];
  CodedHead& head = HeadOf(step, request, q_head);
  float* masses = Masses(step, r, q_head);
  float* floors = masses - step.coded.masses.data() + step.coded.floors.data();
  const auto n = static_cast<size_t>(r.clusters);
  const Mass forced = ForcedMass(step, request, q_head);
  float most = forced.max;
  if (std::isnan(forced.max) || !std::isfinite(forced.sum)) return false;
  if (!cpu::LargestMass(masses, n, &most) || !std::isfinite(most)) return false;
  head.reference = most;
  head.fixed = forced.sum * std::exp(static_cast<double>(forced.max) - most);
  cpu::ExpShifted(masses, n, most);
  cpu::ExpShifted(floors, n, most);
  *at_least = head.fixed + cpu::SumUpTo(floors, n, kInf);
  return true;
}

// Marks what query head `q_head` cannot leave out.
void Keep(Step& step, const RequestPlan& r, int q_head, const CodedHead& head, double at_least,
          uint8_t* kept) {
  const double rest = (1 - step.options.target) * at_least;
  const float* masses = Masses(step, r, q_head);
  const float* tokens = masses - step.coded.masses.data() + step.coded.tokens.data();
  const float mass = LargestSkipped(masses, r.clusters, step.options.skip_share * rest);
  const auto token = static_cast<float>(std::log(step.options.skip_token * rest) + head.reference);
  cpu::KeepClusters(masses, tokens, static_cast<size_t>(r.clusters), mass, token, kept);
}

void FilterGroup(Step& step, int request, int kv_head) {
  const RequestPlan& r = step.requests[request];
  CodedGroup& group = GroupOf(step, request, kv_head);
  uint8_t* kept = Kept(step, r, kv_head);
  std::fill_n(kept, r.clusters, uint8_t{0});
  double at_least[LayerShape::kMaxGroup];
  int64_t members = 0;  // of kept clusters
  const int first = kv_head * step.group();
  for (int g = 0; g < step.group(); ++g) {
    if (!Estimate(step, request, first + g, &at_least[g])) group.everything = true;
  }
  for (int64_t j = 0; j < std::ssize(r.coded); ++j) {
    const CodedSegment& segment = r.coded[j];
    const int clusters = std::min(segment.clusters, segment.segment->head(kv_head).count);
    group.scored += clusters;
    if (segment.pages) std::fill_n(kept + j * step.slots, clusters, uint8_t{1});
  }
  if (step.options.target >= 1) group.everything = true;
  if (group.everything) return;
  for (int g = 0; g < step.group(); ++g)
    Keep(step, r, first + g, HeadOf(step, request, first + g), at_least[g], kept);
  // An empty slot has mass 0 and is not kept by the first clause, but P = 1 keeps all by the
  // second.
  for (int64_t j = 0; j < std::ssize(r.coded); ++j) {
    const int clusters = std::min(r.coded[j].clusters, r.coded[j].segment->head(kv_head).count);
    std::fill(kept + j * step.slots + clusters, kept + (j + 1) * step.slots, uint8_t{0});
    const Clusters& of = r.coded[j].segment->head(kv_head);
    for (int c = 0; c < clusters; ++c) members += kept[j * step.slots + c] != 0 ? of.Size(c) : 0;
  }
  for (int g = 0; g < step.group(); ++g) {
    CodedHead& head = HeadOf(step, request, first + g);
    const cpu::MassSums sums =
        cpu::SumMasses(Masses(step, r, first + g), kept, static_cast<size_t>(r.clusters));
    const double all = head.fixed + sums.all;
    head.skipped = sums.skipped;
    // Keys below have no more than what may stay unread if all is as estimated, whatever their
    // number; where it is not, they are counted after all (Recount: measured in 0.04 % of
    // selections).
    constexpr double kShareBelow = 1;
    const double below = kShareBelow * (1 - step.options.target) * all /
                         static_cast<double>(std::max<int64_t>(1, members));
    const double level = (std::log(below) - cpu::kLowestKey) * cpu::kKeyLevels;
    head.floor = static_cast<uint32_t>(std::clamp<double>(level, kEveryKey, cpu::kLastKey));
    PrepareQuery(step, request, first + g, &head);
  }
}

}  // namespace

void FilterStage(Step& step, int thread) {
  const auto done = [&](int request, int kv_head) {
    if (LastUnit(step, kFilterUnits, request, kv_head)) FilterGroup(step, request, kv_head);
  };
  while (AttendForcedChunk(step)) {
    for (int request = 0; request < step.num_requests(); ++request) {
      for (int h = 0; h < step.shape.kv_heads && !step.requests[request].coded.empty(); ++h)
        done(request, h);
    }
  }
  ClaimParts(step, kFilterUnits, [&](int request, int kv_head, int part) {
    ScorePart(step, request, kv_head, part, thread);
    done(request, kv_head);
  });
}

}  // namespace tactic
