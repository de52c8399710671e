// Attention over the row lists of a step, split by rows: chunks are even, consecutive shares of all
// rows of all requests and KV heads, so that few heads on many threads, or unequal lists, balance.
#ifndef TACTIC_SRC_ATTEND_H_
#define TACTIC_SRC_ATTEND_H_

#include <cstdint>
#include <span>

#include "src/step.h"

namespace tactic {

// Cells that a part's segments gave to the selection of a KV head, once stage select is done.
std::span<const uint32_t> PartRows(Step& step, int request, int kv_head, int part);

// Attends to the forced rows, which all KV heads read, together with the other threads that call
// it: part of stage rank.
void AttendForced(Step& step);

}  // namespace tactic

#endif  // TACTIC_SRC_ATTEND_H_
