// Loads a vector of f32 from a row of any element type. Included once per target.
#if defined(TACTIC_SRC_CPU_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SRC_CPU_LOAD_INL_H_
#undef TACTIC_SRC_CPU_LOAD_INL_H_
#else
#define TACTIC_SRC_CPU_LOAD_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "tactic/rows_view.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The widest vectors in use. 16 lanes at most: a quantised block holds two of them. Rows whose
// length is a multiple of 8 but not of 16 use the narrow tag, so that no kernel needs a tail.
using WideTag = hn::CappedTag<float, 16>;
using NarrowTag = hn::CappedTag<float, 8>;

// f16 to f32. Highway emulates the conversion where the CPU has none, as if the largest exponent
// were an ordinary one: infinities and NaN come out as 65,536 and more, which no finite half
// reaches. They get their exponent back.
template <class D>
HWY_INLINE hn::Vec<D> PromoteHalf(D d, hn::Vec<hn::Rebind<hwy::float16_t, D>> half) {
  const auto v = hn::PromoteTo(d, half);
#if HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SCALAR
  const auto special = hn::VecFromMask(d, hn::Ge(hn::Abs(v), hn::Set(d, 65536.0f)));
  return hn::Or(v, hn::And(special, hn::Set(d, std::numeric_limits<float>::infinity())));
#else
  return v;
#endif
}

// Elements [i, i + Lanes(d)) of `row`. REQUIRES: i is a multiple of Lanes(d).
template <ElementType kType, class D>
HWY_INLINE hn::Vec<D> LoadElements(D d, const uint8_t* HWY_RESTRICT row, size_t i) {
  if constexpr (kType == ElementType::kF32) {
    return hn::LoadU(d, reinterpret_cast<const float*>(row) + i);
  } else if constexpr (kType == ElementType::kF16) {
    const hn::Rebind<hwy::float16_t, D> dh;
    return PromoteHalf(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(row) + i));
  } else if constexpr (kType == ElementType::kBF16) {
    const hn::Rebind<hwy::bfloat16_t, D> db;
    return hn::PromoteTo(d, hn::LoadU(db, reinterpret_cast<const hwy::bfloat16_t*>(row) + i));
  } else {
    constexpr size_t kBytes = kType == ElementType::kQ8_0 ? kQ8BlockBytes : kQ4BlockBytes;
    const uint8_t* block = row + i / kQuantBlock * kBytes;
    const size_t within = i % kQuantBlock;
    uint16_t scale_bits;
    std::memcpy(&scale_bits, block, sizeof(scale_bits));
    const hn::Rebind<uint16_t, D> du16;
    const hn::Rebind<hwy::float16_t, D> dh;
    const hn::RebindToSigned<D> di;
    const auto scale = PromoteHalf(d, hn::BitCast(dh, hn::Set(du16, scale_bits)));
    if constexpr (kType == ElementType::kQ8_0) {
      const hn::Rebind<int8_t, D> di8;
      const auto q =
          hn::PromoteTo(di, hn::LoadU(di8, reinterpret_cast<const int8_t*>(block + 2) + within));
      return hn::Mul(scale, hn::ConvertTo(d, q));
    } else {
      const hn::Rebind<uint8_t, D> du8;
      auto q = hn::PromoteTo(di, hn::LoadU(du8, block + 2 + within % 16));
      q = within < 16 ? hn::And(q, hn::Set(di, 15)) : hn::ShiftRight<4>(q);
      return hn::Mul(scale, hn::ConvertTo(d, hn::Sub(q, hn::Set(di, 8))));
    }
  }
}

// Calls f(std::integral_constant<ElementType, type>).
template <class F>
HWY_INLINE void WithType(ElementType type, const F& f) {
  switch (type) {
    case ElementType::kF32:
      return f(std::integral_constant<ElementType, ElementType::kF32>());
    case ElementType::kF16:
      return f(std::integral_constant<ElementType, ElementType::kF16>());
    case ElementType::kBF16:
      return f(std::integral_constant<ElementType, ElementType::kBF16>());
    case ElementType::kQ8_0:
      return f(std::integral_constant<ElementType, ElementType::kQ8_0>());
    case ElementType::kQ4_0:
      return f(std::integral_constant<ElementType, ElementType::kQ4_0>());
  }
}

// Calls f(tag) with the widest tag whose vectors tile rows of `dim` elements.
template <class F>
HWY_INLINE void WithTag(int dim, const F& f) {
  if (dim % 16 == 0) return f(WideTag());
  f(NarrowTag());
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
