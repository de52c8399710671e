// Histograms of estimated keys. Included once per target.
#if defined(TACTIC_SRC_CPU_BINS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SRC_CPU_BINS_INL_H_
#undef TACTIC_SRC_CPU_BINS_INL_H_
#else
#define TACTIC_SRC_CPU_BINS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "src/cpu/estimate-inl.h"
#include "src/cpu/pick-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Keys of a query head that are to be put into bins: first they are collected, without a branch for
// each vector; then they are counted one by one.
class FoundKeys {
 public:
  static constexpr size_t kBlocks = 64;  // between two flushes at most, so that they stay in L1

  // Of the lower 16 bits of each lane, those that are at least `floor`.
  template <class D>
  HWY_INLINE void Add(D, hn::Vec<hn::RebindToSigned<D>> level, int32_t floor) {
    const hn::RebindToSigned<D> di;
    const auto low = hn::And(level, hn::Set(di, 0xFFFF));
    count_ += Append(di, low, hn::Gt(low, hn::Set(di, floor - 1)), levels_ + count_);
  }

  HWY_INLINE void Flush(uint32_t floor, MassBins* bins) {
    const hn::CappedTag<float, kCodeBlock> d;
    const hn::RebindToSigned<decltype(d)> di;
    const size_t lanes = hn::Lanes(d);
    constexpr int kBinShift = 6;
    static_assert(kBinLevels == 1u << kBinShift);
    HWY_ALIGN float mass[kCodeBlock];
    HWY_ALIGN int32_t bin[kCodeBlock];
    for (size_t i = 0; i < count_; i += lanes) {
      const auto level = hn::LoadU(di, levels_ + i);
      hn::Store(MassOf(d, level), d, mass);
      const auto place =
          hn::ShiftRight<kBinShift>(hn::Sub(level, hn::Set(di, static_cast<int32_t>(floor))));
      hn::Store(hn::Min(place, hn::Set(di, kMassBins - 1)), di, bin);
      for (size_t k = 0; k < std::min(lanes, count_ - i); ++k) {
        bins->mass[bin[k]] += mass[k];
        ++bins->count[bin[k]];
      }
    }
    count_ = 0;
  }

 private:
  size_t count_ = 0;
  HWY_ALIGN int32_t levels_[(kBlocks + 1) * kCodeBlock];
};

HWY_ATTR void AddToBins(const KeyLevel* keys, const uint32_t* blocks, size_t n, uint32_t floor,
                        MassBins* bins) {
  const hn::CappedTag<float, kCodeBlock> d;
  FoundKeys found;
  for (size_t b = 0; b < n; ++b) {
    for (size_t i = 0; i < kCodeBlock; i += hn::Lanes(d)) {
      found.Add(d, LoadLevels(d, keys + blocks[b] * size_t{kCodeBlock} + i),
                static_cast<int32_t>(floor));
    }
    if ((b + 1) % FoundKeys::kBlocks == 0 || b + 1 == n) found.Flush(floor, bins);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
