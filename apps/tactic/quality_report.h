// The results of `tactic quality` as a table, as JSON and as CSV.
//
// All three have the same fields (quality_stats.h). "Pooled" is over all files, over all of their
// layers, or both.
#ifndef TACTIC_APPS_QUALITY_REPORT_H_
#define TACTIC_APPS_QUALITY_REPORT_H_

#include <cstdio>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "quality_policy.h"
#include "quality_replay.h"
#include "quality_stats.h"
#include "trace_file.h"

namespace tactic::app {

// A layer of a file, replayed.
struct ReplayedLayer {
  size_t file = 0;  // number of its trace
  int layer = 0;
  std::vector<PolicyReplay> policies;
};

// What was asked for, and what came out.
struct QualityResults {
  std::vector<const TraceFile*> traces;
  std::vector<QualityPolicy> policies;
  std::vector<double> targets;
  StepChoice steps;
  std::vector<ReplayedLayer> layers;  // by file, then by layer

  std::vector<int> LayerNumbers() const;  // ascending
};

// A row for each policy and target, pooled, and then for each file if there are several.
void PrintQualityTable(const QualityResults& results, FILE* out);

// A record for each policy and target: pooled, with the same "per_layer" and "per_file".
nlohmann::json QualityRecords(const QualityResults& results);

// The same as rows of one table, with a header. `file` is "all" and `layer` -1 where all are meant.
std::string QualityCsv(const QualityResults& results);

}  // namespace tactic::app

#endif  // TACTIC_APPS_QUALITY_REPORT_H_
