// Attention over the row lists of a step, split by rows: chunks are even, consecutive shares of all
// rows of all requests and KV heads, so that few heads on many threads, or unequal lists, balance.
#ifndef TACTIC_SRC_ATTEND_H_
#define TACTIC_SRC_ATTEND_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "src/step.h"

namespace tactic {

// Cells that all KV heads go through together, of `bytes` of keys and values each: their rows lie
// side by side, so a block is streamed from memory once, in order, and stays in L2 for the heads
// after the first, beside the next block, which is on its way.
inline size_t CellBlock(size_t bytes) {
  constexpr size_t kBytes = size_t{128} << 10;
  constexpr size_t kFewest = 64;
  return std::max(kFewest, kBytes / bytes);
}

// Cells that a part's segments gave to the selection of a KV head, once stage select is done.
std::span<const uint32_t> PartRows(Step& step, int request, int kv_head, int part);

// Of a step's chunks those that have forced rows: a state for a row or two costs more to merge than
// it saves.
inline int ForcedChunks(const Step& step, int64_t rows) {
  constexpr int64_t kFewest = 8;
  return static_cast<int>(std::min<int64_t>(step.chunks, (rows + kFewest - 1) / kFewest));
}

// Claims a share of the forced rows, which all KV heads read, and attends to it: part of stage
// rank. False when no share is left.
bool AttendForcedChunk(Step& step);

// Attends to the selected rows, whose logits are known, with all threads that call it (mode
// tactic).
void AttendSelectedScored(Step& step);

}  // namespace tactic

#endif  // TACTIC_SRC_ATTEND_H_
