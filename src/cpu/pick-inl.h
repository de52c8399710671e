// Picking lanes: those whose bit is set, one after the other. Included once per target.
//
// AVX-512 has an instruction for it, and scalable vectors have, which is Highway's Compress. Of its
// tables for the others, GCC 12 makes copies on the stack, 1 or 2 KiB for every vector (a third of
// the code scan on AVX2, three quarters of SelectKeys). So those have a table here.
#if defined(TACTIC_SRC_CPU_PICK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SRC_CPU_PICK_INL_H_
#undef TACTIC_SRC_CPU_PICK_INL_H_
#else
#define TACTIC_SRC_CPU_PICK_INL_H_
#endif

#include <bit>
#include <cstring>

#include "hwy/highway.h"
#include "src/cpu/pick_table.h"

#undef TACTIC_PICK_BY_TABLE
#if HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_SCALAR || HWY_HAVE_SCALABLE
#define TACTIC_PICK_BY_TABLE 0
#else
#define TACTIC_PICK_BY_TABLE 1
#endif

HWY_BEFORE_NAMESPACE();
namespace tactic::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One bit for each lane, at most 16.
template <class D>
HWY_INLINE uint32_t MaskBits(D d, hn::Mask<D> mask) {
  uint8_t bytes[8] = {};
  hn::StoreMaskBits(d, mask, bytes);
  uint16_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  return bits;
}

// The lanes whose bit is set.
template <class D>
HWY_INLINE hn::Mask<D> BitsMask(D d, uint32_t bits) {
  uint8_t bytes[8] = {};
  std::memcpy(bytes, &bits, sizeof(bits));
  return hn::LoadMaskBits(d, bytes);
}

// Lanes of at most kPickLanes, of 16 or 32 bits, that are wanted of several vectors.
#if TACTIC_PICK_BY_TABLE
inline constexpr size_t kPickLanes = 8;

template <class D>
class LanePicker {
 public:
  // Of the lowest Lanes(d) bits, those that are set.
  HWY_INLINE LanePicker(D d, uint32_t bits) {
    bits &= (1u << hn::Lanes(d)) - 1;
    count_ = static_cast<size_t>(std::popcount(bits));
    const hn::Rebind<uint8_t, D> du8;
    const auto numbers = hn::LoadU(du8, kPickTable.lanes[bits]);
    if constexpr (sizeof(hn::TFromD<D>) == 2) {
      // Lane i is bytes 2 i and 2 i + 1.
      const hn::RebindToUnsigned<D> du;
      const auto wide = hn::PromoteTo(du, numbers);
      const auto twice = hn::Or(hn::ShiftLeft<1>(wide), hn::ShiftLeft<9>(wide));
      from_ = hn::BitCast(d, hn::Or(twice, hn::Set(du, 0x0100)));
    } else {
      from_ = hn::BitCast(d, hn::PromoteTo(hn::RebindToSigned<D>(), numbers));
    }
  }
  HWY_INLINE size_t count() const { return count_; }
  // Then garbage.
  HWY_INLINE hn::Vec<D> Pick(D d, hn::Vec<D> v) const {
    if constexpr (sizeof(hn::TFromD<D>) == 2) {
      return hn::TableLookupBytes(v, from_);
    } else {
      const auto numbers = hn::BitCast(hn::RebindToSigned<D>(), from_);
      return hn::TableLookupLanes(v, hn::IndicesFromVec(d, numbers));
    }
  }

 private:
  size_t count_;
  hn::Vec<D> from_;
};
#else
inline constexpr size_t kPickLanes = 16;

template <class D>
class LanePicker {
 public:
  HWY_INLINE LanePicker(D d, uint32_t bits) : mask_(BitsMask(d, bits)) {
    count_ = hn::CountTrue(d, mask_);
  }
  HWY_INLINE size_t count() const { return count_; }
  HWY_INLINE hn::Vec<D> Pick(D, hn::Vec<D> v) const { return hn::Compress(v, mask_); }

 private:
  size_t count_;
  hn::Mask<D> mask_;
};
#endif

// Stores the lanes of v for which mask holds one after the other, then garbage, a whole vector in
// all. Returns how many. Not CompressStore: of what writes only the lanes that count, Zen 4 makes
// microcode (23 ns for a vector, this 1.5).
template <class D, class T>
HWY_INLINE size_t Append(D d, hn::Vec<D> v, hn::Mask<D> mask, T* HWY_RESTRICT out) {
#if TACTIC_PICK_BY_TABLE
  const LanePicker<D> picker(d, MaskBits(d, mask));
  hn::StoreU(picker.Pick(d, v), d, out);
  return picker.count();
#else
  hn::StoreU(hn::Compress(v, mask), d, out);
  return hn::CountTrue(d, mask);
#endif
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
