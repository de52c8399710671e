#include "bench/roofline/read_loops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/roofline/read_loops.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Words = hn::CappedTag<uint64_t, 8>;

HWY_INLINE uint64_t Fold(hn::Vec<Words> words) {
  HWY_ALIGN uint64_t lanes[8] = {};
  hn::Store(words, Words(), lanes);
  uint64_t all = 0;
  for (const uint64_t lane : lanes) all ^= lane;
  return all;
}

HWY_ATTR uint64_t ReadStream(const uint8_t* data, size_t bytes) {
  const Words d;
  const auto* words = reinterpret_cast<const uint64_t*>(data);
  const size_t lanes = hn::Lanes(d);
  auto a = hn::Zero(d), b = a, c = a, e = a;
  for (size_t i = 0; i < bytes / 8; i += 4 * lanes) {
    a = hn::Xor(a, hn::LoadU(d, words + i));
    b = hn::Xor(b, hn::LoadU(d, words + i + lanes));
    c = hn::Xor(c, hn::LoadU(d, words + i + 2 * lanes));
    e = hn::Xor(e, hn::LoadU(d, words + i + 3 * lanes));
  }
  return Fold(hn::Xor(hn::Xor(a, b), hn::Xor(c, e)));
}

HWY_ATTR uint64_t ReadRows(const uint8_t* data, size_t stride, size_t row_bytes,
                           const uint32_t* cells, size_t n) {
  const Words d;
  constexpr size_t kRowsAhead = 64;  // into L2, as src/cpu/score-inl.h
  constexpr int kRead = 0, kIntoL2 = 2;
  constexpr size_t kCacheLine = 64;
  auto all = hn::Zero(d);
  for (size_t i = 0; i < n; ++i) {
    const uint8_t* ahead = data + cells[i + kRowsAhead < n ? i + kRowsAhead : i] * stride;
    for (size_t x = 0; x < row_bytes; x += kCacheLine)
      __builtin_prefetch(ahead + x, kRead, kIntoL2);
    const auto* row = reinterpret_cast<const uint64_t*>(data + cells[i] * stride);
    for (size_t x = 0; x < row_bytes / 8; x += hn::Lanes(d))
      all = hn::Xor(all, hn::LoadU(d, row + x));
  }
  return Fold(all);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tactic::bench {

HWY_EXPORT(ReadStream);
HWY_EXPORT(ReadRows);

uint64_t ReadStream(const uint8_t* data, size_t bytes) {
  return HWY_DYNAMIC_DISPATCH(ReadStream)(data, bytes);
}

uint64_t ReadRows(const uint8_t* data, size_t stride, size_t row_bytes, const uint32_t* cells,
                  size_t n) {
  return HWY_DYNAMIC_DISPATCH(ReadRows)(data, stride, row_bytes, cells, n);
}

}  // namespace tactic::bench
#endif  // HWY_ONCE
