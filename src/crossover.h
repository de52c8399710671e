// Where one of two growing costs becomes the smaller one: the decisions of Calibrate, apart from
// what it measures.
#ifndef TACTIC_SRC_CROSSOVER_H_
#define TACTIC_SRC_CROSSOVER_H_

#include <cstdint>
#include <functional>

#include "tactic/calibrate.h"

namespace tactic {

struct CrossoverSearch {
  int64_t first;                // length to start with; then twice as long, and so on
  int64_t last;                 // the longest
  double seconds;               // what all of it may take
  std::function<double()> now;  // seconds since whenever
  // Measures one length: fills in the times.
  std::function<Status(CalibrationPoint*)> measure;
};

// The smallest length from which the mode wins at every longer one tried. A tie is dense's. The
// shortest length is always measured, another one only if it is likely to be done in time.
Status FindCrossover(const CrossoverSearch& search, Calibration* result);

}  // namespace tactic

#endif  // TACTIC_SRC_CROSSOVER_H_
