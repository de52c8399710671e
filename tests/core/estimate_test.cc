// The kernels of src/cpu/estimate-inl.h (scores of clusters, what they may hold, weights and means
// of the tail) on every instruction set against scalar double.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "src/code_query.h"
#include "src/codes.h"
#include "src/cpu/kernels.h"
#include "src/half.h"
#include "src/reference/oracle_tactic.h"
#include "src/segment.h"
#include "src/softmax_state.h"
#include "tests/core/isa_param.h"
#include "tests/core/read_codes.h"
#include "tests/core/rows.h"
#include "tests/core/tolerance.h"

namespace tactic {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int kDims[] = {8, 40, 64, 72, 80, 96, 128, 512};

using EstimateKernels = IsaTest;

double Largest(const float* x, int n) {
  double most = 0;
  for (int i = 0; i < n; ++i) most = std::max<double>(most, std::fabs(x[i]));
  return most;
}

TEST_P(EstimateKernels, ScoreByteCentroids) {
  std::mt19937 random(1);
  for (int dim : kDims) {
    for (int heads : {1, 2, 3, 4, 5, 9, 32}) {
      const int padded = heads % 2 == 0 ? 16 : 48;
      std::vector<int8_t> centroids(static_cast<size_t>(dim) * padded);
      for (int8_t& c : centroids) c = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
      std::vector<uint16_t> scales;
      for (int c = 0; c < padded; ++c)
        scales.push_back(FloatToHalf(static_cast<float>(random() % 1000) / 1e5f));
      const size_t stride = dim + 3;
      const std::vector<float> q = RandomRow(static_cast<int>(heads * stride), random);
      const size_t score_stride = padded + 5;
      std::vector<float> scores(heads * score_stride, -7);
      std::vector<std::vector<int32_t>> parts(heads, std::vector<int32_t>(dim / 2));
      std::vector<cpu::CentroidQuery> queries;
      for (int g = 0; g < heads; ++g)
        queries.push_back(SplitQuery(q.data() + g * stride, dim, 0.3f, parts[g].data()));
      cpu::ScoreByteCentroids(queries.data(), heads, dim, centroids.data(), scales.data(), padded,
                              scores.data(), score_stride);
      for (int g = 0; g < heads; ++g) {
        for (int c = 0; c < padded; ++c) {
          double dot = 0;
          double size = 0;  // of the centroid
          for (int x = 0; x < dim; ++x) {
            const int8_t centroid = centroids[x / 4 * 4 * padded + 4 * c + x % 4];
            dot += static_cast<double>(q[g * stride + x]) * 0.3f * centroid;
            size += std::abs(centroid);
          }
          // The query is off by half a unit, which is a 4032nd of its largest element.
          const double scale = HalfToFloat(scales[c]);
          const double half_unit = 0.3 * Largest(q.data() + g * stride, dim) / 4032 / 2;
          ASSERT_NEAR(scores[g * score_stride + c], dot * scale,
                      1.0001 * half_unit * size * scale + 1e-6 * std::fabs(dot * scale) + 1e-30);
        }
        for (int c = padded; c < static_cast<int>(score_stride); ++c)
          ASSERT_EQ(scores[g * score_stride + c], -7);
      }
    }
  }
}

// Sizes from one member, empty slots, spreads from nothing to enormous.
TEST_P(EstimateKernels, EstimateClusters) {
  std::mt19937 random(2);
  constexpr int kPadded = 64;
  for (float softcap : {0.0f, 8.0f}) {
    std::vector<uint8_t> spreads((Codes::kRuns + 1) * kPadded);
    std::vector<float> log_sizes(kPadded, -kInf);
    std::vector<float> scores(kPadded);
    float energy[Codes::kRuns];
    for (float& e : energy) e = static_cast<float>(random() % 100) / 100;
    oracle::CodedQuery query;
    query.softcap = softcap;
    for (float e : energy) query.q.push_back(std::sqrt(static_cast<double>(e)));
    std::vector<oracle::CodedCluster> clusters(kPadded);
    for (int c = 0; c < kPadded - 10; ++c) {
      const int size = c % 5 == 0 ? 1 : 1 + static_cast<int>(random() % 300);
      log_sizes[c] = std::log(static_cast<float>(size));
      clusters[c].members.resize(size);
      const float width = std::exp2(static_cast<float>(c % 20) - 10);
      for (int r = 0; r <= Codes::kRuns; ++r) {
        const uint8_t byte = c % 7 == 0 ? uint8_t{0}
                                        : FloatToByte((r < Codes::kRuns ? width : 1.5f) *
                                                      (1 + static_cast<float>(random() % 10) / 10));
        spreads[r * kPadded + c] = byte;
        (r < Codes::kRuns ? clusters[c].spreads.emplace_back() : clusters[c].longest) =
            ReadByteFloat(byte);
      }
      scores[c] = static_cast<float>(static_cast<int>(random() % 400) - 200) / 10;
      // Only the score of the centroid counts: any vector that gives it.
      clusters[c].centroid.assign(Codes::kRuns, 0.0);
      for (int r = 0; r < Codes::kRuns; ++r) {
        if (query.q[r] == 0) continue;
        clusters[c].centroid[r] = scores[c] / query.q[r];
        break;
      }
    }
    std::vector<float> masses(kPadded);
    std::vector<float> floors(kPadded);
    std::vector<float> tokens(kPadded);
    cpu::EstimateClusters({spreads.data(), log_sizes.data(), kPadded}, scores.data(), energy,
                          Codes::kRuns, softcap, masses.data(), floors.data(), tokens.data());
    for (int c = 0; c < kPadded; ++c) {
      if (log_sizes[c] == -kInf) {
        ASSERT_EQ(masses[c], -kInf);
        ASSERT_EQ(floors[c], -kInf);
        ASSERT_EQ(tokens[c], -kInf);
        continue;
      }
      const oracle::ClusterEstimate want = oracle::EstimateCluster(query, clusters[c]);
      // Roundings of sums of a few terms; the root of a small difference asks for more.
      ASSERT_NEAR(floors[c], want.floor, 1e-6 * (5 + std::fabs(scores[c]))) << c;
      ASSERT_NEAR(masses[c], want.mass, 1e-5 * (5 + std::fabs(want.mass))) << c;
      ASSERT_NEAR(tokens[c], want.token, 1e-5 * (5 + std::fabs(want.token))) << c;
      ASSERT_GE(masses[c], floors[c]);
    }
  }
}

TEST_P(EstimateKernels, SumUpTo) {
  std::mt19937 random(3);
  for (size_t n : {0, 16, 32, 80, 1024}) {
    std::vector<float> x(n);
    for (float& v : x) v = std::exp2(static_cast<float>(random() % 20) - 10);
    for (size_t i = 5; i < n; i += 16) x[i] = 0;
    for (float limit : {-1.0f, 0.0f, 0.25f, 0.3f, 1e9f, kInf}) {
      double want = 0;
      for (float v : x) want += v <= limit ? v : 0;
      EXPECT_NEAR(cpu::SumUpTo(x.data(), n, limit), want, tolerance::Gamma(n) * want);
    }
  }
}

// Clusters of all sizes at all places of a word, some skipped, the last at the end of the arrays.
TEST_P(EstimateKernels, LargestMass) {
  std::vector<float> masses(80, -kInf);
  masses[37] = 2.5f;
  masses[79] = -3;
  float most = 1;
  EXPECT_TRUE(cpu::LargestMass(masses.data(), masses.size(), &most));
  EXPECT_EQ(most, 2.5f);
  most = 7;
  EXPECT_TRUE(cpu::LargestMass(masses.data(), masses.size(), &most));
  EXPECT_EQ(most, 7);
  for (const float bad : {kInf, std::nanf("")}) {
    for (const size_t at : {0, 41, 79}) {
      std::vector<float> with = masses;
      with[at] = bad;
      EXPECT_FALSE(cpu::LargestMass(with.data(), with.size(), &most)) << bad << " at " << at;
    }
  }
}

TEST_P(EstimateKernels, KeepClustersAndSumMasses) {
  std::mt19937 random(12);
  for (const size_t n : {16, 48, 4096}) {
    std::vector<float> masses = RandomRow(static_cast<int>(n), random);
    std::vector<float> tokens = RandomRow(static_cast<int>(n), random);
    masses[3] = 0.5f;  // the limits themselves are not above
    tokens[3] = 0.7f;
    std::vector<uint8_t> kept(n);
    for (uint8_t& k : kept) k = random() % 4 == 0;
    std::vector<uint8_t> want = kept;
    for (size_t c = 0; c < n; ++c) want[c] |= masses[c] > 0.5f || tokens[c] > 0.7f;
    cpu::KeepClusters(masses.data(), tokens.data(), n, 0.5f, 0.7f, kept.data());
    EXPECT_EQ(kept, want);
    double all = 0;
    double skipped = 0;
    double size = 0;
    for (size_t c = 0; c < n; ++c) {
      all += masses[c];
      skipped += kept[c] == 0 ? masses[c] : 0;
      size += std::fabs(masses[c]);
    }
    const cpu::MassSums sums = cpu::SumMasses(masses.data(), kept.data(), n);
    EXPECT_NEAR(sums.all, all, tolerance::Gamma(static_cast<int>(n)) * size);
    EXPECT_NEAR(sums.skipped, skipped, tolerance::Gamma(static_cast<int>(n)) * size);
  }
}

TEST_P(EstimateKernels, UnreadMasses) {
  std::mt19937 random(10);
  for (int heads : {1, 2, 3, 4, 5, 9, 32}) {
    std::vector<uint32_t> starts = {0};
    for (int size : {1, 1, 15, 16, 17, 3, 64, 90, 33, 5}) starts.push_back(starts.back() + size);
    const auto clusters = static_cast<int>(starts.size()) - 1;
    const size_t n = starts.back();
    const std::vector<uint8_t> kept = {1, 1, 0, 1, 1, 1, 0, 1, 1, 1};
    const size_t stride = n + 16;
    std::vector<cpu::KeyLevel> keys(heads * stride, cpu::kLastKey);  // past the last: anything
    for (int g = 0; g < heads; ++g) {
      for (size_t i = 0; i < n; ++i)
        keys[g * stride + i] = static_cast<cpu::KeyLevel>(20000 + random() % 30000);
    }
    std::vector<uint8_t> scales(n + 16);
    for (uint8_t& scale : scales) scale = FloatToByte(static_cast<float>(random() % 1000) / 100);
    std::vector<uint64_t> read(n / 64 + 2);
    for (uint64_t& word : read) word = static_cast<uint64_t>(random()) << 32 | random();
    std::vector<float> half_variances;
    for (int g = 0; g < heads; ++g) half_variances.push_back(g == 0 ? 0.0f : 0.02f * g);
    const size_t mass_stride = clusters + 3;
    std::vector<float> masses(heads * mass_stride, -1);
    cpu::UnreadMasses(
        {keys.data(), stride, scales.data(), read.data(), starts.data(), kept.data(), clusters},
        heads, half_variances.data(), masses.data(), mass_stride);
    for (int g = 0; g < heads; ++g) {
      for (int c = 0; c < static_cast<int>(mass_stride); ++c) {
        const float got = masses[g * mass_stride + c];
        if (c >= clusters) {
          ASSERT_EQ(got, -1);
          continue;
        }
        double want = 0;
        for (uint32_t i = starts[c]; i < starts[c + 1] && kept[c] != 0; ++i) {
          if ((read[i / 64] >> i % 64 & 1) != 0) continue;
          const double t = ReadByteFloat(scales[i]);
          want += std::exp(KeyOf(keys[g * stride + i]) - std::min(t * t * half_variances[g], 20.0));
        }
        // Every logit is that of the nearest level.
        ASSERT_NEAR(got, want, (0.5 / cpu::kKeyLevels + 2e-5) * want)
            << "head " << g << " cluster " << c;
      }
    }
  }
}

TEST_P(EstimateKernels, AddMeans) {
  std::mt19937 random(11);
  for (int dim : {8, 24, 64, 80, 128}) {
    for (size_t n : {0, 1, 5, 64}) {
      for (int heads : {1, 2, 3, 4, 7}) {
        const size_t weight_stride = n + 2;
        std::vector<float> weights(heads * weight_stride, 1e9f);
        for (int g = 0; g < heads; ++g) {
          for (size_t c = 0; c < n; ++c)
            weights[g * weight_stride + c] =
                random() % 4 == 0 ? 0 : static_cast<float>(random() % 100) / 9;
        }
        std::vector<int8_t> means(n * dim);
        for (int8_t& m : means) m = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
        std::vector<uint16_t> scales(n);
        for (uint16_t& s : scales) s = FloatToHalf(static_cast<float>(random() % 100) / 1e3f);
        const size_t stride = SoftmaxStateStride(dim);
        std::vector<float> states = RandomRow(static_cast<int>(heads * stride), random);
        const std::vector<float> before = states;
        cpu::AddMeans(weights.data(), weight_stride, heads, means.data(), scales.data(), n, dim,
                      states.data(), stride);
        for (int g = 0; g < heads; ++g) {
          const float* old = before.data() + g * stride;
          const float* state = states.data() + g * stride;
          double sum = StateSum(old, dim);
          for (size_t c = 0; c < n; ++c) sum += weights[g * weight_stride + c];
          EXPECT_EQ(StateMax(state, dim), StateMax(old, dim));
          EXPECT_NEAR(StateSum(state, dim), sum, 1e-5 * (std::fabs(sum) + 1));
          for (int x = 0; x < dim; ++x) {
            double want = old[x];
            double size = std::fabs(want);
            for (size_t c = 0; c < n; ++c) {
              const double term = static_cast<double>(weights[g * weight_stride + c]) *
                                  HalfToFloat(scales[c]) * means[c * dim + x];
              want += term;
              size += std::fabs(term);
            }
            ASSERT_NEAR(state[x], want, tolerance::Gamma(n + 3) * size + 1e-30);
          }
        }
      }
    }
  }
}

TACTIC_INSTANTIATE_FOR_ISAS(EstimateKernels);

}  // namespace
}  // namespace tactic
