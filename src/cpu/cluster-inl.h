// Kernels of the index: rows to f32, nearest centroids, centroid scores. Included once per target.
#if defined(TACTIC_SRC_CPU_CLUSTER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SRC_CPU_CLUSTER_INL_H_
#undef TACTIC_SRC_CPU_CLUSTER_INL_H_
#else
#define TACTIC_SRC_CPU_CLUSTER_INL_H_
#endif

#include <limits>

#include "src/cpu/kernels.h"
#include "src/cpu/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

HWY_ATTR void LoadRows(const HeadRows& rows, const uint32_t* cells, size_t n, float* out) {
  const size_t dim = static_cast<size_t>(rows.dim);
  WithTag(rows.dim, [&](auto d) HWY_ATTR {
    WithType(rows.type, [&](auto type) HWY_ATTR {
      constexpr ElementType kType = decltype(type)::value;
      for (size_t i = 0; i < n; ++i) {
        const uint8_t* row = rows.data + cells[i] * rows.stride;
        for (size_t x = 0; x < dim; x += hn::Lanes(d)) {
          hn::StoreU(LoadElements<kType>(d, row, x), d, out + i * dim + x);
        }
      }
    });
  });
}

// Keys per pass over the centroids: eight independent sums hide the latency of fused multiply-adds.
constexpr size_t kKeysPerPass = 8;

// labels of kKeys keys. Maximises x . c - |c|^2 / 2, which is minimal distance without computing
// |x|^2.
template <size_t kKeys>
HWY_INLINE void AssignBlock(const float* HWY_RESTRICT x, size_t dim,
                            const float* HWY_RESTRICT centroids,
                            const float* HWY_RESTRICT half_norms, size_t padded,
                            uint16_t* HWY_RESTRICT labels) {
  const hn::CappedTag<float, kCentroidLanes> d;
  const hn::RebindToSigned<decltype(d)> di;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  V best[kKeys];
  hn::Vec<decltype(di)> best_at[kKeys];
  for (size_t k = 0; k < kKeys; ++k) {
    best[k] = hn::Set(d, -std::numeric_limits<float>::infinity());
    best_at[k] = hn::Zero(di);
  }
  for (size_t c = 0; c < padded; c += lanes) {
    V sum[kKeys];
    const V norm = hn::LoadU(d, half_norms + c);
    for (size_t k = 0; k < kKeys; ++k) sum[k] = hn::Neg(norm);
    for (size_t i = 0; i < dim; ++i) {
      const V column = hn::LoadU(d, centroids + i * padded + c);
      for (size_t k = 0; k < kKeys; ++k)
        sum[k] = hn::MulAdd(column, hn::Set(d, x[k * dim + i]), sum[k]);
    }
    const auto at = hn::Iota(di, static_cast<int32_t>(c));
    for (size_t k = 0; k < kKeys; ++k) {
      const auto better = hn::Gt(sum[k], best[k]);
      best[k] = hn::IfThenElse(better, sum[k], best[k]);
      best_at[k] = hn::IfThenElse(hn::RebindMask(di, better), at, best_at[k]);
    }
  }
  HWY_ALIGN float value[kCentroidLanes];
  HWY_ALIGN int32_t number[kCentroidLanes];
  for (size_t k = 0; k < kKeys; ++k) {
    hn::Store(best[k], d, value);
    hn::Store(best_at[k], di, number);
    size_t lane = 0;
    for (size_t l = 1; l < lanes; ++l) {
      if (value[l] > value[lane] || (value[l] == value[lane] && number[l] < number[lane])) lane = l;
    }
    labels[k] = static_cast<uint16_t>(number[lane]);
  }
}

HWY_ATTR void AssignNearest(const float* x, size_t n, int dim, const float* centroids,
                            const float* half_norms, int padded, uint16_t* labels) {
  const size_t width = static_cast<size_t>(dim);
  size_t i = 0;
  for (; i + kKeysPerPass <= n; i += kKeysPerPass) {
    AssignBlock<kKeysPerPass>(x + i * width, width, centroids, half_norms,
                              static_cast<size_t>(padded), labels + i);
  }
  for (; i < n; ++i) {
    AssignBlock<1>(x + i * width, width, centroids, half_norms, static_cast<size_t>(padded),
                   labels + i);
  }
}

// Scores of kHeads query heads against kCentroidLanes centroids at a time. Dimensions are taken two
// by two into separate sums: with few heads a single chain per head would wait for the latency of
// every multiply-add.
template <int kHeads>
HWY_INLINE void ScoreCentroidColumns(const QueryHeads& query, int first, size_t dim,
                                     const hwy::float16_t* HWY_RESTRICT centroids, size_t padded,
                                     float* HWY_RESTRICT scores, size_t score_stride) {
  const hn::CappedTag<float, kCentroidLanes> d;
  const hn::Rebind<hwy::float16_t, decltype(d)> dh;
  using V = hn::Vec<decltype(d)>;
  const float* q = query.q + first * query.stride;
  const V scale = hn::Set(d, query.scale);
  for (size_t c = 0; c < padded; c += hn::Lanes(d)) {
    V even[kHeads];
    V odd[kHeads];
    for (int g = 0; g < kHeads; ++g) even[g] = odd[g] = hn::Zero(d);
    for (size_t i = 0; i < dim; i += 2) {
      const V c0 = hn::PromoteTo(d, hn::LoadU(dh, centroids + i * padded + c));
      const V c1 = hn::PromoteTo(d, hn::LoadU(dh, centroids + (i + 1) * padded + c));
      for (int g = 0; g < kHeads; ++g) {
        even[g] = hn::MulAdd(c0, hn::Set(d, q[g * query.stride + i]), even[g]);
        odd[g] = hn::MulAdd(c1, hn::Set(d, q[g * query.stride + i + 1]), odd[g]);
      }
    }
    for (int g = 0; g < kHeads; ++g) {
      hn::StoreU(hn::Mul(scale, hn::Add(even[g], odd[g])), d,
                 scores + (first + g) * score_stride + c);
    }
  }
}

HWY_ATTR void ScoreCentroids(const QueryHeads& query, int dim, const uint16_t* centroids,
                             int padded, float* scores, size_t score_stride) {
  const auto* c = reinterpret_cast<const hwy::float16_t*>(centroids);
  const size_t width = static_cast<size_t>(dim);
  const size_t columns = static_cast<size_t>(padded);
  for (int g = 0; g < query.heads; g += 4) {
    switch (query.heads - g) {
      case 1:
        ScoreCentroidColumns<1>(query, g, width, c, columns, scores, score_stride);
        break;
      case 2:
        ScoreCentroidColumns<2>(query, g, width, c, columns, scores, score_stride);
        break;
      case 3:
        ScoreCentroidColumns<3>(query, g, width, c, columns, scores, score_stride);
        break;
      default:
        ScoreCentroidColumns<4>(query, g, width, c, columns, scores, score_stride);
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
