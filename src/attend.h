// Attention over the row lists of a step, split evenly by rows: a thread gets a consecutive share of all rows of all requests
// and KV heads, so that few heads on many threads, or unequal lists, balance.
#ifndef TACTIC_SRC_ATTEND_H_
#define TACTIC_SRC_ATTEND_H_

#include "src/step.h"

namespace tactic {

enum class RowKind {
  kForced,    // read whatever the query
  kSelected,  // chosen by the query; of a dense request: all
};

// Attends to thread `thread`'s share of the rows of that kind, into the states of its slot.
void AttendLists(Step& step, int thread, RowKind kind);

}  // namespace tactic

#endif  // TACTIC_SRC_ATTEND_H_
