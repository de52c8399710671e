// What `tactic eval kl` measured, as a table and as JSON records.
#ifndef TACTIC_APPS_EVAL_KL_REPORT_H_
#define TACTIC_APPS_EVAL_KL_REPORT_H_

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "measure.h"
#include "next_token.h"

namespace tactic::app {

// One policy at one depth.
struct KlResult {
  int depth = 0;
  std::string name;  // of the policy, as it was given
  Cost cost;
  std::vector<NextToken> tokens;
};

// REQUIRES: every result has tokens.
void PrintKlTable(const std::vector<KlResult>& results, int tokens, FILE* out);

// One record per result; `common` holds the fields that all of them share.
nlohmann::json KlRecords(const std::vector<KlResult>& results, const nlohmann::json& common);

}  // namespace tactic::app

#endif  // TACTIC_APPS_EVAL_KL_REPORT_H_
