// Selection over what a code scan of mode tactic found. Included once per target.
#if defined(TACTIC_SRC_CPU_SELECT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SRC_CPU_SELECT_INL_H_
#undef TACTIC_SRC_CPU_SELECT_INL_H_
#else
#define TACTIC_SRC_CPU_SELECT_INL_H_
#endif

#include <algorithm>
#include <cstring>

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

HWY_ATTR void AddToBins(const KeyLevel* keys, const uint32_t* blocks, size_t n, uint32_t floor,
                        MassBins* bins) {
  const hn::CappedTag<float, kCodeBlock> d;
  const hn::RebindToSigned<decltype(d)> di;
  const size_t lanes = hn::Lanes(d);
  const auto lowest = hn::Set(di, static_cast<int32_t>(floor) - 1);
  constexpr int kBinShift = 6;
  static_assert(kBinLevels == 1u << kBinShift);
  constexpr size_t kBlocks = 64;  // at a time, so that the keys that count stay in L1
  HWY_ALIGN int32_t found[kBlocks * kCodeBlock + kCodeBlock] = {};
  HWY_ALIGN float mass[kCodeBlock];
  HWY_ALIGN int32_t bin[kCodeBlock];
  for (size_t begin = 0; begin < n; begin += kBlocks) {
    // First collect them, without a branch for each vector; then count them one by one.
    size_t count = 0;
    for (size_t b = begin; b < std::min(n, begin + kBlocks); ++b) {
      for (size_t i = 0; i < kCodeBlock; i += lanes) {
        const auto level = LoadLevels(d, keys + blocks[b] * size_t{kCodeBlock} + i);
        count += Append(di, level, hn::Gt(level, lowest), found + count);
      }
    }
    for (size_t i = 0; i < count; i += lanes) {
      const auto level = hn::LoadU(di, found + i);
      hn::Store(EstimateExp(d, KeyOf(d, level)), d, mass);
      const auto place = hn::ShiftRight<kBinShift>(hn::Sub(level, hn::Add(lowest, hn::Set(di, 1))));
      hn::Store(hn::Min(place, hn::Set(di, kMassBins - 1)), di, bin);
      for (size_t k = 0; k < std::min(lanes, count - i); ++k) {
        bins->mass[bin[k]] += mass[k];
        ++bins->count[bin[k]];
      }
    }
  }
}

// Which levels are in a range: those that, less its low end, are below its width, as unsigned
// numbers.
template <class D>
HWY_INLINE hn::Mask<D> InRange(D d, hn::Vec<D> level, KeyRange range) {
  const auto low = hn::Set(d, static_cast<KeyLevel>(range.low));
  const auto width = hn::Set(d, static_cast<KeyLevel>(range.high - range.low));
  return hn::Lt(hn::Sub(level, low), width);
}

HWY_ATTR size_t SelectKeys(const KeyLevel* keys, size_t key_stride, int heads,
                           const KeyRange* ranges, const uint32_t* blocks, size_t n, uint64_t* read,
                           uint32_t* out) {
  const hn::CappedTag<KeyLevel, kCodeBlock> d;
  const hn::CappedTag<uint32_t, kCodeBlock> dn;
  size_t count = 0;
  for (size_t b = 0; b < n; ++b) {
    const size_t begin = blocks[b] * size_t{kCodeBlock};
    uint32_t found = 0;
    for (size_t i = 0; i < kCodeBlock; i += hn::Lanes(d)) {
      auto any = InRange(d, hn::LoadU(d, keys + begin + i), ranges[0]);
      for (int g = 1; g < heads; ++g)
        any = hn::Or(any, InRange(d, hn::LoadU(d, keys + g * key_stride + begin + i), ranges[g]));
      found |= MaskBits(d, any) << i;
    }
    if (found == 0) continue;
    uint64_t& word = read[begin / 64];
    found &= ~static_cast<uint32_t>(word >> (begin % 64));
    word |= static_cast<uint64_t>(found) << (begin % 64);
    for (size_t i = 0; i < kCodeBlock; i += hn::Lanes(dn)) {
      const uint32_t bits = found >> i;
      uint8_t bytes[8] = {};
      std::memcpy(bytes, &bits, sizeof(bits));
      count += Append(dn, hn::Iota(dn, static_cast<uint32_t>(begin + i)),
                      hn::LoadMaskBits(dn, bytes), out + count);
    }
  }
  return count;
}

HWY_ATTR size_t SumRange(const KeyLevel* keys, const uint32_t* numbers, const float* logits,
                         size_t n, KeyRange range, float reference, double* exact,
                         double* estimated) {
  const hn::CappedTag<float, kCodeBlock> d;
  const hn::RebindToSigned<decltype(d)> di;
  const size_t lanes = hn::Lanes(d);
  const auto most = hn::Set(d, kLargestExponent);
  const auto below = hn::Set(di, static_cast<int32_t>(range.low) - 1);
  const auto high = hn::Set(di, static_cast<int32_t>(range.high));
  auto read = hn::Zero(d);
  auto guessed = hn::Zero(d);
  size_t count = 0;
  HWY_ALIGN int32_t level[kCodeBlock];
  HWY_ALIGN float logit[kCodeBlock] = {};
  for (size_t i = 0; i < n; i += lanes) {
    const size_t rows = std::min(lanes, n - i);
    std::memcpy(logit, logits + i, rows * sizeof(float));
    for (size_t k = 0; k < rows; ++k) level[k] = keys[numbers[i + k]];
    for (size_t k = rows; k < lanes; ++k) level[k] = kSkippedKey;
    const auto key = hn::Load(di, level);
    const auto in = hn::And(hn::Gt(key, below), hn::Lt(key, high));
    if (hn::AllFalse(di, in)) continue;
    count += hn::CountTrue(di, in);
    const auto counts = hn::RebindMask(d, in);
    const auto x = hn::Sub(hn::Load(d, logit), hn::Set(d, reference));
    read = hn::Add(read, hn::IfThenElseZero(counts, EstimateExp(d, hn::Min(x, most))));
    guessed = hn::Add(guessed, hn::IfThenElseZero(counts, EstimateExp(d, KeyOf(d, key))));
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
