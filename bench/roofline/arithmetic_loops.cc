#include "bench/roofline/arithmetic_loops.h"

#include <cstdint>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/roofline/arithmetic_loops.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.
#include "src/cpu/dot-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Sums in flight: as many as hide the latency of two multiply-adds a cycle, and no more than AVX2
// has registers for.
constexpr size_t kSums = 12;
// One factor is read anew each time and spread over a vector, as a weight or a query is.
constexpr size_t kFactors = 64;
constexpr size_t kRounds = 64;

// sum = add(sum, x, factor) for all sums and factors, kRounds times. An x is a vector of DX, a sum
// and a factor of DSum.
template <class DX, class DSum, class Add>
HWY_INLINE size_t Multiply(DX dx, DSum ds, const Add& add) {
  HWY_ALIGN hn::TFromD<DSum> factors[kFactors] = {};
  // For all that the compiler knows, factors are read here and change.
  const auto use_factors = [&] { asm volatile("" : : "r"(factors) : "memory"); };
  hn::Vec<DX> x[kSums];
  hn::Vec<DSum> sums[kSums];
  for (size_t s = 0; s < kSums; ++s) {
    x[s] = hn::Set(dx, static_cast<hn::TFromD<DX>>(s));
    sums[s] = hn::Zero(ds);
  }
  for (size_t round = 0; round < kRounds; ++round) {
    use_factors();
    for (const auto factor : factors) {
      const auto spread = hn::Set(ds, factor);
      for (size_t s = 0; s < kSums; ++s) sums[s] = add(sums[s], x[s], spread);
    }
  }
  for (const auto sum : sums) {
    hn::StoreU(sum, ds, factors);
    use_factors();
  }
  return kRounds * kFactors * kSums * hn::Lanes(dx);
}

HWY_ATTR size_t MultiplyFloats() {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  return Multiply(d, d, [](V sum, V x, V factor) HWY_ATTR { return hn::MulAdd(x, factor, sum); });
}

HWY_ATTR size_t MultiplyBytes() {
#if HWY_TARGET == HWY_SCALAR
  return MultiplyFloats();  // the scan of this target multiplies one by one, too
#else
  namespace kernels = cpu::HWY_NAMESPACE;
  using Sum = hn::Vec<kernels::DotTag>;
  return Multiply(kernels::ByteTag(), kernels::DotTag(),
                  [](Sum sum, hn::Vec<kernels::ByteTag> x, Sum factor)
                      HWY_ATTR { return kernels::DotAdd(sum, x, factor); });
#endif
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tactic::bench {

HWY_EXPORT(MultiplyFloats);
HWY_EXPORT(MultiplyBytes);

size_t MultiplyFloats() { return HWY_DYNAMIC_DISPATCH(MultiplyFloats)(); }

size_t MultiplyBytes() { return HWY_DYNAMIC_DISPATCH(MultiplyBytes)(); }

}  // namespace tactic::bench
#endif  // HWY_ONCE
