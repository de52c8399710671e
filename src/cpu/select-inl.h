// Selection over what a code scan of mode tactic found. Included once per target.
#if defined(TACTIC_SRC_CPU_SELECT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SRC_CPU_SELECT_INL_H_
#undef TACTIC_SRC_CPU_SELECT_INL_H_
#else
#define TACTIC_SRC_CPU_SELECT_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "src/cpu/bins-inl.h"
#include "src/cpu/estimate-inl.h"
#include "tactic/shape.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

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
                           uint32_t* numbers, KeyLevel* levels, size_t level_stride) {
  const hn::CappedTag<KeyLevel, kCodeBlock> d;
  const hn::CappedTag<KeyLevel, kPickLanes> dp;
  const hn::RebindToSigned<hn::CappedTag<float, kCodeBlock>> di;
  int looking[LayerShape::kMaxGroup];  // heads whose range is not empty
  int lookers = 0;
  for (int g = 0; g < heads; ++g) {
    looking[lookers] = g;
    lookers += ranges[g].low < ranges[g].high ? 1 : 0;
  }
  if (lookers == 0) return 0;
  size_t count = 0;
  for (size_t b = 0; b < n; ++b) {
    const size_t begin = blocks[b] * size_t{kCodeBlock};
    uint32_t found = 0;
    for (size_t i = 0; i < kCodeBlock; i += hn::Lanes(d)) {
      const KeyLevel* at = keys + begin + i;
      auto any = InRange(d, hn::LoadU(d, at + looking[0] * key_stride), ranges[looking[0]]);
      for (int l = 1; l < lookers; ++l) {
        const int g = looking[l];
        any = hn::Or(any, InRange(d, hn::LoadU(d, at + g * key_stride), ranges[g]));
      }
      found |= MaskBits(d, any) << i;
    }
    if (found == 0) continue;
    uint64_t& word = read[begin / 64];
    found &= ~static_cast<uint32_t>(word >> (begin % 64));
    word |= static_cast<uint64_t>(found) << (begin % 64);
    size_t listed = count;
    for (size_t i = 0; i < kCodeBlock; i += hn::Lanes(dp)) {
      const LanePicker<decltype(dp)> picker(dp, found >> i);
      for (int g = 0; g < heads; ++g) {
        const auto level = hn::LoadU(dp, keys + g * key_stride + begin + i);
        hn::StoreU(picker.Pick(dp, level), dp, levels + g * level_stride + listed);
      }
      listed += picker.count();
    }
    for (size_t i = 0; i < kCodeBlock; i += hn::Lanes(di)) {
      const LanePicker<decltype(di)> picker(di, found >> i);
      const auto number = hn::Iota(di, static_cast<int32_t>(begin + i));
      hn::StoreU(picker.Pick(di, number), di, reinterpret_cast<int32_t*>(numbers) + count);
      count += picker.count();
    }
  }
  return count;
}

HWY_ATTR size_t SumRange(const KeyLevel* keys, const float* logits, size_t n, KeyRange range,
                         float reference, double* exact, double* estimated) {
  const hn::CappedTag<float, kCodeBlock> d;
  const hn::RebindToSigned<decltype(d)> di;
  const size_t lanes = hn::Lanes(d);
  const auto most = hn::Set(d, kLargestExponent);
  const auto below = hn::Set(di, static_cast<int32_t>(range.low) - 1);
  const auto high = hn::Set(di, static_cast<int32_t>(range.high));
  auto read = hn::Zero(d);
  auto guessed = hn::Zero(d);
  size_t count = 0;
  const auto add = [&](const KeyLevel* levels, const float* logit) HWY_ATTR {
    const auto key = LoadLevels(d, levels);
    const auto in = hn::And(hn::Gt(key, below), hn::Lt(key, high));
    if (hn::AllFalse(di, in)) return;
    count += hn::CountTrue(di, in);
    const auto counts = hn::RebindMask(d, in);
    const auto x = hn::Sub(hn::LoadU(d, logit), hn::Set(d, reference));
    read = hn::Add(read, hn::IfThenElseZero(counts, EstimateExp(d, hn::Min(x, most))));
    guessed = hn::Add(guessed, hn::IfThenElseZero(counts, MassOf(d, key)));
  };
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) add(keys + i, logits + i);
  if (i < n) {
    KeyLevel last[kCodeBlock] = {};  // skipped ones
    float last_logits[kCodeBlock] = {};
    std::memcpy(last, keys + i, (n - i) * sizeof(KeyLevel));
    std::memcpy(last_logits, logits + i, (n - i) * sizeof(float));
    add(last, last_logits);
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
