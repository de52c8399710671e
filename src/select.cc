// Stage select: per KV head, the union of what its query heads read, as lists of cells in ascending
// position.
//
// Every head reads a prefix of a cluster's members, so the union is the longest prefix; a bitmap
// per segment sorts it.
#include <algorithm>
#include <bit>
#include <cstring>

#include "src/segment.h"
#include "src/step.h"

namespace tactic {
namespace {

void SelectPart(Step& step, int request, int kv_head, int part) {
  const RequestPlan& r = step.requests[request];
  const Share segments = step.Part(r, part);
  const int group = step.group();
  const uint32_t* taken = step.Taken(r, kv_head * group);
  uint32_t* rows = nullptr;
  uint32_t* out = nullptr;
  uint64_t bits[Options::kLargestSegment / 64];
  for (int64_t j = segments.begin; j < segments.end; ++j) {
    if (!r.segments[j]) continue;
    const Segment& segment = *r.segments[j];
    if (rows == nullptr) rows = out = step.Rows(r, kv_head) + segment.first();
    const Clusters& clusters = segment.head(kv_head);
    const auto words = static_cast<size_t>((segment.end() - segment.first() + 63) / 64);
    std::memset(bits, 0, words * sizeof(bits[0]));
    for (int c = 0; c < clusters.count; ++c) {
      uint32_t members = 0;
      for (int g = 0; g < group; ++g)
        members = std::max(members, taken[g * r.clusters + j * step.slots + c]);
      const uint16_t* member = clusters.members.data() + clusters.starts[c];
      for (uint32_t i = 0; i < members; ++i)
        bits[member[i] / 64] |= uint64_t{1} << (member[i] % 64);
    }
    const uint32_t* cells = r.request.cells.data() + segment.first();
    for (size_t w = 0; w < words; ++w) {
      for (uint64_t left = bits[w]; left != 0; left &= left - 1)
        *out++ = cells[w * 64 + std::countr_zero(left)];
    }
  }
  step.Counts(request, kv_head)[part] = static_cast<uint32_t>(out - rows);
}

}  // namespace

void SelectStage(Step& step, int thread) {
  ForParts(step, thread,
           [&](int request, int kv_head, int part) { SelectPart(step, request, kv_head, part); });
}

}  // namespace tactic
