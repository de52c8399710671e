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

constexpr bool IsQuantised(ElementType type) {
  return type == ElementType::kQ8_0 || type == ElementType::kQ4_0;
}

// The block of `row` that holds element i. REQUIRES: kType is quantised, here and below.
template <ElementType kType>
HWY_INLINE const uint8_t* BlockOf(const uint8_t* row, size_t i) {
  return row + i / kQuantBlock * (kType == ElementType::kQ8_0 ? kQ8BlockBytes : kQ4BlockBytes);
}

template <class D>
HWY_INLINE hn::Vec<D> BlockScale(D d, const uint8_t* block) {
  uint16_t bits;
  std::memcpy(&bits, block, sizeof(bits));
  const hn::Rebind<uint16_t, D> du16;
  const hn::Rebind<hwy::float16_t, D> dh;
  return PromoteHalf(d, hn::BitCast(dh, hn::Set(du16, bits)));
}

// Elements [i, i + Lanes(d)) of a block, over its scale.
template <ElementType kType, class D>
HWY_INLINE hn::Vec<D> BlockElements(D d, const uint8_t* block, size_t i) {
  const hn::RebindToSigned<D> di;
  if constexpr (kType == ElementType::kQ8_0) {
    const hn::Rebind<int8_t, D> di8;
    const auto q = hn::LoadU(di8, reinterpret_cast<const int8_t*>(block + 2) + i);
    return hn::ConvertTo(d, hn::PromoteTo(di, q));
  } else {
    const hn::Rebind<uint8_t, D> du8;
    auto q = hn::PromoteTo(di, hn::LoadU(du8, block + 2 + i % 16));
    q = i < 16 ? hn::And(q, hn::Set(di, 15)) : hn::ShiftRight<4>(q);
    return hn::ConvertTo(d, hn::Sub(q, hn::Set(di, 8)));
  }
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
    const uint8_t* block = BlockOf<kType>(row, i);
    return hn::Mul(BlockScale(d, block), BlockElements<kType>(d, block, i % kQuantBlock));
  }
}

// Vectors of a quantised block, whose scale LoadVectors converts once; 1 for the other types.
template <ElementType kType, class D>
constexpr size_t kBlockVectors = IsQuantised(kType) ? kQuantBlock / hn::MaxLanes(D()) : 1;

// v: the elements of `row` from i on, a multiple of how many these are, a vector each. REQUIRES:
// kVectors is 1 or kBlockVectors.
template <ElementType kType, size_t kVectors, class D>
HWY_INLINE void LoadVectors(D d, const uint8_t* HWY_RESTRICT row, size_t i,
                            hn::Vec<D> (&v)[kVectors]) {
  if constexpr (kVectors == 1) {
    v[0] = LoadElements<kType>(d, row, i);
  } else {
    static_assert(kVectors == kBlockVectors<kType, D>);
    const uint8_t* block = BlockOf<kType>(row, i);
    const auto scale = BlockScale(d, block);
    for (size_t c = 0; c < kVectors; ++c)
      v[c] = hn::Mul(scale, BlockElements<kType>(d, block, c * hn::Lanes(d)));
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
