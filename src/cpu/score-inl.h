// Logits of up to four query heads against a block of keys. Included once per target.
#if defined(TACTIC_SRC_CPU_SCORE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SRC_CPU_SCORE_INL_H_
#undef TACTIC_SRC_CPU_SCORE_INL_H_
#else
#define TACTIC_SRC_CPU_SCORE_INL_H_
#endif

#include <algorithm>

#include "hwy/cache_control.h"
#include "hwy/contrib/math/math-inl.h"
#include "src/cpu/kernels.h"
#include "src/cpu/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Query heads that share one load of a row, at most. Four heads times four rows are 16 sums: half
// of AVX-512's registers, and all that AVX2 has. There keys meet two or three heads at a time (rows
// of 256 bytes in L2: four fifths of the time).
constexpr int kHeadsPerLoad = 4;
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
constexpr int kHeadsPerKeyLoad = 3;
#else
constexpr int kHeadsPerKeyLoad = kHeadsPerLoad;
#endif
// Rows per block: scores stay in L1 beside the block's keys, and one rescaling serves 64 rows.
constexpr size_t kBlock = 64;
// Into L2, of which a core can have more misses under way than of L1: a tenth of the rows of 128
// and 256 bytes from memory, one core, a bare loop: 9.2 and 8.0 GB/s with 32 rows ahead into L1,
// 10.3 and 21.8 with 64 ahead into L2, 11.3 and 19.3 with 128.
constexpr size_t kRowsAhead = 64;

constexpr size_t kCacheLine = 64;

HWY_INLINE void PrefetchRow(const uint8_t* row, size_t bytes) {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  constexpr int kRead = 0, kIntoL2 = 2;
  for (size_t b = 0; b < bytes; b += kCacheLine) __builtin_prefetch(row + b, kRead, kIntoL2);
#else
  for (size_t b = 0; b < bytes; b += kCacheLine) hwy::Prefetch(row + b);
#endif
}

// What is asked for while rows are used, keys while scoring and values while adding them up, so
// that cache misses are spread over all of the arithmetic: with row i of a list, as many bytes of
// what comes after the list; or, where that is not known, row i + kRowsAhead, as long as there is.
class Lookahead {
 public:
  Lookahead() = default;
  // `next`: what comes after, or null.
  Lookahead(const HeadRows& rows, const uint32_t* HWY_RESTRICT cells, size_t n, const uint8_t* next)
      : next_(next), end_(next == nullptr ? n : 0) {
    const size_t bytes = RowBytes(rows.type, static_cast<size_t>(rows.dim));
    for (size_t i = 0; i < std::min(end_, kRowsAhead); ++i)
      PrefetchRow(rows.data + cells[i] * rows.stride, bytes);
  }
  // Of the list without its first `n` rows.
  Lookahead After(size_t n, const HeadRows& rows) const {
    Lookahead rest;
    if (next_ != nullptr)
      rest.next_ = next_ + n * RowBytes(rows.type, static_cast<size_t>(rows.dim));
    rest.end_ = end_ - std::min(end_, n);
    return rest;
  }
  // Part of a row.
  struct Bytes {
    size_t begin;
    size_t end;
  };
  HWY_INLINE void At(size_t i, const HeadRows& rows, const uint32_t* HWY_RESTRICT cells,
                     size_t row_bytes, Bytes part) const {
    if (next_ != nullptr) {
      PrefetchRow(next_ + i * row_bytes + part.begin, part.end - part.begin);
    } else if (i + kRowsAhead < end_) {
      PrefetchRow(rows.data + cells[i + kRowsAhead] * rows.stride + part.begin,
                  part.end - part.begin);
    }
  }

 private:
  const uint8_t* next_ = nullptr;
  size_t end_ = 0;
};

// out[0..3] = sums of the lanes of a, b, c, e. One transpose for four rows: a horizontal sum each
// would cost twice as much.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreSums4(D d, V a, V b, V c, V e, float* HWY_RESTRICT out) {
#if HWY_TARGET == HWY_SCALAR || HWY_HAVE_SCALABLE
  out[0] = hn::GetLane(hn::SumOfLanes(d, a));
  out[1] = hn::GetLane(hn::SumOfLanes(d, b));
  out[2] = hn::GetLane(hn::SumOfLanes(d, c));
  out[3] = hn::GetLane(hn::SumOfLanes(d, e));
#else
  // Per 128-bit block: {a0+a2, b0+b2, a1+a3, b1+b3}, the same for c and e; then {a, b, c, e}.
  const hn::RepartitionToWide<D> dw;
  const V ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const V ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const V sums =
      hn::Add(hn::BitCast(d, hn::InterleaveLower(dw, hn::BitCast(dw, ab), hn::BitCast(dw, ce))),
              hn::BitCast(d, hn::InterleaveUpper(dw, hn::BitCast(dw, ab), hn::BitCast(dw, ce))));
  if constexpr (hn::MaxLanes(D()) > 4) {
    const hn::Half<D> dh;
    const auto half = hn::Add(hn::LowerHalf(dh, sums), hn::UpperHalf(dh, sums));
    if constexpr (hn::MaxLanes(D()) > 8) {
      const hn::Half<decltype(dh)> dq;
      hn::StoreU(hn::Add(hn::LowerHalf(dq, half), hn::UpperHalf(dq, half)), dq, out);
    } else {
      hn::StoreU(half, dh, out);
    }
  } else {
    hn::StoreU(sums, d, out);
  }
#endif
}

// scores[g][i] = q_g . key(cells[i]) for kHeads heads and i in [0, n), n <= kBlock; entries up to
// the next multiple of 4 are overwritten.
template <ElementType kType, int kHeads, class D>
HWY_INLINE void DotBlock(D d, const float* HWY_RESTRICT q, size_t q_stride, const HeadRows& keys,
                         const uint32_t* HWY_RESTRICT cells, size_t n, const Lookahead& ahead,
                         float* HWY_RESTRICT scores, size_t score_stride) {
  using V = hn::Vec<D>;
  const size_t lanes = hn::Lanes(d);
  const size_t dim = static_cast<size_t>(keys.dim);
  const size_t row_bytes = RowBytes(kType, dim);
  for (size_t i = 0; i < n; i += 4) {
    const uint8_t* rows[4];
    for (size_t r = 0; r < 4; ++r) {
      rows[r] = keys.data + cells[std::min(i + r, n - 1)] * keys.stride;
      if (i + r < n) ahead.At(i + r, keys, cells, row_bytes, {0, row_bytes});
    }
    V sum[kHeads][4];
    for (int g = 0; g < kHeads; ++g) {
      for (int r = 0; r < 4; ++r) sum[g][r] = hn::Zero(d);
    }
    constexpr size_t kLoaded = kBlockVectors<kType, D>;
    for (size_t x = 0; x < dim; x += kLoaded * lanes) {
      V qv[kHeads][kLoaded];
      for (int g = 0; g < kHeads; ++g) {
        for (size_t v = 0; v < kLoaded; ++v)
          qv[g][v] = hn::LoadU(d, q + g * q_stride + x + v * lanes);
      }
      for (int r = 0; r < 4; ++r) {
        V k[kLoaded];
        LoadVectors<kType>(d, rows[r], x, k);
        for (size_t v = 0; v < kLoaded; ++v) {
          for (int g = 0; g < kHeads; ++g) sum[g][r] = hn::MulAdd(k[v], qv[g][v], sum[g][r]);
        }
      }
    }
    for (int g = 0; g < kHeads; ++g) {
      StoreSums4(d, sum[g][0], sum[g][1], sum[g][2], sum[g][3], scores + g * score_stride + i);
    }
  }
}

// Turns dot products into logits, in place: n rounded up to whole vectors, which must be readable.
HWY_INLINE void ScaleLogits(float scale, float softcap, float* HWY_RESTRICT x, size_t n) {
  const WideTag d;
  const size_t lanes = hn::Lanes(d);
  if (softcap > 0) {
    const auto in = hn::Set(d, scale / softcap);
    const auto out = hn::Set(d, softcap);
    for (size_t i = 0; i < n; i += lanes) {
      hn::StoreU(hn::Mul(out, hn::Tanh(d, hn::Mul(in, hn::LoadU(d, x + i)))), d, x + i);
    }
  } else {
    const auto in = hn::Set(d, scale);
    for (size_t i = 0; i < n; i += lanes) hn::StoreU(hn::Mul(in, hn::LoadU(d, x + i)), d, x + i);
  }
}

// Logits of all query heads of the group against one block: scores [heads][kBlock].
HWY_INLINE void ScoreBlock(const QueryHeads& query, const HeadRows& keys,
                           const uint32_t* HWY_RESTRICT cells, size_t n, const Lookahead& ahead,
                           float* HWY_RESTRICT scores) {
  WithTag(keys.dim, [&](auto d) HWY_ATTR {
    WithType(keys.type, [&](auto type) HWY_ATTR {
      constexpr ElementType kType = decltype(type)::value;
      for (int g = 0, at_once = 0; g < query.heads; g += at_once) {
        // One too many are two halves.
        const int left = query.heads - g;
        at_once = left == kHeadsPerKeyLoad + 1 ? (left + 1) / 2 : std::min(kHeadsPerKeyLoad, left);
        const float* q = query.q + g * query.stride;
        float* out = scores + g * kBlock;
        const Lookahead once = g == 0 ? ahead : Lookahead();
        switch (at_once) {
          case 4:
            if constexpr (kHeadsPerKeyLoad >= 4)
              DotBlock<kType, 4>(d, q, query.stride, keys, cells, n, once, out, kBlock);
            break;
          case 3:
            DotBlock<kType, 3>(d, q, query.stride, keys, cells, n, once, out, kBlock);
            break;
          case 2:
            DotBlock<kType, 2>(d, q, query.stride, keys, cells, n, once, out, kBlock);
            break;
          default:
            DotBlock<kType, 1>(d, q, query.stride, keys, cells, n, once, out, kBlock);
        }
      }
    });
  });
  for (int g = 0; g < query.heads; ++g)
    ScaleLogits(query.scale, query.softcap, scores + g * kBlock, n);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
