// The policies that `tactic quality` compares: a mode with any of its parameters changed.
#ifndef TACTIC_APPS_QUALITY_POLICY_H_
#define TACTIC_APPS_QUALITY_POLICY_H_

#include <nlohmann/json.hpp>
#include <string>

#include "tactic/options.h"
#include "tactic/status.h"

namespace tactic::app {

struct QualityPolicy {
  std::string name;  // the spec as it was given
  Options options;
};

// "mode[:key=value]*", e.g. "paper:sinks=0:recent=0": the defaults of the mode, then the values.
// Keys are the names of the fields of Options with dashes. InvalidArgument names the spec and the
// key or value that is wrong. The target is no key: every policy meets the same targets.
Status ParseQualityPolicy(const std::string& spec, QualityPolicy* policy);

// Every parameter but the mode and the target, by its key.
nlohmann::json OptionsJson(const Options& options);

}  // namespace tactic::app

#endif  // TACTIC_APPS_QUALITY_POLICY_H_
