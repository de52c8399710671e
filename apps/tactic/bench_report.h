// What `tactic bench` measured, as a table and as JSON records.
#ifndef TACTIC_APPS_BENCH_REPORT_H_
#define TACTIC_APPS_BENCH_REPORT_H_

#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "bench_stages.h"
#include "measure.h"
#include "synthetic_fill.h"

namespace tactic::app {

// All policies at one depth.
struct DepthResult {
  int depth = 0;                  // tokens in the cache
  int64_t kv_bytes = 0;           // of K and V of all layers at that depth; 0: unknown
  std::vector<Cost> costs;        // one per policy; stock's times are those with flash attention on
  std::vector<double> fa_off_ms;  // stock with flash attention off; empty when not measured
  std::vector<StepStages> stages;           // of policies but stock; empty when not asked for
  std::optional<SyntheticFacts> synthetic;  // what --fill synthetic came to

  // Stock is whatever llama.cpp does faster: flash attention on or off.
  Quantiles Time(const Cost& cost) const;
  // Median time of a policy in milliseconds; absent when it was not measured.
  std::optional<double> Median(llama::Policy policy) const;
  // Bytes of K, V and index that a step reads, per second of the whole step, in 1e9. 0: unknown.
  double GigabytesPerSecond(const Cost& cost) const;
};

// One line per depth and policy. `random_fill`: a line above says what that means.
void PrintBenchTable(const std::vector<DepthResult>& results, double target, bool random_fill,
                     FILE* out);

// One record per depth and policy; `common` holds the fields that all of them share.
nlohmann::json BenchRecords(const std::vector<DepthResult>& results, const nlohmann::json& common);

}  // namespace tactic::app

#endif  // TACTIC_APPS_BENCH_REPORT_H_
