#include "bench/synthetic/ridge_fit.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace tactic::synthetic {
namespace {

std::vector<float> RandomVectors(size_t count, size_t dim) {
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> x(count * dim);
  for (float& v : x) v = normal(random);
  return x;
}

double Product(const std::vector<float>& x, size_t row, const std::vector<double>& v) {
  double sum = 0;
  for (size_t i = 0; i < v.size(); ++i) sum += x[row * v.size() + i] * v[i];
  return sum;
}

TEST(RidgeFit, MeetsFewerWishesThanDimensions) {
  const std::vector<float> x = RandomVectors(12, 32);
  std::vector<double> wanted(12);
  for (size_t j = 0; j < wanted.size(); ++j) wanted[j] = 10.0 - static_cast<double>(j);
  const std::vector<double> v = RidgeFit(x, 32).Fit(wanted);
  for (size_t j = 0; j < wanted.size(); ++j) EXPECT_NEAR(Product(x, j, v), wanted[j], 0.05) << j;
}

TEST(RidgeFit, CompromisesWhereWishesContradict) {
  std::vector<float> x = {1, 2, 3, 4, 1, 2, 3, 4};  // one vector, twice
  const std::vector<double> wanted = {1, 3};
  EXPECT_NEAR(Product(x, 0, RidgeFit(x, 4).Fit(wanted)), 2, 0.01);
}

TEST(RidgeFit, NothingComesFromQueriesOfZero) {
  const std::vector<float> x(24);
  const std::vector<double> wanted = {1, 2, 3};
  for (const double v : RidgeFit(x, 8).Fit(wanted)) EXPECT_EQ(v, 0);
}

}  // namespace
}  // namespace tactic::synthetic
