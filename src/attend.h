// Attention over the row lists of a step, split evenly by rows: a thread gets a consecutive share of all rows of all requests
// and KV heads, so that few heads on many threads, or unequal lists, balance.
#ifndef TACTIC_SRC_ATTEND_H_
#define TACTIC_SRC_ATTEND_H_

#include "src/step.h"

namespace tactic {

// Attends to thread `thread`'s share of the forced rows, which all KV heads read: part of stage rank.
void AttendForced(Step& step, int thread);

}  // namespace tactic

#endif  // TACTIC_SRC_ATTEND_H_
