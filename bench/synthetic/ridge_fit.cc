#include "bench/synthetic/ridge_fit.h"

#include <cmath>

namespace tactic::synthetic {
namespace {

// Penalty, relative to the mean eigenvalue.
constexpr double kPenalty = 1e-3;

}  // namespace

RidgeFit::RidgeFit(std::span<const float> x, size_t dim) : x_(x), dim_(dim), lower_(dim * dim) {
  for (size_t row = 0; row < x.size(); row += dim) {
    for (size_t i = 0; i < dim; ++i) {
      for (size_t j = 0; j <= i; ++j) lower_[i * dim + j] += double{x[row + i]} * x[row + j];
    }
  }
  double trace = 0;
  for (size_t i = 0; i < dim; ++i) trace += lower_[i * dim + i];
  // Queries of zero have no energy at all.
  const double penalty = kPenalty * trace / static_cast<double>(dim) + 1e-12;
  for (size_t i = 0; i < dim; ++i) {
    lower_[i * dim + i] += penalty;
    for (size_t j = 0; j <= i; ++j) {
      double sum = lower_[i * dim + j];
      for (size_t k = 0; k < j; ++k) sum -= lower_[i * dim + k] * lower_[j * dim + k];
      lower_[i * dim + j] = i == j ? std::sqrt(sum) : sum / lower_[j * dim + j];
    }
  }
}

std::vector<double> RidgeFit::Fit(std::span<const double> wanted) const {
  std::vector<double> v(dim_);
  for (size_t j = 0; j < wanted.size(); ++j) {
    for (size_t i = 0; i < dim_; ++i) v[i] += wanted[j] * x_[j * dim_ + i];
  }
  for (size_t i = 0; i < dim_; ++i) {
    for (size_t k = 0; k < i; ++k) v[i] -= lower_[i * dim_ + k] * v[k];
    v[i] /= lower_[i * dim_ + i];
  }
  for (size_t i = dim_; i-- > 0;) {
    for (size_t k = i + 1; k < dim_; ++k) v[i] -= lower_[k * dim_ + i] * v[k];
    v[i] /= lower_[i * dim_ + i];
  }
  return v;
}

}  // namespace tactic::synthetic
