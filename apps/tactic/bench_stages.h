// Where the time of a decode step goes: `tactic bench --stages`.
#ifndef TACTIC_APPS_BENCH_STAGES_H_
#define TACTIC_APPS_BENCH_STAGES_H_

#include <cstdio>
#include <nlohmann/json.hpp>
#include <vector>

#include "tactic_llama/hook.h"

namespace tactic::app {

// Steps of one policy at one depth that were timed stage by stage.
struct StepStages {
  llama::Policy policy = llama::Policy::kTactic;
  int depth = 0;
  int threads = 1;
  int steps = 0;
  double step_ms = 0;          // mean wall time of a whole step
  int64_t bytes_clusters = 0;  // of all steps
  int64_t bytes_codes = 0;
  int64_t bytes_rows = 0;
  std::vector<llama::LayerTimes> layers;

  void AddReads(const llama::HookStats& stats);

  // Of a stage per step, all layers: the threads' time divided by their number, so that what they
  // wait for each other is left to the rest of the step.
  double Milliseconds(llama::Stage stage) const;
  // Bytes per step that a stage has to read. What is stored per cluster counts for rank (the means
  // of values, a small part of it, are read in attend), codes for budget, rows in equal parts for
  // select and attend; policy dense reads its rows in rank.
  double Bytes(llama::Stage stage) const;
};

// A table of all layers, their sum, the bytes and the bandwidth.
void PrintStages(const StepStages& stages, FILE* out);

// {"steps", "step_ms", "stages": {name: {"ms", "bytes", "gb_per_s"}}, "layers": [{"layer", name:
// ms}]}
nlohmann::json StagesJson(const StepStages& stages);

}  // namespace tactic::app

#endif  // TACTIC_APPS_BENCH_STAGES_H_
