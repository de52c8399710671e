// Selection over what a code scan of mode tactic found. Included once per target.
#if defined(TACTIC_SRC_CPU_SELECT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SRC_CPU_SELECT_INL_H_
#undef TACTIC_SRC_CPU_SELECT_INL_H_
#else
#define TACTIC_SRC_CPU_SELECT_INL_H_
#endif

#include <algorithm>
#include <cstring>
#include <limits>

#include "src/cpu/estimate-inl.h"

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

// Stores the lanes of v for which mask holds one after the other, then garbage, a whole vector in
// all. Returns how many. Not CompressStore: of what writes only the lanes that count, Zen 4 makes
// microcode (23 ns for a vector, this 1.5).
template <class D, class T>
HWY_INLINE size_t Append(D d, hn::Vec<D> v, hn::Mask<D> mask, T* HWY_RESTRICT out) {
  hn::StoreU(hn::Compress(v, mask), d, out);
  return hn::CountTrue(d, mask);
}

HWY_ATTR void AddToBins(const float* keys, const uint32_t* blocks, size_t n, float floor,
                        MassBins* bins) {
  const hn::CappedTag<float, kCodeBlock> d;
  const hn::RebindToSigned<decltype(d)> di;
  const size_t lanes = hn::Lanes(d);
  const auto vfloor = hn::Set(d, floor);
  const auto last = hn::Set(d, kMassBins - 1.0f);
  constexpr size_t kBlocks = 64;  // at a time, so that the keys that count stay in L1
  HWY_ALIGN float found[kBlocks * kCodeBlock + kCodeBlock];
  HWY_ALIGN float mass[kCodeBlock];
  HWY_ALIGN int32_t bin[kCodeBlock];
  for (size_t begin = 0; begin < n; begin += kBlocks) {
    // First collect them, without a branch for each vector; then count them one by one.
    size_t count = 0;
    for (size_t b = begin; b < std::min(n, begin + kBlocks); ++b) {
      for (size_t i = 0; i < kCodeBlock; i += lanes) {
        const auto key = hn::LoadU(d, keys + blocks[b] * size_t{kCodeBlock} + i);
        count += Append(d, key, hn::Ge(key, vfloor), found + count);
      }
    }
    for (size_t i = 0; i < count; i += lanes) {
      const auto key = hn::LoadU(d, found + i);
      hn::Store(EstimateExp(d, hn::Min(key, hn::Set(d, kLargestExponent))), d, mass);
      const auto place = hn::Mul(hn::Sub(key, vfloor), hn::Set(d, kBinsPerLogit));
      hn::Store(hn::ConvertTo(di, hn::Min(place, last)), di, bin);
      for (size_t k = 0; k < std::min(lanes, count - i); ++k) {
        bins->mass[bin[k]] += mass[k];
        ++bins->count[bin[k]];
      }
    }
  }
}

HWY_ATTR size_t SelectKeys(const float* keys, size_t key_stride, int heads, const float* low,
                           const float* high, const uint32_t* blocks, size_t n, uint64_t* read,
                           uint32_t* out) {
  const hn::CappedTag<float, kCodeBlock> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const size_t lanes = hn::Lanes(d);
  size_t count = 0;
  for (size_t b = 0; b < n; ++b) {
    const size_t begin = blocks[b] * size_t{kCodeBlock};
    uint32_t found = 0;
    for (size_t i = 0; i < kCodeBlock; i += lanes) {
      auto any = hn::Lt(hn::Zero(d), hn::Zero(d));
      for (int g = 0; g < heads; ++g) {
        const auto key = hn::LoadU(d, keys + g * key_stride + begin + i);
        any =
            hn::Or(any, hn::And(hn::Ge(key, hn::Set(d, low[g])), hn::Lt(key, hn::Set(d, high[g]))));
      }
      found |= MaskBits(d, any) << i;
    }
    if (found == 0) continue;
    uint64_t& word = read[begin / 64];
    found &= ~static_cast<uint32_t>(word >> (begin % 64));
    word |= static_cast<uint64_t>(found) << (begin % 64);
    for (size_t i = 0; i < kCodeBlock; i += lanes) {
      const uint32_t bits = found >> i;
      uint8_t bytes[8] = {};
      std::memcpy(bytes, &bits, sizeof(bits));
      const auto mask = hn::LoadMaskBits(du, bytes);
      const auto number = hn::Iota(du, static_cast<uint32_t>(begin + i));
      count += Append(du, number, mask, out + count);
    }
  }
  return count;
}

HWY_ATTR size_t SumRange(const float* keys, const uint32_t* numbers, const float* logits, size_t n,
                         float low, float high, float reference, double* exact, double* estimated) {
  const hn::CappedTag<float, kCodeBlock> d;
  const hn::RebindToSigned<decltype(d)> di;
  const size_t lanes = hn::Lanes(d);
  const auto most = hn::Set(d, kLargestExponent);
  auto read = hn::Zero(d);
  auto guessed = hn::Zero(d);
  size_t count = 0;
  const auto add = [&](hn::Vec<decltype(d)> key, hn::Vec<decltype(d)> logit) HWY_ATTR {
    const auto in = hn::And(hn::Ge(key, hn::Set(d, low)), hn::Lt(key, hn::Set(d, high)));
    if (hn::AllFalse(d, in)) return;
    count += hn::CountTrue(d, in);
    const auto e = EstimateExp(d, hn::Min(hn::Sub(logit, hn::Set(d, reference)), most));
    read = hn::Add(read, hn::IfThenElseZero(in, e));
    guessed = hn::Add(guessed, hn::IfThenElseZero(in, EstimateExp(d, hn::Min(key, most))));
  };
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto at = hn::LoadU(di, reinterpret_cast<const int32_t*>(numbers) + i);
    add(hn::GatherIndex(d, keys, at), hn::LoadU(d, logits + i));
  }
  if (i < n) {
    HWY_ALIGN float key[kCodeBlock];
    HWY_ALIGN float logit[kCodeBlock] = {};
    std::fill(key, key + kCodeBlock, -std::numeric_limits<float>::infinity());
    for (size_t k = i; k < n; ++k) {
      key[k - i] = keys[numbers[k]];
      logit[k - i] = logits[k];
    }
    add(hn::Load(d, key), hn::Load(d, logit));
  }
  *exact += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, read)));
  *estimated += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, guessed)));
  return count;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
