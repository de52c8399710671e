// What the oracle of mode tactic works on, read back from a World: coded clusters and forced rows
// of a request, and its queries as the codes see them.
#ifndef TACTIC_TESTS_CORE_TACTIC_WORLD_H_
#define TACTIC_TESTS_CORE_TACTIC_WORLD_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "src/codes.h"
#include "src/reference/oracle_tactic.h"
#include "tests/core/read_codes.h"
#include "tests/core/world.h"

namespace tactic {

// A world of mode tactic whose sequences are short and still indexed.
inline WorldSpec TacticSpec(std::vector<int> lengths,
                            const std::function<void(WorldSpec&)>& change = {}) {
  WorldSpec spec;
  spec.options = Options();
  spec.options.dense_below = 0;
  spec.options.segment_size = 256;
  spec.lengths = std::move(lengths);
  spec.tokens.clear();
  for (int s = 0; s < std::ssize(spec.lengths); ++s) spec.tokens.push_back({s, 0});
  if (change) change(spec);
  return spec;
}

// Coded clusters that a request may use: closed segments that `recent` visible positions follow,
// and so many pages of the open one; `forced` becomes every other visible position.
inline oracle::CodedIndex CodedIndexOf(const World& world, int request, int kv_head,
                                       std::vector<int64_t>* forced) {
  const WorldSpec& spec = world.spec();
  const SequenceIndex& index = world.index(spec.tokens[request].sequence);
  const auto visible = static_cast<int64_t>(world.Visible(request).size());
  oracle::CodedIndex coded;
  const auto add = [&](const Segment& segment, int64_t end, bool pages) {
    if (segment.always()) return;
    const Clusters& clusters = segment.head(kv_head);
    int count = clusters.count;
    while (count > 0 && segment.first() + clusters.starts[count] > end) --count;
    ReadClusters(clusters, count, segment.first(), spec.shape.head_dim, spec.shape.value_dim, pages,
                 &coded);
  };
  if (visible >= spec.options.dense_below) {
    const int64_t usable = visible - spec.options.recent;
    for (const auto& segment : index.segments()) {
      if (segment && segment->end() <= usable)
        add(*segment, segment->end(), spec.options.index == IndexKind::kPages);
    }
    if (index.open() && index.open()->first() + Options::kPage <= usable)
      add(*index.open(), usable, true);
  }
  std::vector<bool> is_coded(visible, false);
  for (const oracle::CodedCluster& cluster : coded.clusters) {
    for (int64_t p : cluster.members) is_coded[p] = true;
  }
  forced->clear();
  for (int64_t p = 0; p < visible; ++p) {
    if (!is_coded[p]) forced->push_back(p);
  }
  return coded;
}

// The query in 8 bits exactly as the step rounds it, in f32: another rounding of a single element
// would show in every key.
inline oracle::CodedQuery CodedQueryOf(const World& world, int request, int q_head) {
  const DecodeParams& params = world.spec().params;
  const oracle::Row q = world.Query(request, q_head);
  oracle::CodedQuery query = oracle::MakeCodedQuery(q, params.scale, params.softcap);
  std::vector<float> scaled;
  for (double x : q) scaled.push_back(static_cast<float>(x) * params.scale);
  std::vector<float> rotated(q.size());
  Rotate(scaled.data(), static_cast<int>(q.size()), rotated.data());
  float most = 0;
  for (float x : rotated) most = std::max(most, std::fabs(x));
  const float unit = most / 127;
  for (size_t x = 0; x < q.size(); ++x) {
    const double want = query.rotated[x];
    query.rotated[x] =
        unit == 0 ? 0
                  : static_cast<double>(unit) * static_cast<double>(std::lround(rotated[x] / unit));
    EXPECT_NEAR(query.rotated[x], want, 1.01 * unit) << "the oracle rounds likewise";
  }
  return query;
}

}  // namespace tactic

#endif  // TACTIC_TESTS_CORE_TACTIC_WORLD_H_
