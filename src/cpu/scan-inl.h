// The code scan of mode tactic. Included once per target.
#if defined(TACTIC_SRC_CPU_SCAN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SRC_CPU_SCAN_INL_H_
#undef TACTIC_SRC_CPU_SCAN_INL_H_
#else
#define TACTIC_SRC_CPU_SCAN_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <limits>

#include "hwy/cache_control.h"
#include "src/cpu/bins-inl.h"
#include "src/cpu/dot-inl.h"
#include "src/cpu/estimate-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The byte that stands for a code: its level, or of codes of three bits its magnitude's.
template <int kBits>
HWY_INLINE uint8_t LevelByte(int code) {
  const CodeBook& book = kCodeBooks[kBits];
  if (kBits == 3) return book.level[code];
  return code < book.magnitudes ? static_cast<uint8_t>(127 - book.level[book.magnitudes - 1 - code])
                                : book.level[code - book.magnitudes];
}

// A query in units of levels.
struct LevelQuery {
  const int32_t* packed = nullptr;
  float factor = 0;
  float offset = 0;
  float half_variance = 0;
  float shift = 0;  // level of a logit of 0, less that of the reference
  int32_t floor = 0;

  LevelQuery() = default;
  explicit LevelQuery(const CodeQuery& query)
      : packed(query.packed),
        factor(query.factor * kKeyLevels),
        offset(query.offset * kKeyLevels),
        half_variance(query.half_variance * kKeyLevels),
        shift(-(query.reference + kLowestKey) * kKeyLevels),
        floor(static_cast<int32_t>(query.floor)) {}
};

// Levels of keys whose scores, dot products and scales are given.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> LevelsOf(D d, const LevelQuery& query, hn::Vec<D> dot,
                                                   hn::Vec<D> t, hn::Vec<D> score, float softcap) {
  const auto shift = hn::Set(d, query.shift);
  const auto most = hn::Set(d, kLargestHalfVariance * kKeyLevels + query.shift);
  const auto half =
      hn::Min(hn::MulAdd(hn::Mul(t, t), hn::Set(d, query.half_variance), shift), most);
  const auto residual = hn::MulAdd(dot, hn::Set(d, query.factor), hn::Set(d, query.offset));
  const auto logit = Capped(d, hn::MulAdd(t, residual, score), softcap);
  return NearestLevel(d, hn::Add(logit, half));
}

#if HWY_TARGET == HWY_SCALAR
// Without vectors: key by key, straight from the layout.
template <int kBits>
HWY_INLINE int StoredLevel(const uint8_t* HWY_RESTRICT block, size_t key, size_t element,
                           size_t magnitude_rows) {
  const size_t quad = element / 4;
  const uint8_t* column = block + 4 * key + element % 4;
  if (kBits == 3) {
    const int level = LevelByte<kBits>(column[quad / 4 * kCodeRow] >> 2 * (quad % 4) & 3);
    const bool negative = column[(magnitude_rows + quad / 8) * kCodeRow] >> quad % 8 & 1;
    return negative ? 127 - level : level;
  }
  const int code = kBits == 2 ? column[quad / 4 * kCodeRow] >> 2 * (quad % 4) & 3
                              : column[quad / 2 * kCodeRow] >> 4 * (quad % 2) & 15;
  return LevelByte<kBits>(code);
}

template <int kBits, int kHeads>
HWY_INLINE void ScanBlocks(const CodedKeys& codes, const LevelQuery* queries, float softcap,
                           const uint32_t* blocks, size_t n, uint32_t first, const float* scores,
                           size_t score_stride, KeyLevel* keys, size_t key_stride, float* sums,
                           FoundKeys* found) {
  const hn::CappedTag<float, 1> d;
  const auto dim = static_cast<size_t>(codes.dim);
  for (size_t i = 0; i < n * kCodeBlock; ++i) {
    const size_t block = blocks[i / kCodeBlock] - first;
    const uint8_t* planes = codes.planes + block * CodeBlockBytes(codes.dim, kBits);
    const float t = ByteToFloat(codes.scales[block * kCodeBlock + i % kCodeBlock]);
    int32_t dots[kHeads] = {};
    for (size_t x = 0; x < dim; ++x) {
      const int level =
          StoredLevel<kBits>(planes, i % kCodeBlock, x, CodeRows(codes.dim, kSmallestBits));
      for (int g = 0; g < kHeads; ++g)
        dots[g] += level * reinterpret_cast<const int8_t*>(queries[g].packed)[x];
    }
    const size_t at = block * kCodeBlock + i % kCodeBlock;
    for (int g = 0; g < kHeads; ++g) {
      const auto level =
          LevelsOf(d, queries[g], hn::Set(d, static_cast<float>(dots[g])), hn::Set(d, t),
                   hn::Set(d, scores[g * score_stride + at]), softcap);
      StoreLevels(d, level, keys + g * key_stride + first * size_t{kCodeBlock} + at);
      sums[g] += hn::GetLane(MassOf(d, level));
      found[g].Add(d, level, queries[g].floor);
    }
  }
}
#else
using KeyTag = hn::Repartition<float, ByteTag>;

// What turns the bits of a code into its stored level, by byte shuffles of four bits each: of codes
// of two bits one half of the table looks at the lower of two, the other at the upper.
struct LevelTables {
  hn::Vec<ByteTag> low;
  hn::Vec<ByteTag> high;
};

template <int kBits>
HWY_INLINE LevelTables MakeLevelTables() {
  HWY_ALIGN uint8_t low[16];
  HWY_ALIGN uint8_t high[16];
  for (int i = 0; i < 16; ++i) {
    low[i] = LevelByte<kBits>(kBits == 4 ? i : i % 4);
    high[i] = LevelByte<kBits>(kBits == 4 ? i : i / 4);
  }
  const ByteTag d;
  return {hn::LoadDup128(d, low), hn::LoadDup128(d, high)};
}

HWY_INLINE hn::Vec<ByteTag> UpperFour(hn::Vec<ByteTag> v) {
  const ByteTag d;
  const hn::Repartition<uint16_t, ByteTag> d16;
  return hn::And(hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(d16, v))), hn::Set(d, 15));
}

// Groups of four elements that one row of magnitudes or counts yields.
template <int kBits>
inline constexpr size_t kQuadsPerRow = kBits == 4 ? 2 : 4;

// Levels of the groups of row `r` of a block, for the keys of one vector. `row` and `signs` point
// at these keys' bytes.
template <int kBits>
HWY_INLINE void RowLevels(const LevelTables& tables, const uint8_t* HWY_RESTRICT row,
                          const uint8_t* HWY_RESTRICT signs, size_t r, hn::Vec<ByteTag>* levels) {
  const ByteTag d;
  const auto packed = hn::LoadU(d, row);
  const auto lower = hn::And(packed, hn::Set(d, 15));
  const auto upper = UpperFour(packed);
  if constexpr (kBits == 4) {
    levels[0] = hn::TableLookupBytes(tables.low, lower);
    levels[1] = hn::TableLookupBytes(tables.low, upper);
  } else {
    levels[0] = hn::TableLookupBytes(tables.low, lower);
    levels[1] = hn::TableLookupBytes(tables.high, lower);
    levels[2] = hn::TableLookupBytes(tables.low, upper);
    levels[3] = hn::TableLookupBytes(tables.high, upper);
    if constexpr (kBits == 3) {
      // Negative: 127 - level, which is every bit but the highest flipped.
      const auto sign = hn::LoadU(d, signs + r / 2 * kCodeRow);
      const auto flip = hn::Set(d, 127);
      for (size_t k = 0; k < 4; ++k) {
        const auto bit = hn::Set(d, static_cast<uint8_t>(1u << (4 * (r % 2) + k)));
        levels[k] = hn::IfThenElse(hn::TestBit(sign, bit), hn::Xor(levels[k], flip), levels[k]);
      }
    }
  }
}

// Dot products of the keys of kVectors vectors (which start at `planes[v]`, within their blocks'
// first rows) with kHeads queries.
template <int kBits, int kHeads, size_t kVectors>
HWY_INLINE void CodeDots(const LevelTables& tables, const uint8_t* const* planes, int dim,
                         const LevelQuery* queries, hn::Vec<DotTag> (*dots)[kVectors]) {
  const DotTag di;
  const size_t quads = static_cast<size_t>(dim) / 4;
  const size_t rows = (quads + kQuadsPerRow<kBits> - 1) / kQuadsPerRow<kBits>;
  for (int g = 0; g < kHeads; ++g) {
    for (size_t v = 0; v < kVectors; ++v) dots[g][v] = hn::Zero(di);
  }
  for (size_t r = 0; r < rows; ++r) {
    hn::Vec<ByteTag> levels[kVectors][kQuadsPerRow<kBits>];
    for (size_t v = 0; v < kVectors; ++v) {
      RowLevels<kBits>(tables, planes[v] + r * kCodeRow, planes[v] + rows * kCodeRow, r, levels[v]);
    }
    for (size_t k = 0; k < kQuadsPerRow<kBits>; ++k) {
      for (int g = 0; g < kHeads; ++g) {
        const auto q = hn::Set(di, queries[g].packed[r * kQuadsPerRow<kBits> + k]);
        for (size_t v = 0; v < kVectors; ++v) dots[g][v] = DotAdd(dots[g][v], levels[v][k], q);
      }
    }
  }
}

template <int kBits, int kHeads>
HWY_INLINE void ScanBlocks(const CodedKeys& codes, const LevelQuery* queries, float softcap,
                           const uint32_t* HWY_RESTRICT blocks, size_t n, uint32_t first,
                           const float* HWY_RESTRICT scores, size_t score_stride,
                           KeyLevel* HWY_RESTRICT keys, size_t key_stride, float* HWY_RESTRICT sums,
                           FoundKeys* found) {
  const KeyTag d;
  // Vectors at a time: enough sums in flight to hide the latency of the dot products.
  constexpr size_t kVectors = 2;
  // Blocks asked for ahead of use: the list has gaps, over which the hardware does not see.
  constexpr size_t kBlocksAhead = 8;
  const size_t lanes = hn::Lanes(d);
  const size_t per_block = kCodeBlock / lanes;
  const size_t block_bytes = CodeBlockBytes(codes.dim, kBits);
  const LevelTables tables = MakeLevelTables<kBits>();
  KeyLevel* const levels = keys + first * size_t{kCodeBlock};
  hn::Vec<KeyTag> total[kHeads];
  for (int g = 0; g < kHeads; ++g) total[g] = hn::Zero(d);
  const size_t units = n * per_block;
  for (size_t u = 0; u < units; u += kVectors) {
    const uint8_t* planes[kVectors];
    const uint8_t* scales[kVectors];
    size_t at[kVectors];  // of the segment
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t unit = std::min(u + v, units - 1);
      const size_t part = unit % per_block * lanes;
      const uint32_t block = blocks[unit / per_block];
      at[v] = (block - first) * size_t{kCodeBlock} + part;
      planes[v] = codes.planes + (block - first) * block_bytes + 4 * part;
      scales[v] = codes.scales + (block - first) * size_t{kCodeBlock} + part;
      if (part == 0 && unit / per_block + kBlocksAhead < n) {
        const size_t ahead = blocks[unit / per_block + kBlocksAhead] - first;
        for (size_t b = 0; b < block_bytes; b += kCodeRow)
          hwy::Prefetch(codes.planes + ahead * block_bytes + b);
      }
    }
    hn::Vec<DotTag> dots[kHeads][kVectors];
    CodeDots<kBits, kHeads, kVectors>(tables, planes, codes.dim, queries, dots);
    for (size_t v = 0; v < kVectors && u + v < units; ++v) {
      const auto t = LoadByteFloats(d, scales[v]);
      for (int g = 0; g < kHeads; ++g) {
        const auto level = LevelsOf(d, queries[g], hn::ConvertTo(d, dots[g][v]), t,
                                    hn::LoadU(d, scores + g * score_stride + at[v]), softcap);
        StoreLevels(d, level, levels + g * key_stride + at[v]);
        total[g] = hn::Add(total[g], MassOf(d, level));
        found[g].Add(d, level, queries[g].floor);
      }
    }
  }
  for (int g = 0; g < kHeads; ++g) sums[g] += hn::GetLane(hn::SumOfLanes(d, total[g]));
}
#endif  // HWY_SCALAR

HWY_ATTR void SpreadScores(const uint32_t* starts, const uint8_t* kept, int clusters,
                           const float* scores, float* by_key) {
  const hn::CappedTag<float, kCodeBlock> d;
  const size_t lanes = hn::Lanes(d);
  const auto skipped = hn::Set(d, -std::numeric_limits<float>::infinity());
  const auto fill = [&](hn::Vec<decltype(d)> v, size_t begin, size_t end) HWY_ATTR {
    for (size_t i = begin; i < end; i += lanes) hn::StoreU(v, d, by_key + i);
  };
  size_t filled = 0;  // up to this block
  for (int c = 0; c < clusters; ++c) {
    if (kept[c] == 0) continue;
    const size_t begin = starts[c];
    const size_t end = starts[c + 1];
    // Also its first block, unless the cluster before has filled that, and the rest of its last
    // one: what is written past the end of a cluster, the next one overwrites.
    const size_t block = begin / kCodeBlock * kCodeBlock;
    if (block >= filled) fill(skipped, block, begin);
    fill(hn::Set(d, scores[c] * kKeyLevels), begin, end);
    fill(skipped, end, end + kCodeBlock);
    filled = (end + kCodeBlock - 1) / kCodeBlock * kCodeBlock;
  }
}

HWY_ATTR void ScanCodes(const CodedKeys& codes, const CodeQuery* queries, int heads, float softcap,
                        const uint32_t* blocks, size_t n, uint32_t first, const float* scores,
                        size_t score_stride, KeyLevel* keys, size_t key_stride, float* sums,
                        MassBins* bins) {
  const auto scan = [&](auto bits) HWY_ATTR {
    ForHeads(heads, [&](auto count, int g) HWY_ATTR {
      constexpr int kHeads = decltype(count)::value;
      LevelQuery level_queries[kHeads];
      for (int h = 0; h < kHeads; ++h) level_queries[h] = LevelQuery(queries[g + h]);
      FoundKeys found[kHeads];
      for (size_t begin = 0; begin < n; begin += FoundKeys::kBlocks) {
        ScanBlocks<decltype(bits)::value, kHeads>(
            codes, level_queries, softcap * kKeyLevels, blocks + begin,
            std::min(n - begin, FoundKeys::kBlocks), first, scores + g * score_stride, score_stride,
            keys + g * key_stride, key_stride, sums + g, found);
        for (int h = 0; h < kHeads; ++h) found[h].Flush(queries[g + h].floor, bins + g + h);
      }
    });
  };
  switch (codes.bits) {
    case 2:
      return scan(std::integral_constant<int, 2>());
    case 3:
      return scan(std::integral_constant<int, 3>());
    default:
      return scan(std::integral_constant<int, 4>());
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tactic::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
