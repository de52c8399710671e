// Names of element types of the KV cache, as users write them.
#ifndef TACTIC_APPS_NAMES_H_
#define TACTIC_APPS_NAMES_H_

#include <string>

#include "ggml.h"
#include "tactic/status.h"

namespace tactic::app {

// f32, f16, bf16, q8_0 or q4_0. `field` names the argument in the error.
Status ParseKvType(const std::string& name, const std::string& field, ggml_type* type);

}  // namespace tactic::app

#endif  // TACTIC_APPS_NAMES_H_
