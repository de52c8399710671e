// The mass curve: where it is sampled, what is fitted, how far it says to read.
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "src/budget_paper.h"

namespace tactic {
namespace {

CurvePlan DefaultPlan(int64_t n) { return CurvePlan::Make(n, 0.02, 0.10, 0.60, 0.005); }

TEST(CurvePlan, IsThePapers) {
  const CurvePlan plan = DefaultPlan(10000);
  EXPECT_EQ(plan.head, 200);
  EXPECT_EQ(plan.near.first, 975);
  EXPECT_EQ(plan.near.width, 50);
  EXPECT_EQ(plan.far.first, 5975);
  EXPECT_EQ(plan.far.width, 50);
  EXPECT_EQ(plan.Samples(), 300);
}

TEST(CurvePlan, StaysWithinTheRanksAndGrowsWithThem) {
  struct Shares {
    double head, near, far, width;
  };
  for (const Shares& s : {Shares{0.02, 0.1, 0.6, 0.005},
                          {0.5, 1e-9, 2e-9, 0.1},
                          {1e-9, 0.5, 0.999999, 0.1},
                          {0.3, 0.998, 0.999, 1e-9}}) {
    int64_t samples = 0;
    int64_t head = 0;
    for (int64_t n = 4 * CurvePlan::kSmallestWindow; n < 3000; ++n) {
      const CurvePlan plan = CurvePlan::Make(n, s.head, s.near, s.far, s.width);
      ASSERT_GE(plan.head, 1);
      ASSERT_LE(plan.head, n);
      for (const CurveWindow& window : {plan.near, plan.far}) {
        ASSERT_GE(window.width, CurvePlan::kSmallestWindow);
        ASSERT_GE(window.first, 0);
        ASSERT_LE(window.first + window.width, n);
      }
      // A step's buffers are sized for its longest sequence.
      ASSERT_GE(plan.Samples(), samples);
      ASSERT_GE(plan.head, head);
      samples = plan.Samples();
      head = plan.head;
    }
  }
}

TEST(CurveWindow, MeanInverseCountsRanksFromOne) {
  EXPECT_DOUBLE_EQ((CurveWindow{0, 1}).MeanInverse(), 1);
  EXPECT_DOUBLE_EQ((CurveWindow{1, 2}).MeanInverse(), (1.0 / 2 + 1.0 / 3) / 2);
}

double WindowMean(const CurveWindow& window, double a, double b) {
  double sum = 0;
  for (int64_t i = 0; i < window.width; ++i)
    sum += a / static_cast<double>(window.first + i + 1) + b;
  return sum / static_cast<double>(window.width);
}

TEST(FitCurve, RecoversTheCurveItAssumes) {
  for (int64_t n : {32, 100, 5000, 100000}) {
    const CurvePlan plan = DefaultPlan(n);
    for (double a : {0.001, 1.0, 500.0}) {
      for (double b : {0.0, 0.01, 3.0}) {
        const MassCurve curve =
            FitCurve(plan, n, 7, WindowMean(plan.near, a, b), WindowMean(plan.far, a, b));
        EXPECT_NEAR(curve.a, a, 1e-9 * (a + b * static_cast<double>(n)));
        EXPECT_NEAR(curve.b, b, 1e-9 * (a + b));
        EXPECT_EQ(curve.head, plan.head);
        EXPECT_EQ(curve.n, n);
        EXPECT_EQ(curve.Mass(plan.head), 7);
      }
    }
  }
}

TEST(FitCurve, NeitherCoefficientBecomesNegative) {
  const CurvePlan plan = DefaultPlan(1000);
  const MassCurve rising = FitCurve(plan, 1000, 1, 0.2, 0.4);
  EXPECT_EQ(rising.a, 0);
  EXPECT_DOUBLE_EQ(rising.b, 0.3);
  const MassCurve falling = FitCurve(plan, 1000, 1, 0.4, 0.001);  // steeper than a / x
  EXPECT_EQ(falling.b, 0);
  EXPECT_DOUBLE_EQ(falling.a, 0.4 / plan.near.MeanInverse());
  const MassCurve flat = FitCurve(plan, 1000, 1, 0.4, 0.4);
  EXPECT_EQ(flat.a, 0);
  EXPECT_DOUBLE_EQ(flat.b, 0.4);
  const MassCurve nothing = FitCurve(plan, 1000, 1, 0, 0);
  EXPECT_EQ(nothing.a, 0);
  EXPECT_EQ(nothing.b, 0);
}

// Two windows at one place, which small sequences have, say nothing about the slope.
TEST(FitCurve, WindowsAtOnePlaceGiveTheirMean) {
  const CurvePlan plan = CurvePlan::Make(40, 0.02, 0.001, 0.002, 0.005);
  ASSERT_EQ(plan.near.first, plan.far.first);
  const MassCurve curve = FitCurve(plan, 40, 1, 0.5, 0.5);
  EXPECT_EQ(curve.a, 0);
  EXPECT_DOUBLE_EQ(curve.b, 0.5);
}

TEST(PrefixForTarget, IsTheFirstThatReachesTheTarget) {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> uniform;
  for (int repeat = 0; repeat < 3000; ++repeat) {
    const int64_t n = 32 + random() % 500;
    const CurvePlan plan = DefaultPlan(n);
    std::vector<double> prefix;
    double sum = 0;
    for (int64_t i = 0; i < plan.head; ++i) prefix.push_back(sum += uniform(random));
    MassCurve curve{uniform(random), uniform(random) / 100, plan.head, n, sum};
    if (repeat % 3 == 0) curve.a = 0;
    if (repeat % 5 == 0) curve.b = 0;
    const double fixed = repeat % 4 == 0 ? 0 : 5 * uniform(random);
    const double target = 1 - uniform(random);
    const int64_t k = PrefixForTarget(curve, prefix.data(), fixed, target);
    const double total = fixed + curve.Mass(n);
    const auto mass = [&](int64_t x) {
      if (x == 0) return fixed;
      return fixed + (x <= plan.head ? prefix[x - 1] : curve.Mass(x));
    };
    // Double rounding of the sums aside.
    ASSERT_GE(mass(k), target * total * (1 - 1e-12));
    if (k > 0) {
      ASSERT_LT(mass(k - 1), target * total * (1 + 1e-12));
    }
  }
}

TEST(PrefixForTarget, TakesNothingWhenTheFixedRowsSufficeAndAllAtTargetOne) {
  const std::vector<double> prefix = {1, 2};
  const MassCurve curve{1, 0.01, 2, 100, 2};
  EXPECT_EQ(PrefixForTarget(curve, prefix.data(), 1e9, 0.9), 0);
  EXPECT_EQ(PrefixForTarget(curve, prefix.data(), 0, 1), 100);
  EXPECT_EQ(PrefixForTarget(curve, prefix.data(), 0, 1e-9), 1);
}

TEST(PrefixForTarget, StopsExactlyAtATie) {
  const std::vector<double> prefix = {1, 2, 3, 4};
  const MassCurve curve{0, 1, 4, 8, 4};  // every rank has mass 1
  for (int64_t k = 1; k <= 8; ++k) {
    EXPECT_EQ(PrefixForTarget(curve, prefix.data(), 0, static_cast<double>(k) / 8), k);
    EXPECT_EQ(PrefixForTarget(curve, prefix.data(), 8, (8 + static_cast<double>(k)) / 16), k);
  }
}

// Everything in the head, nothing after: the rest is read only for the very last mass.
TEST(PrefixForTarget, ACurveOfZeroMassEndsInTheHead) {
  const std::vector<double> prefix = {3, 3, 3};
  const MassCurve curve{0, 0, 3, 50, 3};
  EXPECT_EQ(PrefixForTarget(curve, prefix.data(), 0, 0.999), 1);
}

}  // namespace
}  // namespace tactic
