// Kernels of mode tactic's cluster filter and tail: what clusters may hold, and what their means
// add. Included once per target.
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
#include "src/cpu/kernels.h"
#include "src/cpu/load-inl.h"
#include "src/segment.h"
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

template <int kHeads>
HWY_INLINE void ScoreByteColumns(const QueryHeads& query, int first, size_t dim,
                                 const int8_t* HWY_RESTRICT centroids,
                                 const uint16_t* HWY_RESTRICT centroid_scales, size_t padded,
                                 float* HWY_RESTRICT scores, size_t score_stride) {
  const hn::CappedTag<float, kCentroidLanes> d;
  using V = hn::Vec<decltype(d)>;
  const float* q = query.q + first * query.stride;
  for (size_t c = 0; c < padded; c += hn::Lanes(d)) {
    V even[kHeads];
    V odd[kHeads];
    for (int g = 0; g < kHeads; ++g) even[g] = odd[g] = hn::Zero(d);
    for (size_t i = 0; i < dim; i += 2) {
      const V c0 = LoadSignedBytes(d, centroids + i * padded + c);
      const V c1 = LoadSignedBytes(d, centroids + (i + 1) * padded + c);
      for (int g = 0; g < kHeads; ++g) {
        even[g] = hn::MulAdd(c0, hn::Set(d, q[g * query.stride + i]), even[g]);
        odd[g] = hn::MulAdd(c1, hn::Set(d, q[g * query.stride + i + 1]), odd[g]);
      }
    }
    const V scale = hn::Mul(LoadHalves(d, centroid_scales + c), hn::Set(d, query.scale));
    for (int g = 0; g < kHeads; ++g) {
      hn::StoreU(hn::Mul(scale, hn::Add(even[g], odd[g])), d,
                 scores + (first + g) * score_stride + c);
    }
  }
}

HWY_ATTR void ScoreByteCentroids(const QueryHeads& query, int dim, const int8_t* centroids,
                                 const uint16_t* centroid_scales, int padded, float* scores,
                                 size_t score_stride) {
  const auto width = static_cast<size_t>(dim);
  const auto columns = static_cast<size_t>(padded);
  const auto run = [&](auto heads, int g) HWY_ATTR {
    ScoreByteColumns<decltype(heads)::value>(query, g, width, centroids, centroid_scales, columns,
                                             scores, score_stride);
  };
  for (int g = 0; g < query.heads; g += 4) {
    switch (query.heads - g) {
      case 1:
        run(std::integral_constant<int, 1>(), g);
        break;
      case 2:
        run(std::integral_constant<int, 2>(), g);
        break;
      case 3:
        run(std::integral_constant<int, 3>(), g);
        break;
      default:
        run(std::integral_constant<int, 4>(), g);
    }
  }
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

HWY_ATTR void EstimateClusters(const ClusterFacts& facts, const float* scores,
                               const float* run_energy, float softcap, float* masses, float* floors,
                               float* tokens) {
  const hn::CappedTag<float, kCentroidLanes> d;
  using V = hn::Vec<decltype(d)>;
  const auto padded = static_cast<size_t>(facts.padded);
  const V two = hn::Set(d, 2.0f);
  for (size_t c = 0; c < padded; c += hn::Lanes(d)) {
    V variance = hn::Zero(d);
    for (size_t r = 0; r < Codes::kRuns; ++r) {
      const V spread = LoadByteFloats(d, facts.spreads + r * padded + c);
      variance = hn::MulAdd(hn::Mul(spread, spread), hn::Set(d, run_energy[r]), variance);
    }
    const V longest = LoadByteFloats(d, facts.spreads + Codes::kRuns * padded + c);
    const V log_size = hn::LoadU(d, facts.log_sizes + c);
    const V score = Capped(d, hn::LoadU(d, scores + c), softcap);
    // log of the mean of exp over n draws of a Gaussian: v / 2, but no more than the largest of n
    // draws can give (random-energy model).
    const V v = hn::Min(variance, hn::Set(d, 2 * kLargestHalfVariance));
    const V edge = hn::Mul(two, hn::Max(log_size, hn::Zero(d)));  // 2 log n
    const V gaussian = hn::Mul(v, hn::Set(d, 0.5f));
    const V few = hn::Sub(hn::Sqrt(hn::Mul(v, edge)), hn::Mul(edge, hn::Set(d, 0.5f)));
    const V excess = hn::IfThenElse(hn::Lt(v, edge), gaussian, few);
    const V floor = hn::Add(score, log_size);
    hn::StoreU(floor, d, floors + c);
    hn::StoreU(hn::Add(floor, excess), d, masses + c);
    const V reach = hn::Mul(hn::Set(d, 3.0f), hn::Mul(hn::Sqrt(variance), longest));
    const V token = Capped(d, hn::Add(hn::LoadU(d, scores + c), reach), softcap);
    // An empty slot holds nothing.
    hn::StoreU(hn::IfThenElse(hn::Eq(log_size, hn::Set(d, -std::numeric_limits<float>::infinity())),
                              log_size, token),
               d, tokens + c);
  }
}

HWY_ATTR float SumUpTo(const float* x, size_t n, float limit) {
  const hn::CappedTag<float, kCentroidLanes> d;
  const auto vlimit = hn::Set(d, limit);
  auto sum = hn::Zero(d);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto v = hn::LoadU(d, x + i);
    sum = hn::Add(sum, hn::IfThenElseZero(hn::Le(v, vlimit), v));
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

HWY_ATTR void UnreadWeights(const float* keys, const uint8_t* scales, size_t n, float half_variance,
                            const uint64_t* read, float* weights) {
  const hn::CappedTag<float, kCodeBlock> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const size_t lanes = hn::Lanes(d);
  HWY_ALIGN uint32_t bit[kCodeBlock];
  for (size_t i = 0; i < lanes; ++i) bit[i] = 1u << i;
  const auto lane_bit = hn::Load(du, bit);
  for (size_t i = 0; i < n; i += lanes) {
    const auto t = LoadByteFloats(d, scales + i);
    const auto v = hn::Min(hn::Mul(hn::Mul(t, t), hn::Set(d, half_variance)),
                           hn::Set(d, kLargestHalfVariance));
    const auto l = hn::Min(hn::Sub(hn::LoadU(d, keys + i), v), hn::Set(d, kLargestExponent));
    const auto was_read = hn::Set(du, static_cast<uint32_t>(read[i / 64] >> (i % 64)));
    const auto unread = hn::Eq(hn::And(was_read, lane_bit), hn::Zero(du));
    hn::StoreU(hn::IfThenElseZero(hn::RebindMask(d, unread), hn::Exp(d, l)), d, weights + i);
  }
}

HWY_ATTR void AddMeans(const float* weights, const int8_t* means, const uint16_t* mean_scales,
                       size_t n, int dim, float* state) {
  const auto width = static_cast<size_t>(dim);
  const hn::CappedTag<float, 8> d;  // dims are multiples of 8
  float sum = 0;
  for (size_t c = 0; c < n; ++c) {
    if (weights[c] == 0) continue;
    sum += weights[c];
    const float scale = hn::GetLane(LoadHalves(hn::CappedTag<float, 1>(), mean_scales + c));
    const auto w = hn::Set(d, weights[c] * scale);
    const int8_t* mean = means + c * width;
    for (size_t x = 0; x < width; x += hn::Lanes(d)) {
      hn::StoreU(hn::MulAdd(w, LoadSignedBytes(d, mean + x), hn::LoadU(d, state + x)), d,
                 state + x);
    }
  }
  StateSum(state, dim) += sum;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
