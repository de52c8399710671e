// ScoreCentroids on every instruction set against the oracle. The stage that calls it: decode
// tests.
#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "src/cpu/kernels.h"
#include "src/half.h"
#include "tests/core/isa_param.h"
#include "tests/core/rows.h"
#include "tests/core/tolerance.h"

namespace tactic {
namespace {

using ScoreCentroids = IsaTest;

TEST_P(ScoreCentroids, IsTheScaledDotProduct) {
  std::mt19937 random(1);
  const float scale = 0.125f;
  for (int dim : {8, 64, 72, 80, 96, 128, 256, 512}) {
    for (int padded : {16, 48, 80}) {
      std::vector<uint16_t> centroids(static_cast<size_t>(dim) * padded);  // [dim][padded]
      std::vector<oracle::Row> decoded(padded);
      for (int c = 0; c < padded; ++c) {
        const std::vector<float> row = RandomRow(dim, random);
        for (int i = 0; i < dim; ++i) {
          centroids[static_cast<size_t>(i) * padded + c] = FloatToHalf(row[i]);
          decoded[c].push_back(HalfToFloat(FloatToHalf(row[i])));
        }
      }
      for (int group : {1, 2, 3, 4, 5, 8, 9, 32}) {
        const size_t q_stride = static_cast<size_t>(dim) + 3;
        const size_t score_stride = static_cast<size_t>(padded) + 5;
        std::vector<float> q((group - 1) * q_stride + dim);
        for (float& x : q) x = std::normal_distribution<float>()(random);
        std::vector<float> scores((group - 1) * score_stride + padded);
        cpu::ScoreCentroids({q.data(), q_stride, group, scale, /*softcap=*/9.0f}, dim,
                            centroids.data(), padded, scores.data(), score_stride);
        for (int g = 0; g < group; ++g) {
          const oracle::Row query(q.begin() + g * static_cast<ptrdiff_t>(q_stride),
                                  q.begin() + g * static_cast<ptrdiff_t>(q_stride) + dim);
          for (int c = 0; c < padded; ++c) {
            // Even and odd dimensions are two chains; the product with the scale is exact here.
            const tolerance::Bounded dot = tolerance::Dot(query, decoded[c], 2);
            ASSERT_NEAR(scores[g * score_stride + c], scale * dot.value, scale * dot.error)
                << "dim " << dim << " group " << group << " centroid " << c;
          }
        }
      }
    }
  }
}

TACTIC_INSTANTIATE_FOR_ISAS(ScoreCentroids);

}  // namespace
}  // namespace tactic
