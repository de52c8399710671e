// What a policy of the adapter means to the library.
#ifndef TACTIC_LLAMA_SRC_POLICY_H_
#define TACTIC_LLAMA_SRC_POLICY_H_

#include "tactic/options.h"
#include "tactic_llama/hook.h"

namespace tactic::llama {

// The mode that a policy decodes with. Stock needs none; as it has no index either, it gets kDense.
Mode ModeOf(Policy policy);

// Whether a mode selects by an index.
bool HasIndex(Mode mode);

// Whether two options of one mode give equal indexes of equal keys.
bool SameIndex(const Options& a, const Options& b);

}  // namespace tactic::llama

#endif  // TACTIC_LLAMA_SRC_POLICY_H_
