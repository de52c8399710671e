// The paper's mass curve (section 4.4): y(x) = exp(logit of rank x) follows a / x + b after the
// head. Two window means give a and b; the prefix that reaches the target follows.
//
// Everything is in units of exp(logit - m) for one maximum m shared by the head, the windows and
// the always-attended rows: the fit compares means of exponentials, which is meaningless when their
// maxima differ.
#ifndef TACTIC_SRC_BUDGET_PAPER_H_
#define TACTIC_SRC_BUDGET_PAPER_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace tactic {

// A window of ranks [first, first + width), counted from 0.
struct CurveWindow {
  int64_t first = 0;
  int64_t width = 0;

  // Mean of 1 / x over the window, x the rank counted from 1: used in place of 1 / its middle,
  // which is biased for wide windows.
  double MeanInverse() const {
    double sum = 0;
    for (int64_t i = 0; i < width; ++i) sum += 1.0 / static_cast<double>(first + i + 1);
    return sum / static_cast<double>(width);
  }
};

// Where a curve over `n` ranks is sampled.
struct CurvePlan {
  int64_t head = 0;  // the first ranks, all of them
  CurveWindow near;
  CurveWindow far;

  // Fewest samples of a window: below 8 its mean is noise.
  static constexpr int64_t kSmallestWindow = 8;

  // REQUIRES: n >= 4 * kSmallestWindow.
  static CurvePlan Make(int64_t n, double head_share, double near_at, double far_at,
                        double window_share) {
    const auto share = [n](double s) { return static_cast<int64_t>(s * static_cast<double>(n)); };
    const int64_t width = std::min(n, std::max(kSmallestWindow, share(window_share)));
    const auto window = [&](double at) {
      return CurveWindow{std::clamp<int64_t>(share(at) - width / 2, 0, n - width), width};
    };
    const auto head = static_cast<int64_t>(std::ceil(head_share * static_cast<double>(n)));
    return {std::clamp<int64_t>(head, 1, n), window(near_at), window(far_at)};
  }

  int64_t Samples() const { return head + near.width + far.width; }
};

struct MassCurve {
  double a = 0;
  double b = 0;
  int64_t head = 0;      // ranks known exactly
  int64_t n = 0;         // ranks in all
  double head_mass = 0;  // their sum

  // Estimated mass of the first x ranks, x >= head.
  double Mass(int64_t x) const {
    return head_mass + a * std::log(static_cast<double>(x) / static_cast<double>(head)) +
           b * static_cast<double>(x - head);
  }
};

// Fits a / x + b through the two window means. Guards: a >= 0 and b >= 0, since real means are
// noisy: a rising pair becomes its average, a curve that would turn negative passes through the
// near window alone.
inline MassCurve FitCurve(const CurvePlan& plan, int64_t n, double head_mass, double near_mean,
                          double far_mean) {
  const double near_inverse = plan.near.MeanInverse();
  const double far_inverse = plan.far.MeanInverse();
  MassCurve curve{0, 0, plan.head, n, head_mass};
  if (near_inverse > far_inverse) curve.a = (near_mean - far_mean) / (near_inverse - far_inverse);
  curve.b = far_mean - curve.a * far_inverse;
  if (!(curve.a > 0)) {
    curve.a = 0;
    curve.b = (near_mean + far_mean) / 2;
  }
  if (curve.b < 0) {
    curve.b = 0;
    curve.a = near_mean / near_inverse;
  }
  return curve;
}

// Smallest number of ranks whose mass, with `fixed_mass` read anyway, reaches `target` of the
// total. `head_prefix[i]` is the sum of the first i + 1 ranks, i < curve.head.
inline int64_t PrefixForTarget(const MassCurve& curve, const double* head_prefix, double fixed_mass,
                               double target) {
  const double total = fixed_mass + curve.Mass(curve.n);
  const double need = target * total - fixed_mass;
  if (need <= 0) return 0;
  if (target >= 1) return curve.n;
  if (need <= head_prefix[curve.head - 1]) {
    return std::lower_bound(head_prefix, head_prefix + curve.head, need) - head_prefix + 1;
  }
  int64_t low = curve.head;  // Mass(low) < need <= Mass(high)
  int64_t high = curve.n;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (curve.Mass(middle) >= need ? high : low) = middle;
  }
  return high;
}

}  // namespace tactic

#endif  // TACTIC_SRC_BUDGET_PAPER_H_
