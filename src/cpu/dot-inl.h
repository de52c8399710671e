// Dot products of bytes. Included once per target.
#if defined(TACTIC_SRC_CPU_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SRC_CPU_DOT_INL_H_
#undef TACTIC_SRC_CPU_DOT_INL_H_
#else
#define TACTIC_SRC_CPU_DOT_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "src/codes.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET != HWY_SCALAR
using ByteTag = hn::CappedTag<uint8_t, kCodeRow>;
using DotTag = hn::Repartition<int32_t, ByteTag>;

// sum[i] + the sum over j in [0, 4) of x[4 i + j] * q[4 i + j], x unsigned and q signed. REQUIRES:
// x < 128, or |q| <= kSmallByte and x as Biased() gives it: then the two-step forms cannot
// saturate. Highway of this version has no such operation.
HWY_INLINE hn::Vec<DotTag> DotAdd(hn::Vec<DotTag> sum, hn::Vec<ByteTag> x, hn::Vec<DotTag> q) {
#if HWY_TARGET != HWY_EMU128 && HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
  // By name: this version of Highway compiles the target without the intrinsics' flag, but uses it
  // only where the instruction exists.
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(x.raw), "v"(q.raw));
  return sum;
#elif HWY_TARGET == HWY_AVX3
  const __m512i pairs = _mm512_maddubs_epi16(x.raw, q.raw);
  return hn::Vec<DotTag>{_mm512_add_epi32(sum.raw, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
#elif HWY_TARGET == HWY_AVX2
  const __m256i pairs = _mm256_maddubs_epi16(x.raw, q.raw);
  return hn::Vec<DotTag>{_mm256_add_epi32(sum.raw, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
#elif HWY_TARGET == HWY_SSE4
  const __m128i pairs = _mm_maddubs_epi16(x.raw, q.raw);
  return hn::Vec<DotTag>{_mm_add_epi32(sum.raw, _mm_madd_epi16(pairs, _mm_set1_epi16(1)))};
#elif HWY_TARGET != HWY_EMU128 && HWY_ARCH_ARM_A64
  const int8x16_t a = vreinterpretq_s8_u8(x.raw);
  const int8x16_t b = vreinterpretq_s8_s32(q.raw);
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
  const int16x8_t high = vmull_s8(vget_high_s8(a), vget_high_s8(b));
  return hn::Vec<DotTag>{vpadalq_s16(sum.raw, vpaddq_s16(low, high))};
#else
  HWY_ALIGN uint8_t l[kCodeRow];
  HWY_ALIGN int32_t p[kCodeRow / 4];
  HWY_ALIGN int32_t s[kCodeRow / 4];
  hn::Store(x, ByteTag(), l);
  hn::Store(q, DotTag(), p);
  hn::Store(sum, DotTag(), s);
  for (size_t i = 0; i < hn::Lanes(DotTag()); ++i) {
    int8_t four[4];
    std::memcpy(four, &p[i], 4);
    for (size_t j = 0; j < 4; ++j) s[i] += l[4 * i + j] * four[j];
  }
  return hn::Load(DotTag(), s);
#endif
}

// Signed bytes as DotAdd takes them: each is kByteBias too large where the operation wants unsigned
// ones.
#if HWY_TARGET != HWY_EMU128 && HWY_ARCH_ARM_A64
constexpr int32_t kByteBias = 0;
#else
constexpr int32_t kByteBias = 128;
#endif
HWY_INLINE hn::Vec<ByteTag> Biased(hn::Vec<ByteTag> signed_bytes) {
  return hn::Xor(signed_bytes, hn::Set(ByteTag(), static_cast<uint8_t>(kByteBias)));
}
#endif  // not HWY_SCALAR

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
