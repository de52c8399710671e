// What an index holds of mode tactic, decoded straight from the layout that src/codes.h and
// src/segment.h document, as the oracle takes it.
#ifndef TACTIC_TESTS_CORE_READ_CODES_H_
#define TACTIC_TESTS_CORE_READ_CODES_H_

#include <cmath>
#include <cstdint>
#include <vector>

#include "src/codes.h"
#include "src/cpu/kernels.h"
#include "src/half.h"
#include "src/reference/oracle_codes.h"
#include "src/segment.h"

namespace tactic {

// 5 bits of exponent, 3 of mantissa.
inline double ReadByteFloat(uint8_t byte) {
  return byte == 0 ? 0 : std::ldexp(1 + byte % 8 / 8.0, byte / 8 - 24);
}

// The level of element `x` of key `key` of a block: byte 4 key + x % 4 of a row belongs to key and
// element; which row and which bits follow from k = x / 4.
inline double ReadLevel(const uint8_t* block, int dim, int bits, int key, int x) {
  const oracle::Row& level = oracle::QuantiserOf(bits).level;
  const int half = static_cast<int>(level.size());
  const int k = x / 4;
  const uint8_t* column = block + 4 * key + x % 4;
  if (bits == 3) {
    const int magnitude = column[k / 4 * 64] >> k % 4 * 2 & 3;
    const int sign_rows = (dim / 4 + 3) / 4;  // behind the magnitudes
    return (column[(sign_rows + k / 8) * 64] >> k % 8 & 1) != 0 ? -level[magnitude]
                                                                : level[magnitude];
  }
  const int count = bits == 2 ? column[k / 4 * 64] >> k % 4 * 2 & 3  //
                              : column[k / 2 * 64] >> k % 2 * 4 & 15;
  return count < half ? -level[half - 1 - count] : level[count - half];
}

// What a key's level means.
inline double KeyOf(uint32_t level) {
  return static_cast<double>(cpu::kLowestKey) + level / static_cast<double>(cpu::kKeyLevels);
}

// Clusters [0, count) of one KV head of a segment whose first position is `first`, appended to
// `out` with its mean of values.
inline void ReadClusters(const Clusters& from, int count, int64_t first, int head_dim,
                         int value_dim, bool pages, oracle::CodedIndex* out) {
  const Codes& codes = from.codes;
  const auto slots = static_cast<int>(codes.centroid_scales.size());
  const auto mean = [&](int slot) {
    oracle::Row row;
    for (int x = 0; x < value_dim; ++x) {
      row.push_back(static_cast<double>(HalfToFloat(codes.mean_scales[slot])) *
                    codes.means[static_cast<size_t>(slot) * value_dim + x]);
    }
    return row;
  };
  for (int c = 0; c < count; ++c) {
    oracle::CodedCluster cluster;
    cluster.bits = codes.bits;
    cluster.segment = static_cast<int>(out->means.size());
    cluster.page = pages;
    cluster.mean = mean(c);
    const double step = HalfToFloat(codes.centroid_scales[c]);
    for (int x = 0; x < head_dim; ++x)
      cluster.centroid.push_back(
          step * codes.centroids[x / 4 * size_t{4} * slots + static_cast<size_t>(4 * c + x % 4)]);
    for (int r = 0; r < oracle::kSpreadRuns; ++r)
      cluster.spreads.push_back(ReadByteFloat(codes.spreads[static_cast<size_t>(r) * slots + c]));
    cluster.longest =
        ReadByteFloat(codes.spreads[static_cast<size_t>(oracle::kSpreadRuns) * slots + c]);
    for (uint32_t i = from.starts[c]; i < from.starts[c + 1]; ++i) {
      cluster.members.push_back(first + from.members[i]);
      const uint8_t* block = codes.planes.data() + i / 16 * CodeBlockBytes(head_dim, codes.bits);
      oracle::Code code;
      code.scale = ReadByteFloat(codes.scales[i]);
      for (int x = 0; x < head_dim; ++x)
        code.levels.push_back(ReadLevel(block, head_dim, codes.bits, static_cast<int>(i % 16), x));
      cluster.codes.push_back(code);
    }
    out->clusters.push_back(std::move(cluster));
  }
  out->means.push_back(mean(slots));
}

}  // namespace tactic

#endif  // TACTIC_TESTS_CORE_READ_CODES_H_
