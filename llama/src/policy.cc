#include "llama/src/policy.h"

#include <string>

namespace tactic::llama {

const char* PolicyName(Policy policy) {
  switch (policy) {
    case Policy::kStock:
      return "stock";
    case Policy::kDense:
      return "dense";
    case Policy::kPaper:
      return "paper";
    case Policy::kTactic:
      return "tactic";
  }
  return "unknown";
}

Status ParsePolicy(std::string_view name, Policy* policy) {
  for (Policy p : {Policy::kStock, Policy::kDense, Policy::kPaper, Policy::kTactic}) {
    if (name == PolicyName(p)) {
      *policy = p;
      return Status::Ok();
    }
  }
  return Status::InvalidArgument("policy is " + std::string(name) +
                                 "; expected stock, dense, paper or tactic");
}

HookOptions HookOptions::For(Policy policy) {
  HookOptions options;
  options.policy = policy;
  options.tactic = Options::For(ModeOf(policy));
  return options;
}

Mode ModeOf(Policy policy) {
  switch (policy) {
    case Policy::kPaper:
      return Mode::kPaper;
    case Policy::kTactic:
      return Mode::kTactic;
    default:
      return Mode::kDense;
  }
}

bool HasIndex(Mode mode) { return mode != Mode::kDense; }

bool SameIndex(const Options& a, const Options& b) {
  return a.cluster_size == b.cluster_size && a.kmeans_iterations == b.kmeans_iterations &&
         a.segment_size == b.segment_size && a.update_interval == b.update_interval &&
         a.seed == b.seed && a.sinks == b.sinks && a.recent == b.recent && a.index == b.index &&
         a.bits == b.bits && a.bits_error == b.bits_error;
}

}  // namespace tactic::llama
