// A vector whose products with given vectors are as wanted, as nearly as possible.
#ifndef TACTIC_BENCH_SYNTHETIC_RIDGE_FIT_H_
#define TACTIC_BENCH_SYNTHETIC_RIDGE_FIT_H_

#include <cstddef>
#include <span>
#include <vector>

namespace tactic::synthetic {

class RidgeFit {
 public:
  // x: [count][dim]. Kept by reference.
  RidgeFit(std::span<const float> x, size_t dim);

  // The v that minimises sum over j of (x_j . v - wanted[j])^2, with a small penalty on its norm:
  // without one, differences between vectors that are nearly alike would blow it up.
  std::vector<double> Fit(std::span<const double> wanted) const;

 private:
  std::span<const float> x_;
  size_t dim_;
  std::vector<double> lower_;  // [dim][dim], the Cholesky factor of the normal equations
};

}  // namespace tactic::synthetic

#endif  // TACTIC_BENCH_SYNTHETIC_RIDGE_FIT_H_
