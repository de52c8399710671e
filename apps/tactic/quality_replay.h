// Replays one layer of a trace through the library, for any number of policies and targets, and
// compares what it does with exact attention.
//
// As in real decoding: the index of a policy is built from the tokens of the prompt and then grows
// by one position a step. Targets share it, since they do not shape it. The library runs on one
// thread; callers replay layers in parallel.
#ifndef TACTIC_APPS_QUALITY_REPLAY_H_
#define TACTIC_APPS_QUALITY_REPLAY_H_

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "quality_policy.h"
#include "tactic/decode.h"
#include "tactic/rows_view.h"
#include "tactic/shape.h"
#include "tactic/status.h"

namespace tactic::app {

struct ReplayLayer {
  LayerShape shape;
  float scale = 1;
  float softcap = 0;
  int64_t depth = 0;  // tokens before the first step; step t sees the first depth + t + 1 rows
  int steps = 0;
  const float* q = nullptr;  // [steps][q_heads][head_dim]
  RowsView keys;             // row i is position i
  RowsView values;
};

// Which steps are measured; the index grows in all of them.
struct StepChoice {
  int first = 0;  // only the first so many; 0: all
  int every = 1;  // only each so manyth, from the first on
  int Count(int steps) const;
};

// One query head in one step.
struct QualityCase {
  double own_mass = 0;    // of its own selection, as the library measures it
  double union_mass = 0;  // of what its group read, in double
  double output_error = 0;
  double p_hat = -1;  // -1: the mode has none
  double code_error = 0;
  int64_t own_rows = 0;
  int64_t union_rows = 0;
  int64_t optimal_rows = 0;
  int64_t visible_rows = 0;
  int rounds = 0;
};

// One step of the layer, in shares of the bytes that dense attention reads.
struct QualityReads {
  double total = 0;
  double clusters = 0;
  double codes = 0;
  double rows = 0;
};

// A policy at a target.
struct QualitySamples {
  std::vector<QualityCase> cases;   // [step][q_head]
  std::vector<QualityReads> reads;  // [step]
};

struct PolicyReplay {
  int64_t index_bytes = 0;  // at the depth of the prompt
  int64_t kv_bytes = 0;     // of the prompt in f16
  int64_t build_ns = 0;     // CPU time of building that index
  std::vector<QualitySamples> targets;
};

// Fills `result`, one per policy. `on_step` is called after each step that is measured.
// Internal when the library contradicts the exact masses, Unsupported when the layer's numbers are
// not finite, the interrupt's status after a signal. REQUIRES: valid shapes, options and targets.
Status ReplayLayerThrough(const ReplayLayer& layer, std::span<const QualityPolicy> policies,
                          std::span<const double> targets, const StepChoice& steps,
                          const std::function<void()>& on_step, std::vector<PolicyReplay>* result);

}  // namespace tactic::app

#endif  // TACTIC_APPS_QUALITY_REPLAY_H_
