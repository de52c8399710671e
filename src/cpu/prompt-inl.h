// Exact attention of a tile of prompt tokens, as two small matrix products per block of cells.
// Included once per target.
//
// The rows of the tile are its (token, query head) pairs: all of them share the keys and values of
// one KV head. A block of cells is widened to f32 once, keys transposed, and then serves every row;
// both products (rows x keys, weights x values) run through one register-blocked loop.
#if defined(TACTIC_SRC_CPU_PROMPT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SRC_CPU_PROMPT_INL_H_
#undef TACTIC_SRC_CPU_PROMPT_INL_H_
#else
#define TACTIC_SRC_CPU_PROMPT_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "hwy/contrib/math/math-inl.h"
#include "src/cpu/kernels.h"
#include "src/cpu/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows and vectors of columns whose sums stay in registers: 24 of AVX-512's 32, 12 of 16 elsewhere.
#if HWY_MAX_BYTES >= 64
constexpr size_t kTileRows = 12;
#else
constexpr size_t kTileRows = 6;
#endif
constexpr size_t kTileVectors = 2;
static_assert(kPromptRowUnit % kTileRows == 0);

// c[r][0 .. kVectors * lanes) += sum over i of a[r][i] * b[i][...] for kTileRows rows.
template <size_t kVectors, class D>
HWY_INLINE void MulAddTile(D d, const float* HWY_RESTRICT a, size_t a_stride,
                           const float* HWY_RESTRICT b, size_t b_stride, size_t depth,
                           float* HWY_RESTRICT c, size_t c_stride) {
  using V = hn::Vec<D>;
  const size_t lanes = hn::Lanes(d);
  V sum[kTileRows][kVectors];
  for (size_t r = 0; r < kTileRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v) sum[r][v] = hn::LoadU(d, c + r * c_stride + v * lanes);
  }
  for (size_t i = 0; i < depth; ++i) {
    V row[kVectors];
    for (size_t v = 0; v < kVectors; ++v) row[v] = hn::LoadU(d, b + i * b_stride + v * lanes);
    for (size_t r = 0; r < kTileRows; ++r) {
      const V factor = hn::Set(d, a[r * a_stride + i]);
      for (size_t v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(factor, row[v], sum[r][v]);
    }
  }
  for (size_t r = 0; r < kTileRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v) hn::StoreU(sum[r][v], d, c + r * c_stride + v * lanes);
  }
}

// c[rows][columns] += a[rows][depth] * b[depth][columns]. rows: a multiple of kTileRows; columns:
// of the lanes of d. A panel of b stays in L1 while all rows go over it.
template <class D>
HWY_INLINE void MulAddMatrix(D d, const float* a, size_t a_stride, const float* b, size_t b_stride,
                             size_t rows, size_t depth, size_t columns, float* c, size_t c_stride) {
  const size_t lanes = hn::Lanes(d);
  size_t x = 0;
  for (; x + kTileVectors * lanes <= columns; x += kTileVectors * lanes) {
    for (size_t r = 0; r < rows; r += kTileRows) {
      MulAddTile<kTileVectors>(d, a + r * a_stride, a_stride, b + x, b_stride, depth,
                               c + r * c_stride + x, c_stride);
    }
  }
  for (; x < columns; x += lanes) {
    for (size_t r = 0; r < rows; r += kTileRows) {
      MulAddTile<1>(d, a + r * a_stride, a_stride, b + x, b_stride, depth, c + r * c_stride + x,
                    c_stride);
    }
  }
}

// out[x][i] = element x of the key of cell first + i for i in [0, kPromptCells); zero from n on.
HWY_INLINE void PackKeys(const HeadRows& keys, size_t first, size_t n, float* HWY_RESTRICT out) {
  const auto dim = static_cast<size_t>(keys.dim);
  if (n < kPromptCells) std::fill_n(out, dim * kPromptCells, 0.0f);
  WithTag(keys.dim, [&](auto d) HWY_ATTR {
    WithType(keys.type, [&](auto type) HWY_ATTR {
      constexpr ElementType kType = decltype(type)::value;
      const size_t lanes = hn::Lanes(d);
      const auto row = [&](size_t i) { return keys.data + (first + i) * keys.stride; };
      size_t i = 0;
#if HWY_TARGET != HWY_SCALAR
      // Four keys at a time: 4 x 4 transposes within 128-bit blocks.
      using V = hn::Vec<decltype(d)>;
      const hn::RepartitionToWide<decltype(d)> dw;
      const auto wide = [&](V v) HWY_ATTR { return hn::BitCast(dw, v); };
      for (; i + 4 <= n; i += 4) {
        for (size_t x = 0; x < dim; x += lanes) {
          const V k0 = LoadElements<kType>(d, row(i), x);
          const V k1 = LoadElements<kType>(d, row(i + 1), x);
          const V k2 = LoadElements<kType>(d, row(i + 2), x);
          const V k3 = LoadElements<kType>(d, row(i + 3), x);
          const V low01 = hn::InterleaveLower(d, k0, k1);
          const V low23 = hn::InterleaveLower(d, k2, k3);
          const V high01 = hn::InterleaveUpper(d, k0, k1);
          const V high23 = hn::InterleaveUpper(d, k2, k3);
          HWY_ALIGN float four[4][hn::MaxLanes(d)];
          const auto put = [&](size_t e, auto v)
                               HWY_ATTR { hn::Store(hn::BitCast(d, v), d, four[e]); };
          put(0, hn::InterleaveLower(dw, wide(low01), wide(low23)));
          put(1, hn::InterleaveUpper(dw, wide(low01), wide(low23)));
          put(2, hn::InterleaveLower(dw, wide(high01), wide(high23)));
          put(3, hn::InterleaveUpper(dw, wide(high01), wide(high23)));
          for (size_t e = 0; e < lanes; ++e) {
            std::memcpy(out + (x + e) * kPromptCells + i, four[e % 4] + e / 4 * 4,
                        4 * sizeof(float));
          }
        }
      }
#endif
      for (; i < n; ++i) {
        HWY_ALIGN float elements[hn::MaxLanes(d)];
        for (size_t x = 0; x < dim; x += lanes) {
          hn::Store(LoadElements<kType>(d, row(i), x), d, elements);
          for (size_t e = 0; e < lanes; ++e) out[(x + e) * kPromptCells + i] = elements[e];
        }
      }
    });
  });
}

// out[i] = the value of cell first + i for i in [0, kPromptCells); zero from n on. Whether all of
// them are finite.
HWY_INLINE bool PackValues(const HeadRows& values, size_t first, size_t n,
                           float* HWY_RESTRICT out) {
  const auto dim = static_cast<size_t>(values.dim);
  std::fill(out + n * dim, out + kPromptCells * dim, 0.0f);
  float poison = 0;
  WithTag(values.dim, [&](auto d) HWY_ATTR {
    WithType(values.type, [&](auto type) HWY_ATTR {
      constexpr ElementType kType = decltype(type)::value;
      auto sum = hn::Zero(d);
      for (size_t i = 0; i < n; ++i) {
        const uint8_t* row = values.data + (first + i) * values.stride;
        for (size_t x = 0; x < dim; x += hn::Lanes(d)) {
          const auto v = LoadElements<kType>(d, row, x);
          hn::StoreU(v, d, out + i * dim + x);
          sum = hn::MulAdd(v, hn::Zero(d), sum);
        }
      }
      poison = hn::GetLane(hn::SumOfLanes(d, sum));
    });
  });
  return poison == 0;
}

enum class MaskKind : uint8_t { kNone, kAll, kSome };

// What the mask lets a tile's tokens see of n cells from `first` on.
HWY_INLINE MaskKind KindOf(const PromptTile& tile, size_t first, size_t n) {
  constexpr uint16_t kMasked = 0xFC00;  // -inf
  const hn::CappedTag<uint16_t, 32> d;
  const size_t lanes = hn::Lanes(d);
  const auto masked = hn::Set(d, kMasked);
  auto not_zero = hn::Zero(d);
  auto not_masked = hn::Zero(d);
  uint16_t any = 0;
  uint16_t seen = 0;
  for (size_t t = 0; t < tile.tokens; ++t) {
    const uint16_t* row = tile.mask + t * tile.mask_stride + first;
    size_t i = 0;
    for (; i + lanes <= n; i += lanes) {
      const auto v = hn::LoadU(d, row + i);
      not_zero = hn::Or(not_zero, v);
      not_masked = hn::Or(not_masked, hn::Xor(v, masked));
    }
    for (; i < n; ++i) {
      any |= row[i];
      seen |= row[i] ^ kMasked;
    }
  }
  if (seen == 0 && hn::AllTrue(d, hn::Eq(not_masked, hn::Zero(d)))) return MaskKind::kNone;
  if (any == 0 && hn::AllTrue(d, hn::Eq(not_zero, hn::Zero(d)))) return MaskKind::kAll;
  return MaskKind::kSome;
}

// The tile's running softmax: [rows] each, sums by lane.
struct PromptState {
  float* max;
  float* sums;  // [rows][kPromptLanes]
  float* out;   // [rows][value_dim]
};

// Turns a row of logits into weights relative to the row's maximum so far, which is raised first
// where needed. `mask`: to be added, or null; cells from n on do not count.
HWY_INLINE void WeighRow(const PromptTile& tile, const uint16_t* mask, size_t n, size_t row,
                         float* HWY_RESTRICT logits, const PromptState& state) {
  const hn::CappedTag<float, kPromptLanes> d;
  using V = hn::Vec<decltype(d)>;
  const hn::Rebind<hwy::float16_t, decltype(d)> dh;
  const size_t lanes = hn::Lanes(d);
  const V none = hn::Set(d, -std::numeric_limits<float>::infinity());
  if (tile.softcap > 0) {
    const V cap = hn::Set(d, tile.softcap);
    const V inverse = hn::Set(d, 1 / tile.softcap);
    for (size_t i = 0; i < kPromptCells; i += lanes) {
      hn::StoreU(hn::Mul(cap, hn::Tanh(d, hn::Mul(hn::LoadU(d, logits + i), inverse))), d,
                 logits + i);
    }
  }
  if (mask != nullptr) {
    size_t i = 0;
    for (; i + lanes <= n; i += lanes) {
      const V m = PromoteHalf(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(mask + i)));
      // Not what is behind a mask: it may be anything.
      const V sum = hn::Add(hn::LoadU(d, logits + i), m);
      hn::StoreU(hn::IfThenElse(hn::Eq(m, none), none, sum), d, logits + i);
    }
    for (; i < n; ++i) {
      HWY_ALIGN uint16_t half[kPromptLanes] = {mask[i]};
      const float m =
          hn::GetLane(PromoteHalf(d, hn::Load(dh, reinterpret_cast<const hwy::float16_t*>(half))));
      logits[i] = m == -std::numeric_limits<float>::infinity() ? m : logits[i] + m;
    }
  }
  std::fill(logits + n, logits + kPromptCells, -std::numeric_limits<float>::infinity());
  V most = none;
  V poison = hn::Zero(d);  // NaN once a logit is NaN or +inf, which a maximum may hide
  for (size_t i = 0; i < kPromptCells; i += lanes) {
    const V x = hn::LoadU(d, logits + i);
    most = hn::Max(most, x);
    poison = hn::Add(poison, hn::Mul(hn::Zero(d), hn::IfThenZeroElse(hn::Eq(x, none), x)));
  }
  V sum = hn::Add(hn::LoadU(d, state.sums + row * kPromptLanes), poison);
  float* out = state.out + row * static_cast<size_t>(tile.values.dim);
  const float block_max = hn::GetLane(hn::MaxOfLanes(d, most));
  if (hn::AllTrue(d, hn::Eq(most, none))) {
    std::fill_n(logits, kPromptCells, 0.0f);
    hn::StoreU(sum, d, state.sums + row * kPromptLanes);
    return;
  }
  if (block_max > state.max[row]) {
    const float factor = std::exp(state.max[row] - block_max);  // 0 at first
    const V vfactor = hn::Set(d, factor);
    sum = hn::Mul(sum, vfactor);
    for (int x = 0; x < tile.values.dim; ++x) out[x] *= factor;
    state.max[row] = block_max;
  }
  const V shift = hn::Set(d, state.max[row]);
  for (size_t i = 0; i < kPromptCells; i += lanes) {
    const V w = hn::Exp(d, hn::Sub(hn::LoadU(d, logits + i), shift));
    hn::StoreU(w, d, logits + i);
    sum = hn::Add(sum, w);
  }
  hn::StoreU(sum, d, state.sums + row * kPromptLanes);
}

// Takes values that are not finite out of the product, where they would also reach rows that give
// them no weight (0 * NaN is NaN), and poisons the rows that do give them some.
HWY_INLINE void TakeOutUnfinite(size_t rows, size_t dim, const float* HWY_RESTRICT weights,
                                float* HWY_RESTRICT values, const PromptState& state) {
  for (size_t i = 0; i < kPromptCells; ++i) {
    float* value = values + i * dim;
    if (std::all_of(value, value + dim, [](float x) { return std::isfinite(x); })) continue;
    std::fill_n(value, dim, 0.0f);
    for (size_t row = 0; row < rows; ++row) {
      if (weights[row * kPromptCells + i] != 0)
        state.sums[row * kPromptLanes] = std::numeric_limits<float>::quiet_NaN();
    }
  }
}

HWY_ATTR void AttendPrompt(const PromptTile& tile, float* scratch) {
  const hn::CappedTag<float, kPromptLanes> d;
  const auto dim = static_cast<size_t>(tile.keys.dim);
  const auto value_dim = static_cast<size_t>(tile.values.dim);
  const auto group = static_cast<size_t>(tile.group);
  const size_t rows = PromptRows(tile.tokens, tile.group);
  const PromptBuffers at(tile.keys.dim, tile.values.dim, rows);
  float* queries = scratch + at.queries;
  float* keys = scratch + at.keys;
  float* values = scratch + at.values;
  float* logits = scratch + at.logits;
  const PromptState state = {scratch + at.max, scratch + at.sums, scratch + at.out};
  std::fill_n(queries, rows * dim, 0.0f);
  for (size_t row = 0; row < tile.tokens * group; ++row) {
    const float* q = tile.q + row / group * tile.q_token_stride + row % group * tile.q_head_stride;
    for (size_t x = 0; x < dim; ++x) queries[row * dim + x] = q[x] * tile.scale;
  }
  std::fill_n(state.max, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(state.sums, rows * kPromptLanes, 0.0f);
  std::fill_n(state.out, rows * value_dim, 0.0f);

  for (size_t first = 0; first < tile.cells; first += kPromptCells) {
    const size_t n = std::min(kPromptCells, tile.cells - first);
    const MaskKind kind = KindOf(tile, first, n);
    if (kind == MaskKind::kNone) continue;
    PackKeys(tile.keys, first, n, keys);
    const bool finite = PackValues(tile.values, first, n, values);
    std::fill_n(logits, rows * kPromptCells, 0.0f);
    MulAddMatrix(d, queries, dim, keys, kPromptCells, rows, dim, kPromptCells, logits,
                 kPromptCells);
    for (size_t row = 0; row < tile.tokens * group; ++row) {
      const uint16_t* mask =
          kind == MaskKind::kAll ? nullptr : tile.mask + row / group * tile.mask_stride + first;
      WeighRow(tile, mask, n, row, logits + row * kPromptCells, state);
    }
    if (!finite && kind == MaskKind::kSome)
      TakeOutUnfinite(tile.tokens * group, value_dim, logits, values, state);
    WithTag(tile.values.dim, [&](auto dv) HWY_ATTR {
      MulAddMatrix(dv, logits, kPromptCells, values, value_dim, rows, kPromptCells, value_dim,
                   state.out, value_dim);
    });
  }
  for (size_t row = 0; row < tile.tokens * group; ++row) {
    float* out =
        tile.out + row / group * tile.out_token_stride + row % group * tile.out_head_stride;
    float sum = 0;
    for (size_t i = 0; i < hn::Lanes(d); ++i) sum += state.sums[row * kPromptLanes + i];
    // A token that sees nothing gets zeros, as everywhere.
    const float norm = sum == 0 ? 0.0f : 1 / sum;
    for (size_t x = 0; x < value_dim; ++x) out[x] = state.out[row * value_dim + x] * norm;
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
