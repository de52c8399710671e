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

// Calls add(factor) for all factors, kRounds times. For all that the compiler knows, factors change
// from round to round.
template <class T, class Add>
HWY_INLINE void ForRounds(T* factors, const Add& add) {
  for (size_t round = 0; round < kRounds; ++round) {
    asm volatile("" : : "r"(factors) : "memory");
    for (size_t f = 0; f < kFactors; ++f) add(factors[f]);
  }
}

HWY_ATTR size_t MultiplyFloats() {
  const hn::ScalableTag<float> d;
  HWY_ALIGN float factors[kFactors] = {};
  hn::Vec<decltype(d)> x[kSums];
  hn::Vec<decltype(d)> sums[kSums];
  for (size_t s = 0; s < kSums; ++s) {
    x[s] = hn::Set(d, static_cast<float>(s));
    sums[s] = hn::Zero(d);
  }
  ForRounds(factors, [&](float factor) HWY_ATTR {
    const auto w = hn::Set(d, factor);
    for (size_t s = 0; s < kSums; ++s) sums[s] = hn::MulAdd(x[s], w, sums[s]);
  });
  for (const auto sum : sums) {
    hn::StoreU(sum, d, factors);
    asm volatile("" : : "r"(factors) : "memory");
  }
  return kRounds * kFactors * kSums * hn::Lanes(d);
}

HWY_ATTR size_t MultiplyBytes() {
#if HWY_TARGET == HWY_SCALAR
  return MultiplyFloats();  // the scan of this target multiplies one by one, too
#else
  const cpu::HWY_NAMESPACE::ByteTag d;
  const cpu::HWY_NAMESPACE::DotTag di;
  HWY_ALIGN int32_t factors[kFactors] = {};
  hn::Vec<decltype(d)> x[kSums];
  hn::Vec<decltype(di)> sums[kSums];
  for (size_t s = 0; s < kSums; ++s) {
    x[s] = hn::Set(d, static_cast<uint8_t>(s));
    sums[s] = hn::Zero(di);
  }
  ForRounds(factors, [&](int32_t factor) HWY_ATTR {
    const auto q = hn::Set(di, factor);
    for (size_t s = 0; s < kSums; ++s) sums[s] = cpu::HWY_NAMESPACE::DotAdd(sums[s], x[s], q);
  });
  for (const auto sum : sums) {
    hn::StoreU(sum, di, factors);
    asm volatile("" : : "r"(factors) : "memory");
  }
  return kRounds * kFactors * kSums * hn::Lanes(d);
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
