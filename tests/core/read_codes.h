// What an index holds of mode tactic, decoded straight from the layout that src/codes.h and
// src/segment.h document, as the oracle takes it.
#ifndef TACTIC_TESTS_CORE_READ_CODES_H_
#define TACTIC_TESTS_CORE_READ_CODES_H_

#include <cstdint>
#include <vector>

#include "src/codes.h"
#include "src/cpu/kernels.h"
#include "src/half.h"
#include "src/reference/oracle_codes.h"
#include "src/segment.h"
#include "tests/core/read_level.h"

namespace tactic {

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
