// Mass: a sum of exponentials with its maximum taken out.
#ifndef TACTIC_SRC_MASS_H_
#define TACTIC_SRC_MASS_H_

#include <cmath>
#include <limits>

#include "src/step.h"

namespace tactic {

// The sum is of exp(logit - max). Empty: {-inf, 0}.
struct Mass {
  float max = -std::numeric_limits<float>::infinity();
  double sum = 0;

  void Add(float other_max, double other_sum) {
    if (other_sum == 0) return;
    if (other_max > max) {
      sum *= std::exp(static_cast<double>(max) - other_max);
      max = other_max;
    }
    sum += other_sum * std::exp(static_cast<double>(other_max) - max);
  }
};

// Of a query head over the forced rows, once all of them are attended to.
inline Mass ForcedMass(Step& step, int request, int q_head) {
  const int kv_head = q_head / step.group();
  const int dim = step.shape.value_dim;
  Mass mass;
  for (int chunk = 0; chunk < step.chunks; ++chunk) {
    if (!step.Used(request, kv_head, 2 * chunk)) continue;
    const float* state =
        step.States(request, kv_head, 2 * chunk) + (q_head % step.group()) * step.StateStride();
    mass.Add(StateMax(state, dim), StateSum(state, dim));
  }
  return mass;
}

}  // namespace tactic

#endif  // TACTIC_SRC_MASS_H_
