// The instruction sets this build has kernels for, and which of them runs.
//
// The best one that the CPU supports is chosen at first use. The environment variable
// TACTIC_FORCE_ISA or SetIsa picks another, for tests and measurements; a name that is unknown or
// not supported here is an error, never a silent fallback.
#ifndef TACTIC_ISA_H_
#define TACTIC_ISA_H_

#include <string>
#include <string_view>
#include <vector>

#include "tactic/status.h"

namespace tactic {

// Names as TACTIC_FORCE_ISA takes them, best first, e.g. {"avx3", "avx2", "sse4", "scalar"}.
std::vector<std::string> SupportedIsas();

// The one in use.
const char* IsaName();

// Chooses `name`. Not thread-safe: REQUIRES that no kernel runs at the same time.
Status SetIsa(std::string_view name);

// What TACTIC_FORCE_ISA asks for, applied at first use: OK when unset or valid. Every entry point
// that returns a Status checks it.
Status IsaStatus();

}  // namespace tactic

#endif  // TACTIC_ISA_H_
