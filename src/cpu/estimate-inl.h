// What kernels of mode tactic share (exponentials, levels of keys), scores of centroids, and the
// tail: what unread keys hold, and what means of values add. Included once per target.
#if defined(TACTIC_SRC_CPU_ESTIMATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SRC_CPU_ESTIMATE_INL_H_
#undef TACTIC_SRC_CPU_ESTIMATE_INL_H_
#else
#define TACTIC_SRC_CPU_ESTIMATE_INL_H_
#endif

#include <algorithm>
#include <limits>

#include "hwy/contrib/math/math-inl.h"
#include "src/codes.h"
#include "src/cpu/dot-inl.h"
#include "src/cpu/kernels.h"
#include "src/cpu/load-inl.h"
#include "src/softmax_state.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// ByteToFloat (codes.h) of Lanes(d) bytes.
template <class D>
HWY_INLINE hn::Vec<D> LoadByteFloats(D d, const uint8_t* HWY_RESTRICT bytes) {
  const hn::Rebind<uint8_t, D> du8;
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::ShiftLeft<20>(hn::PromoteTo(du, hn::LoadU(du8, bytes)));
  return hn::Mul(hn::BitCast(d, bits), hn::Set(d, kByteFloatUnit));
}

// exp(x) for estimates: within 1e-6 of it for x in [-87, kLargestExponent], 1e-38 below. A third of
// the work of an exact one.
template <class D>
HWY_INLINE hn::Vec<D> EstimateExp(D d, hn::Vec<D> x) {
  const hn::RebindToSigned<D> di;
  const auto power = hn::Mul(hn::Max(x, hn::Set(d, -87.0f)), hn::Set(d, 1.44269504f));
  const auto whole = hn::Round(power);
  const auto f = hn::Sub(power, whole);
  // 2^f, |f| <= 1 / 2: Taylor's series; the next term is below 2e-6.
  auto p = hn::MulAdd(f, hn::Set(d, 1.3333558e-3f), hn::Set(d, 9.6181291e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 5.5504109e-2f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.4022651e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 6.9314718e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::ConvertTo(di, whole));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
}

// The masses that levels of keys, or the lower 16 bits of each lane, mean; that of a skipped key is
// 2^-126. Within 3e-6 of 2^(level / 256 - 126).
template <class D>
HWY_INLINE hn::Vec<D> MassOf(D d, hn::Vec<hn::RebindToSigned<D>> level) {
  const hn::RebindToSigned<D> di;
  // 1 + the fraction f of an octave, as bits; then a polynomial for 2^f, of least relative error.
  const auto fraction = hn::And(hn::ShiftLeft<15>(level), hn::Set(di, 0xFF << 15));
  const auto u = hn::BitCast(d, hn::Or(fraction, hn::Set(di, 0x3F800000)));
  auto p = hn::MulAdd(u, hn::Set(d, 0.0135341679f), hn::Set(d, -0.00212520856f));
  p = hn::MulAdd(p, u, hn::Set(d, 0.166613372f));
  p = hn::MulAdd(p, u, hn::Set(d, 0.312016045f));
  p = hn::MulAdd(p, u, hn::Set(d, 0.509964216f));
  const auto octave = hn::ShiftLeft<15>(hn::And(level, hn::Set(di, 0xFF00)));
  const auto exponent = hn::Sub(octave, hn::Set(di, 126 << 23));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
}

// The nearest level to x, cut where levels end, in the lower 16 bits of each lane.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> NearestLevel(D d, hn::Vec<D> x) {
  const auto in = hn::Min(hn::Max(x, hn::Zero(d)), hn::Set(d, static_cast<float>(kLastKey)));
  // The last bit of a float of this size is 1.
  return hn::BitCast(hn::RebindToSigned<D>(), hn::Add(in, hn::Set(d, 0x1p23f)));
}

template <class D>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> LoadLevels(D, const KeyLevel* HWY_RESTRICT levels) {
  const hn::Rebind<KeyLevel, D> du16;
  return hn::PromoteTo(hn::RebindToSigned<D>(), hn::LoadU(du16, levels));
}

template <class D>
HWY_INLINE void StoreLevels(D, hn::Vec<hn::RebindToSigned<D>> level,
                            KeyLevel* HWY_RESTRICT levels) {
  const hn::Rebind<KeyLevel, D> du16;
  const hn::RebindToUnsigned<D> du;
  hn::StoreU(hn::TruncateTo(du16, hn::BitCast(du, level)), du16, levels);
}

template <class D>
HWY_INLINE hn::Vec<D> LoadHalves(D d, const uint16_t* HWY_RESTRICT halves) {
  const hn::Rebind<hwy::float16_t, D> dh;
  return PromoteHalf(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(halves)));
}

template <class D>
HWY_INLINE hn::Vec<D> LoadSignedBytes(D d, const int8_t* HWY_RESTRICT bytes) {
  const hn::Rebind<int8_t, D> di8;
  const hn::RebindToSigned<D> di;
  return hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(di8, bytes)));
}

// Calls f(std::integral_constant<int, n>, g) for the heads in sets of up to four, n from head g on.
template <class F>
HWY_INLINE void ForHeads(int heads, const F& f) {
  for (int g = 0; g < heads; g += 4) {
    switch (heads - g) {
      case 1:
        f(std::integral_constant<int, 1>(), g);
        break;
      case 2:
        f(std::integral_constant<int, 2>(), g);
        break;
      case 3:
        f(std::integral_constant<int, 3>(), g);
        break;
      default:
        f(std::integral_constant<int, 4>(), g);
    }
  }
}

// The centroids' scores for kHeads queries.
template <int kHeads>
HWY_INLINE void ScoreByteColumns(const CentroidQuery* queries, size_t dim,
                                 const int8_t* HWY_RESTRICT centroids,
                                 const uint16_t* HWY_RESTRICT centroid_scales, size_t padded,
                                 float* HWY_RESTRICT scores, size_t score_stride) {
#if HWY_TARGET == HWY_SCALAR
  for (int g = 0; g < kHeads; ++g) {
    const auto* high = reinterpret_cast<const int8_t*>(queries[g].high);
    const auto* low = reinterpret_cast<const int8_t*>(queries[g].low);
    for (size_t c = 0; c < padded; ++c) {
      int32_t dot = 0;
      for (size_t x = 0; x < dim; ++x)
        dot += centroids[CentroidAt(x, c, padded)] * (kHighPart * high[x] + low[x]);
      const float scale = hn::GetLane(LoadHalves(hn::CappedTag<float, 1>(), centroid_scales + c));
      scores[g * score_stride + c] = static_cast<float>(dot) * (scale * queries[g].unit);
    }
  }
#else
  const ByteTag du8;
  const DotTag di;
  const hn::Repartition<float, ByteTag> d;
  constexpr int kHighShift = 6;
  static_assert(kHighPart == 1 << kHighShift);
  // Vectors of centroids at a time: what is set for them is set once.
  constexpr size_t kVectors = 2;
  const size_t lanes = hn::Lanes(d);
  for (size_t c = 0; c < padded; c += kVectors * lanes) {
    const size_t second = c + lanes < padded ? lanes : 0;  // the last one twice where there is none
    hn::Vec<DotTag> high[kHeads][kVectors];
    hn::Vec<DotTag> low[kHeads][kVectors];
    for (int g = 0; g < kHeads; ++g) high[g][0] = high[g][1] = low[g][0] = low[g][1] = hn::Zero(di);
    for (size_t quad = 0; quad < dim / 4; ++quad) {
      const auto* at = reinterpret_cast<const uint8_t*>(centroids) + 4 * (quad * padded + c);
      const hn::Vec<ByteTag> bytes[kVectors] = {Biased(hn::LoadU(du8, at)),
                                                Biased(hn::LoadU(du8, at + 4 * second))};
      for (int g = 0; g < kHeads; ++g) {
        const auto of_high = hn::Set(di, queries[g].high[quad]);
        const auto of_low = hn::Set(di, queries[g].low[quad]);
        for (size_t v = 0; v < kVectors; ++v) {
          high[g][v] = DotAdd(high[g][v], bytes[v], of_high);
          low[g][v] = DotAdd(low[g][v], bytes[v], of_low);
        }
      }
    }
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t at = c + v * second;
      const auto scale = LoadHalves(d, centroid_scales + at);
      for (int g = 0; g < kHeads; ++g) {
        const auto bias = hn::Set(di, kByteBias * queries[g].sum);
        const auto dot = hn::Sub(hn::Add(hn::ShiftLeft<kHighShift>(high[g][v]), low[g][v]), bias);
        const auto unit = hn::Mul(scale, hn::Set(d, queries[g].unit));
        hn::StoreU(hn::Mul(hn::ConvertTo(d, dot), unit), d, scores + g * score_stride + at);
      }
    }
  }
#endif
}

HWY_ATTR void ScoreByteCentroids(const CentroidQuery* queries, int heads, int dim,
                                 const int8_t* centroids, const uint16_t* centroid_scales,
                                 int padded, float* scores, size_t score_stride) {
  const auto width = static_cast<size_t>(dim);
  const auto columns = static_cast<size_t>(padded);
  ForHeads(heads, [&](auto count, int g) HWY_ATTR {
    ScoreByteColumns<decltype(count)::value>(queries + g, width, centroids, centroid_scales,
                                             columns, scores + g * score_stride, score_stride);
  });
}

// softcap * tanh(x / softcap); x where there is no cap. -inf, which is no logit but a key that is
// not looked at, stays.
template <class D>
HWY_INLINE hn::Vec<D> Capped(D d, hn::Vec<D> x, float softcap) {
  if (softcap <= 0) return x;
  const auto capped =
      hn::Mul(hn::Set(d, softcap), hn::Tanh(d, hn::Mul(x, hn::Set(d, 1 / softcap))));
  const auto none = hn::Set(d, -std::numeric_limits<float>::infinity());
  return hn::IfThenElse(hn::Eq(x, none), none, capped);
}

// Bits [i, i + 16) of a bitmap.
HWY_INLINE uint32_t BitsAt(const uint64_t* HWY_RESTRICT bits, size_t i) {
  const uint64_t low = bits[i / 64] >> (i % 64);
  return static_cast<uint32_t>(i % 64 > 48 ? low | bits[i / 64 + 1] << (64 - i % 64) : low) &
         0xFFFF;
}

template <int kHeads>
HWY_INLINE void UnreadMassesOf(const UnreadKeys& unread, const float* half_variances,
                               float* HWY_RESTRICT masses, size_t mass_stride) {
  const hn::CappedTag<float, kCodeBlock> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  HWY_ALIGN uint32_t bit[kCodeBlock];
  for (size_t i = 0; i < kCodeBlock; ++i) bit[i] = 1u << i;
  const auto lane_bit = hn::Load(du, bit);
  for (int c = 0; c < unread.clusters; ++c) {
    if (unread.kept[c] == 0) {
      for (int g = 0; g < kHeads; ++g) masses[g * mass_stride + c] = 0;
      continue;
    }
    V sum[kHeads];
    for (int g = 0; g < kHeads; ++g) sum[g] = hn::Zero(d);
    const size_t end = unread.starts[c + 1];
    for (size_t i = unread.starts[c]; i < end; i += lanes) {
      // Members that were read do not count, nor does what follows the last one.
      uint32_t out = BitsAt(unread.read, i);
      if (end - i < lanes) out |= ~0u << (end - i);
      const auto counts = hn::Eq(hn::And(hn::Set(du, out), lane_bit), hn::Zero(du));
      const V t = LoadByteFloats(d, unread.scales + i);
      const V square = hn::Mul(t, t);
      for (int g = 0; g < kHeads; ++g) {
        const V half = hn::Min(hn::Mul(square, hn::Set(d, half_variances[g] * kKeyLevels)),
                               hn::Set(d, kLargestHalfVariance * kKeyLevels));
        const V key = hn::ConvertTo(d, LoadLevels(d, unread.keys + g * unread.key_stride + i));
        const V mass = MassOf(d, NearestLevel(d, hn::Sub(key, half)));
        sum[g] = hn::Add(sum[g], hn::IfThenElseZero(hn::RebindMask(d, counts), mass));
      }
    }
    for (int g = 0; g < kHeads; ++g)
      masses[g * mass_stride + c] = hn::GetLane(hn::SumOfLanes(d, sum[g]));
  }
}

HWY_ATTR void UnreadMasses(const UnreadKeys& unread, int heads, const float* half_variances,
                           float* masses, size_t mass_stride) {
  ForHeads(heads, [&](auto count, int g) HWY_ATTR {
    UnreadKeys of = unread;
    of.keys += g * unread.key_stride;
    UnreadMassesOf<decltype(count)::value>(of, half_variances + g, masses + g * mass_stride,
                                           mass_stride);
  });
}

// Means [0, n) with numbers at[], weighted by [kHeads][n] scaled weights.
template <int kHeads, class D>
HWY_INLINE void AddMeanColumns(D d, const float* HWY_RESTRICT weights,
                               const uint32_t* HWY_RESTRICT at, size_t n,
                               const int8_t* HWY_RESTRICT means, size_t dim,
                               float* HWY_RESTRICT states, size_t state_stride) {
  using V = hn::Vec<D>;
  for (size_t x = 0; x < dim; x += hn::Lanes(d)) {
    V sum[kHeads];
    for (int g = 0; g < kHeads; ++g) sum[g] = hn::LoadU(d, states + g * state_stride + x);
    for (size_t c = 0; c < n; ++c) {
      const V mean = LoadSignedBytes(d, means + at[c] * dim + x);
      for (int g = 0; g < kHeads; ++g)
        sum[g] = hn::MulAdd(mean, hn::Set(d, weights[g * n + c]), sum[g]);
    }
    for (int g = 0; g < kHeads; ++g) hn::StoreU(sum[g], d, states + g * state_stride + x);
  }
}

template <int kHeads>
HWY_INLINE void AddMeansOf(const float* HWY_RESTRICT weights, size_t weight_stride,
                           const int8_t* HWY_RESTRICT means,
                           const uint16_t* HWY_RESTRICT mean_scales, size_t n, int dim,
                           float* HWY_RESTRICT states, size_t state_stride) {
  constexpr size_t kMeans = 64;  // at a time
  for (size_t begin = 0; begin < n; begin += kMeans) {
    uint32_t at[kMeans];  // only those that some head gives a weight
    size_t used = 0;
    for (size_t c = begin; c < std::min(n, begin + kMeans); ++c) {
      float any = 0;
      for (int g = 0; g < kHeads; ++g) any += weights[g * weight_stride + c];
      at[used] = static_cast<uint32_t>(c);
      used += any != 0;
    }
    float scaled[kHeads * kMeans];
    for (size_t c = 0; c < used; ++c) {
      const float scale = hn::GetLane(LoadHalves(hn::CappedTag<float, 1>(), mean_scales + at[c]));
      for (int g = 0; g < kHeads; ++g) {
        scaled[g * used + c] = weights[g * weight_stride + at[c]] * scale;
        StateSum(states + g * state_stride, dim) += weights[g * weight_stride + at[c]];
      }
    }
    if (dim % 16 == 0) {
      AddMeanColumns<kHeads>(WideTag(), scaled, at, used, means, static_cast<size_t>(dim), states,
                             state_stride);
    } else {
      AddMeanColumns<kHeads>(NarrowTag(), scaled, at, used, means, static_cast<size_t>(dim), states,
                             state_stride);
    }
  }
}

HWY_ATTR void AddMeans(const float* weights, size_t weight_stride, int heads, const int8_t* means,
                       const uint16_t* mean_scales, size_t n, int dim, float* states,
                       size_t state_stride) {
  ForHeads(heads, [&](auto count, int g) HWY_ATTR {
    AddMeansOf<decltype(count)::value>(weights + g * weight_stride, weight_stride, means,
                                       mean_scales, n, dim, states + g * state_stride,
                                       state_stride);
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
