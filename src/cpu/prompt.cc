// Compiles prompt-inl.h for every instruction set and dispatches.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/prompt.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.
#include "src/cpu/prompt-inl.h"

#if HWY_ONCE
namespace tactic::cpu {

HWY_EXPORT(AttendPrompt);

void AttendPrompt(const PromptTile& tile, float* scratch) {
  HWY_DYNAMIC_DISPATCH(AttendPrompt)(tile, scratch);
}

}  // namespace tactic::cpu
#endif  // HWY_ONCE
