// How the work of a step falls on threads, counted instead of timed: for tests of the split.
#ifndef TACTIC_SRC_WORK_UNITS_H_
#define TACTIC_SRC_WORK_UNITS_H_

#include <cstdint>
#include <vector>

#include "src/step.h"

namespace tactic {

// What threads do in a phase of a step of mode tactic, in bytes read, in the order in which they
// claim it. What the last unit of a KV head is followed by (a filter, a threshold) is not in it.
// REQUIRES: all phases done; allocates.
std::vector<int64_t> WorkUnits(Step& step, Phase phase);

}  // namespace tactic

#endif  // TACTIC_SRC_WORK_UNITS_H_
