// Kernels of mode tactic's cluster filter: what clusters may hold, and which of them are kept.
// Included once per target.
#if defined(TACTIC_SRC_CPU_FILTER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SRC_CPU_FILTER_INL_H_
#undef TACTIC_SRC_CPU_FILTER_INL_H_
#else
#define TACTIC_SRC_CPU_FILTER_INL_H_
#endif

#include <cmath>
#include <limits>

#include "src/cpu/estimate-inl.h"
#include "src/segment.h"
#include "src/selection_rule.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

HWY_ATTR void EstimateClusters(const ClusterFacts& facts, const float* scores,
                               const float* run_energy, int head_dim, float softcap, float* masses,
                               float* floors, float* tokens) {
  const hn::CappedTag<float, kCentroidLanes> d;
  using V = hn::Vec<decltype(d)>;
  const auto padded = static_cast<size_t>(facts.padded);
  const V two = hn::Set(d, 2.0f);
  const V aligned = hn::Set(d, kAligned * std::sqrt(static_cast<float>(head_dim)));
  for (size_t c = 0; c < padded; c += hn::Lanes(d)) {
    V variance = hn::Zero(d);
    for (size_t r = 0; r < Codes::kRuns; ++r) {
      const V spread = LoadByteFloats(d, facts.spreads + r * padded + c);
      variance = hn::MulAdd(hn::Mul(spread, spread), hn::Set(d, run_energy[r]), variance);
    }
    const V longest = LoadByteFloats(d, facts.spreads + Codes::kRuns * padded + c);
    const V log_size = hn::LoadU(d, facts.log_sizes + c);
    const V score = Capped(d, hn::LoadU(d, scores + c), softcap);
    // log of the mean of exp over n draws of a Gaussian: v / 2, but no more than the largest of n
    // draws can give (random-energy model).
    const V v = hn::Min(variance, hn::Set(d, 2 * kLargestHalfVariance));
    const V edge = hn::Mul(two, hn::Max(log_size, hn::Zero(d)));  // 2 log n
    const V gaussian = hn::Mul(v, hn::Set(d, 0.5f));
    const V few = hn::Sub(hn::Sqrt(hn::Mul(v, edge)), hn::Mul(edge, hn::Set(d, 0.5f)));
    const V excess = hn::IfThenElse(hn::Lt(v, edge), gaussian, few);
    const V floor = hn::Add(score, log_size);
    hn::StoreU(floor, d, floors + c);
    hn::StoreU(hn::Add(floor, excess), d, masses + c);
    // By its length, and where it may have the query's direction (selection_rule.h).
    const V apart = hn::Mul(longest, hn::Max(hn::Set(d, 1.0f), hn::Mul(aligned, longest)));
    const V reach = hn::Mul(hn::Set(d, 3.0f), hn::Mul(hn::Sqrt(variance), apart));
    const V token = Capped(d, hn::Add(hn::LoadU(d, scores + c), reach), softcap);
    // An empty slot holds nothing.
    hn::StoreU(hn::IfThenElse(hn::Eq(log_size, hn::Set(d, -std::numeric_limits<float>::infinity())),
                              log_size, token),
               d, tokens + c);
  }
}

HWY_ATTR float SumUpTo(const float* x, size_t n, float limit) {
  const hn::CappedTag<float, kCentroidLanes> d;
  const auto vlimit = hn::Set(d, limit);
  auto sum = hn::Zero(d);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto v = hn::LoadU(d, x + i);
    sum = hn::Add(sum, hn::IfThenElseZero(hn::Le(v, vlimit), v));
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

HWY_ATTR bool LargestMass(const float* masses, size_t n, float* most) {
  const hn::CappedTag<float, kCentroidLanes> d;
  const auto infinity = hn::Set(d, std::numeric_limits<float>::infinity());
  auto largest = hn::Set(d, *most);
  auto finite = hn::Eq(largest, largest);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto v = hn::LoadU(d, masses + i);
    finite = hn::And(finite, hn::Lt(v, infinity));  // false for a NaN, too
    largest = hn::Max(largest, v);
  }
  *most = hn::GetLane(hn::MaxOfLanes(d, largest));
  return hn::AllTrue(d, finite);
}

HWY_ATTR void KeepClusters(const float* masses, const float* tokens, size_t n, float mass,
                           float token, uint8_t* kept) {
  const hn::CappedTag<float, kCentroidLanes> d;
  const hn::Rebind<uint8_t, decltype(d)> du8;
  const hn::RebindToSigned<decltype(d)> di;
  const auto one = hn::Set(di, 1);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto above = hn::Or(hn::Gt(hn::LoadU(d, masses + i), hn::Set(d, mass)),
                              hn::Gt(hn::LoadU(d, tokens + i), hn::Set(d, token)));
    const auto ones = hn::IfThenElseZero(hn::RebindMask(di, above), one);
    hn::StoreU(hn::Or(hn::LoadU(du8, kept + i), hn::DemoteTo(du8, ones)), du8, kept + i);
  }
}

HWY_ATTR MassSums SumMasses(const float* masses, const uint8_t* kept, size_t n) {
  const hn::CappedTag<float, kCentroidLanes> d;
  const hn::Rebind<uint8_t, decltype(d)> du8;
  const hn::RebindToUnsigned<decltype(d)> du;
  auto all = hn::Zero(d);
  auto skipped = hn::Zero(d);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto v = hn::LoadU(d, masses + i);
    const auto out = hn::Eq(hn::PromoteTo(du, hn::LoadU(du8, kept + i)), hn::Zero(du));
    all = hn::Add(all, v);
    skipped = hn::Add(skipped, hn::IfThenElseZero(hn::RebindMask(d, out), v));
  }
  return {hn::GetLane(hn::SumOfLanes(d, all)), hn::GetLane(hn::SumOfLanes(d, skipped))};
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
