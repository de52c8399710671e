// SoftmaxState: a partial softmax(q K) V that can be merged with others over disjoint rows.
//
// Laid out as value_dim + 2 floats: the sum of exp(logit - max) * v, then max, then the sum of
// exp(logit - max). max = -inf, sum = 0 is the empty state. Merging is associative up to rounding;
// callers merge in a fixed order so that results repeat.
#ifndef TACTIC_SRC_SOFTMAX_STATE_H_
#define TACTIC_SRC_SOFTMAX_STATE_H_

#include <cmath>
#include <cstddef>
#include <limits>

namespace tactic {

// Floats from one state to the next: 64-byte aligned.
constexpr size_t SoftmaxStateStride(int value_dim) {
  return (static_cast<size_t>(value_dim) + 2 + 15) / 16 * 16;
}

inline float& StateMax(float* state, int value_dim) { return state[value_dim]; }
inline float& StateSum(float* state, int value_dim) { return state[value_dim + 1]; }
inline float StateMax(const float* state, int value_dim) { return state[value_dim]; }
inline float StateSum(const float* state, int value_dim) { return state[value_dim + 1]; }

inline void ClearState(float* state, int value_dim) {
  for (int i = 0; i < value_dim; ++i) state[i] = 0;
  StateMax(state, value_dim) = -std::numeric_limits<float>::infinity();
  StateSum(state, value_dim) = 0;
}

// A NaN logit may leave max at -inf, but never sum at 0: such a state is not empty and must not be
// dropped.
inline bool StateEmpty(const float* state, int value_dim) {
  return StateMax(state, value_dim) == -std::numeric_limits<float>::infinity() &&
         StateSum(state, value_dim) == 0;
}

// into += from, of which only elements [begin, end) of the weighted values are looked at.
inline void MergeState(const float* from, int value_dim, int begin, int end, float* into) {
  if (StateEmpty(from, value_dim)) return;
  const float max_from = StateMax(from, value_dim);
  const float max_into = StateMax(into, value_dim);
  const float max = max_from > max_into ? max_from : max_into;
  const float scale_from = std::exp(max_from - max);
  const float scale_into = StateEmpty(into, value_dim) ? 0.0f : std::exp(max_into - max);
  for (int i = begin; i < end; ++i) into[i] = into[i] * scale_into + from[i] * scale_from;
  StateSum(into, value_dim) =
      StateSum(into, value_dim) * scale_into + StateSum(from, value_dim) * scale_from;
  StateMax(into, value_dim) = max;
}

// into += from.
inline void MergeState(const float* from, int value_dim, float* into) {
  MergeState(from, value_dim, 0, value_dim, into);
}

}  // namespace tactic

#endif  // TACTIC_SRC_SOFTMAX_STATE_H_
