// What `tactic demo` found, as text for people and as JSON.
#ifndef TACTIC_APPS_DEMO_REPORT_H_
#define TACTIC_APPS_DEMO_REPORT_H_

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "facts.h"
#include "measure.h"

namespace tactic::app {

struct DemoAnswer {
  std::string text;
  bool right = false;
};

// One fact and what each policy answered, in the order of DemoResult::costs.
struct DemoQuestion {
  Fact fact;
  double depth = 0;  // share of the text before the fact
  std::vector<DemoAnswer> answers;
};

struct DemoResult {
  int tokens = 0;      // of the text
  int from_cache = 0;  // of these, not read because they were saved
  double read_seconds = 0;
  double target = 0;
  std::vector<DemoQuestion> questions;
  std::vector<Cost> costs;  // one per policy
};

void PrintDemo(const DemoResult& result, FILE* out);
nlohmann::json DemoJson(const DemoResult& result);

}  // namespace tactic::app

#endif  // TACTIC_APPS_DEMO_REPORT_H_
