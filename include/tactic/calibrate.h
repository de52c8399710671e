// Calibrate: from how many tokens on a mode is faster than reading everything, on this machine.
//
// For short sequences the exact kernel wins: ranking and selecting cost more than the rows they
// save. Where that ends depends on the CPU, the threads and the layer's shape. The library never
// calibrates by itself; a caller that wants the measured value does so once and keeps it:
//
//   Calibration found;
//   TACTIC_RETURN_IF_ERROR(Calibrate({shape, options, threads}, &found));
//   options.dense_below = static_cast<int>(found.tokens);
#ifndef TACTIC_CALIBRATE_H_
#define TACTIC_CALIBRATE_H_

#include <cstdint>
#include <vector>

#include "tactic/options.h"
#include "tactic/rows_view.h"
#include "tactic/shape.h"
#include "tactic/status.h"

namespace tactic {

// The shortest and the longest sequence that is tried. Mode paper starts at 1024, below which its
// fit has too few ranks (Options::dense_below).
inline constexpr int64_t kShortestCalibrated = 512;
inline constexpr int64_t kLongestCalibrated = 16384;

struct CalibrationRequest {
  LayerShape shape;
  Options options;  // mode paper or tactic; dense_below is ignored
  int threads = 1;  // as many as will decode
  ElementType key_type = ElementType::kF16;
  ElementType value_type = ElementType::kF16;
  double seconds = 1;  // what it may cost, about; the shortest length is always measured
};

// Seconds of one layer's step for one new token.
struct CalibrationPoint {
  int64_t tokens = 0;
  double dense = 0;
  double mode = 0;
};

struct Calibration {
  // The mode is faster from here on. Where it was not within what was tried, twice the longest
  // length tried: nothing is known of longer ones, but the mode gains with length.
  int64_t tokens = 0;
  bool found = false;
  std::vector<CalibrationPoint> points;  // what was measured, by ascending length
};

// Times dense steps and steps of the mode in turn, on synthetic keys with the sparsity of real
// attention, at doubling lengths, until the mode wins clearly or the time is up. Starts `threads`
// threads and ends them. InvalidArgument when something is out of its range; ResourceExhausted when
// there are no threads or memory for it.
Status Calibrate(const CalibrationRequest& request, Calibration* calibration);

}  // namespace tactic

#endif  // TACTIC_CALIBRATE_H_
