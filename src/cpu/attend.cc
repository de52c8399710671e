// Compiles attend-inl.h for every instruction set and dispatches.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/attend.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.
#include "src/cpu/attend-inl.h"

#if HWY_ONCE
namespace tactic::cpu {

HWY_EXPORT(AttendRows);
HWY_EXPORT(AttendScored);
HWY_EXPORT(ScoreRows);
HWY_EXPORT(ExpShifted);

void AttendRows(const QueryHeads& query, const HeadRows& keys, const HeadRows& values,
                const uint32_t* cells, size_t n, float* states, size_t state_stride,
                const NextRows& next) {
  HWY_DYNAMIC_DISPATCH(AttendRows)(query, keys, values, cells, n, states, state_stride, next);
}

void AttendScored(const float* logits, size_t logit_stride, int heads, const HeadRows& values,
                  const uint32_t* cells, size_t n, float* states, size_t state_stride) {
  HWY_DYNAMIC_DISPATCH(AttendScored)
  (logits, logit_stride, heads, values, cells, n, states, state_stride);
}

void ScoreRows(const QueryHeads& query, const HeadRows& keys, const uint32_t* cells, size_t n,
               float* scores, size_t score_stride) {
  HWY_DYNAMIC_DISPATCH(ScoreRows)(query, keys, cells, n, scores, score_stride);
}

void ExpShifted(float* x, size_t n, float shift) { HWY_DYNAMIC_DISPATCH(ExpShifted)(x, n, shift); }

}  // namespace tactic::cpu
#endif  // HWY_ONCE
