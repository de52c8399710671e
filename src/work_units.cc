#include "src/work_units.h"

#include <algorithm>

#include "src/attend.h"
#include "src/coded_units.h"
#include "src/segment.h"

namespace tactic {
namespace {

int64_t RowsBytes(const cpu::HeadRows& rows, int64_t count) {
  return count * static_cast<int64_t>(RowBytes(rows.type, static_cast<size_t>(rows.dim)));
}

// Calls f(request, kv_head, part) in the order of ClaimParts.
template <class F>
void AllParts(const Step& step, const F& f) {
  for (int request = 0; request < step.num_requests(); ++request) {
    const RequestPlan& r = step.requests[request];
    for (int h = 0; h < step.shape.kv_heads && !r.coded.empty(); ++h) {
      for (int part = 0; part < r.parts; ++part) f(request, h, part);
    }
  }
}

// Even shares of `rows` rows of `bytes` bytes.
void AddShares(int64_t rows, int chunks, int64_t bytes, std::vector<int64_t>* units) {
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const Share share(rows, chunk, chunks);
    units->push_back((share.end - share.begin) * bytes);
  }
}

void AddForced(Step& step, std::vector<int64_t>* units) {
  int64_t rows = 0;
  for (const RequestPlan& r : step.requests) rows += std::ssize(r.forced);
  const RequestPlan& first = step.requests[0];
  AddShares(rows, ForcedChunks(step, rows),
            step.shape.kv_heads *
                (RowsBytes(step.Keys(first, 0), 1) + RowsBytes(step.Values(first, 0), 1)),
            units);
}

int64_t ScoredBytes(Step& step, const RequestPlan& r, int part) {
  const Share segments = step.Part(r, part);
  return (segments.end - segments.begin) * step.slots *
         (step.shape.head_dim + 2 + Codes::kRuns + 1);
}

int64_t ScannedBytes(Step& step, int request, int kv_head, int part) {
  const RequestPlan& r = step.requests[request];
  if (GroupOf(step, request, kv_head).everything) return 0;
  const uint32_t* block = Blocks(step, r, kv_head) + PartKeys(step, r, part).begin / kCodeBlock;
  const uint32_t* const end = block + BlockCount(step, request, kv_head, part);
  int64_t bytes = 0;
  int64_t j = step.Part(r, part).begin;
  for (; block != end; ++block) {
    const int64_t key = int64_t{*block} * kCodeBlock;
    while (j + 1 < std::ssize(r.coded) && key >= r.coded[j + 1].first_key) ++j;
    const Codes& codes = r.coded[j].segment->head(kv_head).codes;
    bytes += static_cast<int64_t>(CodeBlockBytes(step.shape.head_dim, codes.bits) + kCodeBlock);
  }
  return bytes;
}

int64_t MeansBytes(Step& step, int request, int kv_head, int part) {
  const RequestPlan& r = step.requests[request];
  bool any = false;
  for (int g = 0; g < step.group(); ++g)
    any = any || HeadOf(step, request, kv_head * step.group() + g).tail;
  const Share segments = step.Part(r, part);
  int64_t means = 0;
  for (int64_t j = segments.begin; any && j < segments.end; ++j) {
    const uint8_t* kept = Kept(step, r, kv_head) + j * step.slots;
    const int count = std::min(r.coded[j].clusters, r.coded[j].segment->head(kv_head).count);
    means += 1 + std::count(kept, kept + count, uint8_t{1});
  }
  return means * (step.shape.value_dim + 2);
}

}  // namespace

std::vector<int64_t> WorkUnits(Step& step, Phase phase) {
  std::vector<int64_t> units;
  switch (phase) {
    case Phase::kRank:
      AddForced(step, &units);
      AllParts(step, [&](int request, int, int part) {
        units.push_back(ScoredBytes(step, step.requests[request], part));
      });
      break;
    case Phase::kBudget:
      AllParts(step, [&](int request, int kv_head, int part) {
        units.push_back(ScannedBytes(step, request, kv_head, part));
      });
      break;
    case Phase::kSelect:
      AllParts(step, [&](int request, int kv_head, int part) {
        units.push_back(RowsBytes(step.Keys(step.requests[request], kv_head),
                                  step.Counts(request, kv_head)[part]));
      });
      break;
    case Phase::kAttend: {
      int64_t rows = 0;
      AllParts(step, [&](int request, int kv_head, int part) {
        units.push_back(MeansBytes(step, request, kv_head, part));
        rows += step.Counts(request, kv_head)[part];
      });
      AddShares(rows, step.chunks, RowsBytes(step.Values(step.requests[0], 0), 1), &units);
      break;
    }
    case Phase::kCombine:
      for (int request = 0; request < step.num_requests(); ++request) {
        for (int h = 0; h < step.shape.q_heads; ++h) {
          int64_t states = 0;
          for (int slot = 0; slot < step.num_slots(); ++slot)
            states += step.Used(request, h / step.group(), slot);
          const int slices = step.CombineSlices();
          // Every slice needs the maximum and the sum.
          const int64_t floats = step.shape.value_dim / slices + 2;
          units.insert(units.end(), static_cast<size_t>(slices), 4 * floats * states);
        }
      }
      break;
  }
  return units;
}

}  // namespace tactic
