// Exact attention over a list of rows, and the scores alone. Included once per target.
#if defined(TACTIC_SRC_CPU_ATTEND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SRC_CPU_ATTEND_INL_H_
#undef TACTIC_SRC_CPU_ATTEND_INL_H_
#else
#define TACTIC_SRC_CPU_ATTEND_INL_H_
#endif

#include <cmath>
#include <limits>

#include "src/cpu/score-inl.h"
#include "src/softmax_state.h"
#include "tactic/shape.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Vectors of the value that stay in registers over a block: four per head, 16 accumulators for four
// heads.
constexpr size_t kColumnVectors = 4;
// Rows at a time where columns take several passes over them: their lines stay in L1 and their
// pages in its TLB, which has room for 64. (Rows of 256 bytes from memory, on Zen 3: with 32 rows,
// or all of a block, a third longer; with 8 no shorter.)
constexpr size_t kRowsAtOnce = 16;

// Columns [x, x + kVectors * lanes) of: state_g += sum_i weights[g][i] * value(cells[i]); `part` of
// what is ahead is asked for.
template <ElementType kType, int kHeads, size_t kVectors, class D>
HWY_INLINE void AddColumns(D d, const float* HWY_RESTRICT weights, const HeadRows& values,
                           const uint32_t* HWY_RESTRICT cells, size_t n, const Lookahead& ahead,
                           Lookahead::Bytes part, size_t x, float* HWY_RESTRICT states,
                           size_t state_stride) {
  using V = hn::Vec<D>;
  const size_t lanes = hn::Lanes(d);
  const size_t row_bytes = RowBytes(kType, static_cast<size_t>(values.dim));
  V sum[kHeads][kVectors];
  for (int g = 0; g < kHeads; ++g) {
    for (size_t c = 0; c < kVectors; ++c)
      sum[g][c] = hn::LoadU(d, states + g * state_stride + x + c * lanes);
  }
  for (size_t i = 0; i < n; ++i) {
    const uint8_t* row = values.data + cells[i] * values.stride;
    ahead.At(i, values, cells, row_bytes, part);
    V w[kHeads];
    for (int g = 0; g < kHeads; ++g) w[g] = hn::Set(d, weights[g * kBlock + i]);
    constexpr size_t kLoaded =
        kVectors % kBlockVectors<kType, D> == 0 ? kBlockVectors<kType, D> : 1;
    for (size_t c = 0; c < kVectors; c += kLoaded) {
      V v[kLoaded];
      LoadVectors<kType>(d, row, x + c * lanes, v);
      for (size_t l = 0; l < kLoaded; ++l) {
        for (int g = 0; g < kHeads; ++g) sum[g][c + l] = hn::MulAdd(v[l], w[g], sum[g][c + l]);
      }
    }
  }
  for (int g = 0; g < kHeads; ++g) {
    for (size_t c = 0; c < kVectors; ++c)
      hn::StoreU(sum[g][c], d, states + g * state_stride + x + c * lanes);
  }
}

template <ElementType kType, int kHeads, class D>
HWY_INLINE void AddValues(D d, const float* HWY_RESTRICT weights, const HeadRows& values,
                          const uint32_t* HWY_RESTRICT cells, size_t n, const Lookahead& ahead,
                          float* HWY_RESTRICT states, size_t state_stride) {
  const size_t dim = static_cast<size_t>(values.dim);
  const size_t step = kColumnVectors * hn::Lanes(d);
  const size_t passes = (dim + step - 1) / step;
  const size_t at_once = passes == 1 ? n : kRowsAtOnce;
  // Every pass asks for some lines of the rows ahead: those of all rows at once would be more
  // misses than a core has under way.
  const size_t row_bytes = RowBytes(kType, dim);
  const size_t lines = (row_bytes + kCacheLine * passes - 1) / (kCacheLine * passes);
  for (size_t begin = 0; begin < n; begin += at_once) {
    const size_t rows = std::min(at_once, n - begin);
    const Lookahead then = ahead.After(begin, values);
    size_t asked = 0;
    const auto add = [&](auto vectors, size_t x) HWY_ATTR {
      const Lookahead::Bytes part = {asked, std::min(asked + lines * kCacheLine, row_bytes)};
      asked = part.end;
      AddColumns<kType, kHeads, decltype(vectors)::value>(
          d, weights + begin, values, cells + begin, rows, then, part, x, states, state_stride);
    };
    size_t x = 0;
    for (; x + step <= dim; x += step) add(std::integral_constant<size_t, kColumnVectors>(), x);
    for (; x < dim; x += hn::Lanes(d)) add(std::integral_constant<size_t, 1>(), x);
  }
}

// Turns a block's logits into weights relative to the state's running maximum, which is raised
// first where needed. `logits` may be `weights`.
HWY_INLINE void Normalise(const float* logits, size_t n, int value_dim, float* weights,
                          float* HWY_RESTRICT state) {
  const WideTag d;
  const size_t lanes = hn::Lanes(d);
  const float kInf = std::numeric_limits<float>::infinity();
  const size_t whole = n / lanes * lanes;
  HWY_ALIGN float rest[hn::MaxLanes(WideTag())];
  if (whole < n) {
    for (size_t i = 0; i < lanes; ++i) rest[i] = whole + i < n ? logits[whole + i] : -kInf;
  }
  const auto load = [&](size_t i) HWY_ATTR { return hn::LoadU(d, i < whole ? logits + i : rest); };
  auto max_v = hn::Set(d, -kInf);
  auto nan_v =
      hn::Zero(d);  // becomes NaN once any logit is NaN or infinite: maxima alone would hide a NaN
  for (size_t i = 0; i < n; i += lanes) {
    const auto s = load(i);
    max_v = hn::Max(max_v, s);
    nan_v =
        hn::Add(nan_v, hn::Mul(hn::Zero(d), hn::IfThenZeroElse(hn::Eq(s, hn::Set(d, -kInf)), s)));
  }
  const float block_max = hn::GetLane(hn::MaxOfLanes(d, max_v));
  const float poison = hn::GetLane(hn::SumOfLanes(d, nan_v));
  // Every logit is -inf: no weight. Asked of the lanes: Highway's emulation never gives a maximum
  // below the least finite number.
  if (hn::AllTrue(d, hn::Eq(max_v, hn::Set(d, -kInf))) && poison == 0) {
    for (size_t i = 0; i < n; ++i) weights[i] = 0;
    return;
  }
  const float old_max = StateMax(state, value_dim);
  if (block_max > old_max) {
    const float factor = std::exp(old_max - block_max);  // 0 for the empty state
    for (int x = 0; x < value_dim; ++x) state[x] *= factor;
    StateSum(state, value_dim) *= factor;
    StateMax(state, value_dim) = block_max;
  }
  const auto shift = hn::Set(d, StateMax(state, value_dim));
  auto sum_v = hn::Zero(d);
  for (size_t i = 0; i < n; i += lanes) {
    const auto w = hn::Exp(d, hn::Sub(load(i), shift));
    hn::StoreU(w, d, weights + i);
    sum_v = hn::Add(sum_v, w);
  }
  StateSum(state, value_dim) += hn::GetLane(hn::SumOfLanes(d, sum_v)) + poison;
}

// Adds one block to the states: `rows` cells, whose logits become `weights`, [heads][kBlock].
// `logits` may be `weights`.
HWY_INLINE void AttendBlock(const float* logits, size_t logit_stride, int heads,
                            const HeadRows& values, const uint32_t* block, size_t rows,
                            const Lookahead& ahead, float* weights, float* states,
                            size_t state_stride) {
  for (int g = 0; g < heads; ++g)
    Normalise(logits + g * logit_stride, rows, values.dim, weights + g * kBlock,
              states + g * state_stride);
  WithTag(values.dim, [&](auto d) HWY_ATTR {
    WithType(values.type, [&](auto type) HWY_ATTR {
      constexpr ElementType kType = decltype(type)::value;
      for (int g = 0; g < heads; g += kHeadsPerLoad) {
        const float* of_heads = weights + g * kBlock;
        float* out = states + g * state_stride;
        const Lookahead once = g == 0 ? ahead : Lookahead();
        switch (std::min(kHeadsPerLoad, heads - g)) {
          case 4:
            AddValues<kType, 4>(d, of_heads, values, block, rows, once, out, state_stride);
            break;
          case 3:
            AddValues<kType, 3>(d, of_heads, values, block, rows, once, out, state_stride);
            break;
          case 2:
            AddValues<kType, 2>(d, of_heads, values, block, rows, once, out, state_stride);
            break;
          default:
            AddValues<kType, 1>(d, of_heads, values, block, rows, once, out, state_stride);
        }
      }
    });
  });
}

HWY_ATTR void AttendRows(const QueryHeads& query, const HeadRows& keys, const HeadRows& values,
                         const uint32_t* cells, size_t n, float* states, size_t state_stride,
                         const NextRows& next) {
  HWY_ALIGN float scores[LayerShape::kMaxGroup * kBlock];
  const Lookahead for_keys(keys, cells, n, next.keys);
  const Lookahead for_values(values, cells, n, next.values);
  for (size_t begin = 0; begin < n; begin += kBlock) {
    const size_t rows = std::min(kBlock, n - begin);
    ScoreBlock(query, keys, cells + begin, rows, for_keys.After(begin, keys), scores);
    AttendBlock(scores, kBlock, query.heads, values, cells + begin, rows,
                for_values.After(begin, values), scores, states, state_stride);
  }
}

HWY_ATTR void AttendScored(const float* logits, size_t logit_stride, int heads,
                           const HeadRows& values, const uint32_t* cells, size_t n, float* states,
                           size_t state_stride) {
  HWY_ALIGN float weights[LayerShape::kMaxGroup * kBlock];
  const Lookahead ahead(values, cells, n, nullptr);
  for (size_t begin = 0; begin < n; begin += kBlock) {
    AttendBlock(logits + begin, logit_stride, heads, values, cells + begin,
                std::min(kBlock, n - begin), ahead.After(begin, values), weights, states,
                state_stride);
  }
}

HWY_ATTR void ScoreRows(const QueryHeads& query, const HeadRows& keys, const uint32_t* cells,
                        size_t n, float* scores, size_t score_stride) {
  HWY_ALIGN float block[LayerShape::kMaxGroup * kBlock];
  const Lookahead ahead(keys, cells, n, nullptr);
  for (size_t begin = 0; begin < n; begin += kBlock) {
    const size_t rows = std::min(kBlock, n - begin);
    ScoreBlock(query, keys, cells + begin, rows, ahead.After(begin, keys), block);
    for (int g = 0; g < query.heads; ++g) {
      std::memcpy(scores + g * score_stride + begin, block + g * kBlock, rows * sizeof(float));
    }
  }
}

HWY_ATTR void ExpShifted(float* x, size_t n, float shift) {
  const WideTag d;
  const size_t lanes = hn::Lanes(d);
  const auto vs = hn::Set(d, shift);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(hn::Exp(d, hn::Sub(hn::LoadU(d, x + i), vs)), d, x + i);
  if (i == n) return;
  HWY_ALIGN float tail[hn::MaxLanes(WideTag())] = {};
  std::memcpy(tail, x + i, (n - i) * sizeof(float));
  hn::Store(hn::Exp(d, hn::Sub(hn::Load(d, tail), vs)), d, tail);
  std::memcpy(x + i, tail, (n - i) * sizeof(float));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
