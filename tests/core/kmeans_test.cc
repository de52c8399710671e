// K-means: the assignment kernel on every instruction set, and whole clusterings, against the
// oracle from the same initial samples.
#include "src/kmeans.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "src/cpu/kernels.h"
#include "src/half.h"
#include "src/random.h"
#include "src/reference/oracle.h"
#include "tests/core/isa_param.h"
#include "tests/core/rows.h"
#include "tests/core/tolerance.h"

namespace tactic {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

double SquaredDistance(const oracle::Row& a, const oracle::Row& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

// How much further than the nearest centroid the chosen one may be (squared): the kernel maximises
// x . c - |c|^2 / 2 in one chain of dim multiply-adds that starts at the rounded half norm. Both
// candidates' errors count, and the squared distance is twice the value.
double DistanceSlack(const oracle::Row& x, const oracle::Row& chosen, const oracle::Row& nearest) {
  const auto error = [&](const oracle::Row& c) {
    const auto dim = static_cast<double>(x.size());
    return tolerance::Gamma(dim + 2) * (tolerance::SumAbs(x, c) + oracle::Dot(c, c) / 2);
  };
  return 2 * (error(chosen) + error(nearest));
}

size_t Nearest(const oracle::Row& x, const std::vector<oracle::Row>& centroids) {
  size_t nearest = 0;
  for (size_t c = 1; c < centroids.size(); ++c) {
    if (SquaredDistance(x, centroids[c]) < SquaredDistance(x, centroids[nearest])) nearest = c;
  }
  return nearest;
}

using KMeans = IsaTest;

TEST_P(KMeans, AssignNearestFindsANearestCentroid) {
  std::mt19937 random(1);
  for (int dim : {8, 64, 72, 80, 128, 512}) {
    for (int count : {1, 2, 15, 16, 17, 40}) {
      const int padded = (count + 15) / 16 * 16;
      std::vector<float> columns(static_cast<size_t>(dim) * padded, 0.0f);
      std::vector<float> half_norms(padded, kInf);
      std::vector<oracle::Row> centroids;
      for (int c = 0; c < count; ++c) {
        centroids.push_back(ToDouble(RandomRow(dim, random)));
        for (int i = 0; i < dim; ++i) {
          columns[static_cast<size_t>(i) * padded + c] = static_cast<float>(centroids[c][i]);
        }
        half_norms[c] = static_cast<float>(oracle::Dot(centroids[c], centroids[c]) / 2);
      }
      for (size_t n : {size_t{0}, size_t{1}, size_t{7}, size_t{8}, size_t{9}, size_t{30}}) {
        std::vector<float> keys;
        for (size_t i = 0; i < n; ++i) {
          const std::vector<float> row = RandomRow(dim, random);
          keys.insert(keys.end(), row.begin(), row.end());
        }
        std::vector<uint16_t> labels(n, 0xFFFF);
        cpu::AssignNearest(keys.data(), n, dim, columns.data(), half_norms.data(), padded,
                           labels.data());
        for (size_t i = 0; i < n; ++i) {
          const oracle::Row x(keys.begin() + static_cast<ptrdiff_t>(i) * dim,
                              keys.begin() + static_cast<ptrdiff_t>(i + 1) * dim);
          ASSERT_LT(labels[i], count);
          const oracle::Row& chosen = centroids[labels[i]];
          const oracle::Row& nearest = centroids[Nearest(x, centroids)];
          ASSERT_LE(SquaredDistance(x, chosen),
                    SquaredDistance(x, nearest) + DistanceSlack(x, chosen, nearest));
        }
      }
    }
  }
}

TEST_P(KMeans, AssignNearestGivesTiesToTheLowestNumber) {
  constexpr int kDim = 8;
  constexpr int kPadded = 48;
  std::vector<float> columns(kDim * kPadded, 1.0f);  // all centroids equal
  const std::vector<float> half_norms(kPadded, 4.0f);
  const std::vector<float> keys(kDim * 9, 0.5f);
  std::vector<uint16_t> labels(9, 1);
  cpu::AssignNearest(keys.data(), 9, kDim, columns.data(), half_norms.data(), kPadded,
                     labels.data());
  EXPECT_EQ(labels, std::vector<uint16_t>(9, 0));
  for (int i = 0; i < kDim; ++i) columns[i * kPadded] = 3.0f;  // all but the first
  cpu::AssignNearest(keys.data(), 9, kDim, columns.data(), half_norms.data(), kPadded,
                     labels.data());
  EXPECT_EQ(labels, std::vector<uint16_t>(9, 0)) << "larger product, same norm";
  for (int i = 0; i < kDim; ++i) columns[i * kPadded] = -3.0f;
  cpu::AssignNearest(keys.data(), 9, kDim, columns.data(), half_norms.data(), kPadded,
                     labels.data());
  EXPECT_EQ(labels, std::vector<uint16_t>(9, 1));
}

// --- whole clusterings ------------------------------------------------------------------------

struct Clustering {
  Clusters clusters;
  oracle::Rows keys;
  std::vector<oracle::Cluster> want;
  int slots;

  oracle::Row Centroid(int c) const {
    oracle::Row row;
    for (size_t i = 0; i < keys[0].size(); ++i) {
      row.push_back(HalfToFloat(clusters.centroids[i * slots + c]));
    }
    return row;
  }
  std::vector<int64_t> Members(int c) const {
    return {clusters.members.begin() + clusters.starts[c],
            clusters.members.begin() + clusters.starts[c + 1]};
  }
};

// Clusters rows stored in permuted cells of head 1, and the same keys by the oracle.
Clustering Cluster(const std::vector<std::vector<float>>& rows, ElementType type,
                   const Options& options, uint64_t seed) {
  const auto n = static_cast<int>(rows.size());
  const auto dim = static_cast<int>(rows[0].size());
  Rows storage(type, dim, 2, n + 5, 1);
  std::vector<uint32_t> cells(n + 5);
  std::iota(cells.begin(), cells.end(), 0u);
  std::shuffle(cells.begin(), cells.end(), std::mt19937(7));
  cells.resize(n);
  Clustering result;
  for (int i = 0; i < n; ++i) {
    storage.Set(cells[i], 1, rows[i]);
    result.keys.push_back(storage.Get(cells[i], 1));
  }
  const int count = ClusterCount(n, options.cluster_size);
  result.slots = (count + 15) / 16 * 16 + 16;
  ClusterKeys(storage.View(), 1, dim, cells, options, seed, result.slots, &result.clusters);
  const std::vector<uint32_t> initial =
      SampleDistinct(static_cast<uint32_t>(n), static_cast<uint32_t>(count), seed);
  result.want = oracle::KMeans(result.keys, 0, n, initial, options.kmeans_iterations);
  return result;
}

// What holds for every clustering: a partition into ascending lists, the rest of the slots empty,
// centroids the means of their members in half precision.
void ExpectWellFormed(const Clustering& c) {
  ASSERT_EQ(c.clusters.starts.size(), static_cast<size_t>(c.slots) + 1);
  ASSERT_EQ(c.clusters.centroids.size(), c.keys[0].size() * c.slots);
  ASSERT_EQ(c.clusters.members.size(), c.keys.size());
  std::set<int64_t> seen;
  for (int k = 0; k < c.slots; ++k) {
    const std::vector<int64_t> members = c.Members(k);
    ASSERT_EQ(members.empty(), k >= c.clusters.count);
    ASSERT_TRUE(std::is_sorted(members.begin(), members.end()));
    seen.insert(members.begin(), members.end());
    if (members.empty()) continue;
    const oracle::Row centroid = c.Centroid(k);
    for (size_t i = 0; i < centroid.size(); ++i) {
      double mean = 0;
      for (int64_t p : members) mean += c.keys[p][i] / static_cast<double>(members.size());
      // Rounded to half (11 bits; 2^-25 below the normal range), by way of f32.
      ASSERT_NEAR(centroid[i], mean, 0x1p-11 * 1.001 * std::fabs(mean) + 0x1p-25);
    }
  }
  ASSERT_EQ(seen.size(), c.keys.size());
  ASSERT_EQ(*seen.rbegin(), static_cast<int64_t>(c.keys.size()) - 1);
}

double Inertia(const Clustering& c) {
  double sum = 0;
  for (int k = 0; k < c.clusters.count; ++k) {
    oracle::Row mean(c.keys[0].size(), 0.0);
    const std::vector<int64_t> members = c.Members(k);
    for (int64_t p : members) {
      for (size_t i = 0; i < mean.size(); ++i) {
        mean[i] += c.keys[p][i] / static_cast<double>(members.size());
      }
    }
    for (int64_t p : members) sum += SquaredDistance(c.keys[p], mean);
  }
  return sum;
}

// As many groups as clusters, far apart, one initial sample in each: no rounding can move a key.
TEST_P(KMeans, SeparatedKeysGiveTheOraclesPartition) {
  std::mt19937 random(3);
  for (ElementType type : kAllTypes) {
    for (int n : {1, 2, 33, 200, 500}) {
      Options options = Options::For(Mode::kPaper);
      options.cluster_size = std::max(2, n / 7);
      const int count = ClusterCount(n, options.cluster_size);
      uint64_t seed = 0;
      std::vector<int> group_of(n);
      std::set<int> sampled;
      while (std::ssize(sampled) < count) {
        ++seed;
        for (int& group : group_of) group = static_cast<int>(random() % count);
        sampled.clear();
        for (uint32_t i : SampleDistinct(n, count, seed)) sampled.insert(group_of[i]);
      }
      std::vector<std::vector<float>> centers;
      for (int c = 0; c < count; ++c) centers.push_back(RandomRow(32, random, 10));
      std::vector<std::vector<float>> rows;
      for (int i = 0; i < n; ++i) {
        rows.push_back(RandomRow(32, random, 0.1f));
        for (int x = 0; x < 32; ++x) rows.back()[x] += centers[group_of[i]][x];
      }
      const Clustering c = Cluster(rows, type, options, seed);
      ExpectWellFormed(c);
      ASSERT_EQ(c.clusters.count, count) << ElementTypeName(type);
      ASSERT_EQ(c.want.size(), static_cast<size_t>(count));
      for (int k = 0; k < count; ++k) ASSERT_EQ(c.Members(k), c.want[k].members);
    }
  }
}

TEST_P(KMeans, RandomKeysComeAsCloseAsTheOracle) {
  std::mt19937 random(4);
  for (int n : {100, 512, 1000}) {
    for (int dim : {8, 72, 128}) {
      std::vector<std::vector<float>> rows;
      for (int i = 0; i < n; ++i) rows.push_back(RandomRow(dim, random));
      const uint64_t seed = random();
      const Clustering c = Cluster(rows, ElementType::kF16, Options::For(Mode::kPaper), seed);
      ExpectWellFormed(c);
      double want = 0;
      for (const oracle::Cluster& cluster : c.want) {
        for (int64_t p : cluster.members) want += SquaredDistance(c.keys[p], cluster.centroid);
      }
      EXPECT_NEAR(Inertia(c), want, 0.01 * want) << n << " " << dim;
    }
  }
}

// With so many iterations that nothing moves any more, every key lies in the nearest cluster.
TEST_P(KMeans, AtConvergenceEveryKeyIsNearestToItsOwnMean) {
  std::mt19937 random(5);
  std::vector<std::vector<float>> rows;
  for (int i = 0; i < 400; ++i) rows.push_back(RandomRow(16, random));
  Options options = Options::For(Mode::kPaper);
  options.kmeans_iterations = 1000;
  const Clustering c = Cluster(rows, ElementType::kF32, options, 9);
  std::vector<oracle::Row> means;
  for (int k = 0; k < c.clusters.count; ++k) {
    oracle::Row mean(16, 0.0);
    const std::vector<int64_t> members = c.Members(k);
    for (int64_t p : members) {
      for (int i = 0; i < 16; ++i) mean[i] += c.keys[p][i] / static_cast<double>(members.size());
    }
    for (double& x : mean) x = static_cast<float>(x);  // as the assignment sees it
    means.push_back(mean);
  }
  for (int k = 0; k < c.clusters.count; ++k) {
    for (int64_t p : c.Members(k)) {
      const oracle::Row& nearest = means[Nearest(c.keys[p], means)];
      EXPECT_LE(SquaredDistance(c.keys[p], means[k]),
                SquaredDistance(c.keys[p], nearest) + DistanceSlack(c.keys[p], means[k], nearest));
    }
  }
}

// Equal keys among the samples: all but the first of them are empty at first, keep their place, and
// may win keys back once the first has moved.
TEST_P(KMeans, AnEmptiedClusterKeepsItsPlace) {
  std::mt19937 random(8);
  const float values[] = {0, 1.1f, 10, 12.7f, 31};
  int emptied = 0;
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    std::vector<std::vector<float>> rows;
    for (int i = 0; i < 40; ++i) {
      rows.push_back(std::vector<float>(8, values[random() % 5]));
      rows.back()[1] = 3;
    }
    Options options = Options::For(Mode::kPaper);
    options.cluster_size = 6;
    const Clustering c = Cluster(rows, ElementType::kF32, options, seed);
    ExpectWellFormed(c);
    ASSERT_EQ(c.clusters.count, static_cast<int>(c.want.size()));
    for (int k = 0; k < c.clusters.count; ++k) ASSERT_EQ(c.Members(k), c.want[k].members);
    emptied += c.clusters.count < ClusterCount(40, 6);
  }
  EXPECT_GT(emptied, 10) << "otherwise this tests nothing";
}

TEST_P(KMeans, EqualKeysMakeOneCluster) {
  const Clustering c = Cluster(std::vector<std::vector<float>>(200, std::vector<float>(8, 0.75f)),
                               ElementType::kF16, Options::For(Mode::kPaper), 1);
  ExpectWellFormed(c);
  EXPECT_EQ(c.clusters.count, 1);
}

TEST_P(KMeans, HugeKeysGiveFiniteCentroidsAndAPartition) {
  std::mt19937 random(6);
  std::vector<std::vector<float>> rows;
  for (int i = 0; i < 100; ++i) rows.push_back(RandomRow(8, random, i % 7 == 0 ? 1e30f : 1.0f));
  rows[50].assign(8, std::numeric_limits<float>::max());
  Clustering c = Cluster(rows, ElementType::kF32, Options::For(Mode::kPaper), 1);
  EXPECT_FALSE(c.clusters.always);
  std::set<int64_t> seen;
  for (int k = 0; k < c.clusters.count; ++k) {
    for (double x : c.Centroid(k)) EXPECT_TRUE(std::isfinite(x));
    for (int64_t p : c.Members(k)) seen.insert(p);
  }
  EXPECT_EQ(seen.size(), rows.size());
}

TEST_P(KMeans, AKeyThatIsNotFiniteMakesOneClusterThatIsAlwaysRead) {
  for (float bad : {std::nanf(""), kInf, -kInf}) {
    std::vector<std::vector<float>> rows(100, std::vector<float>(8, 1.0f));
    rows[77][5] = bad;
    Options options = Options::For(Mode::kPaper);
    Rows storage(ElementType::kF16, 8, 1, 100);
    std::vector<uint32_t> cells(100);
    std::iota(cells.begin(), cells.end(), 0u);
    for (int i = 0; i < 100; ++i) storage.Set(i, 0, rows[i]);
    Clusters clusters;
    ClusterKeys(storage.View(), 0, 8, cells, options, 1, 16, &clusters);
    EXPECT_TRUE(clusters.always);
    EXPECT_EQ(clusters.count, 1);
    EXPECT_EQ(clusters.Size(0), 100u);
    EXPECT_EQ(clusters.Size(15), 0u);
  }
}

TEST(ClusterCount, RoundsToTheNearestAndIsAtLeastOne) {
  EXPECT_EQ(ClusterCount(1, 32), 1);
  EXPECT_EQ(ClusterCount(47, 32), 1);
  EXPECT_EQ(ClusterCount(48, 32), 2);
  EXPECT_EQ(ClusterCount(65536, 2), 32768);
}

TEST(SampleDistinct, GivesDistinctNumbersThatDependOnTheSeedAlone) {
  for (uint32_t count : {0u, 1u, 31u, 1000u}) {
    const std::vector<uint32_t> sample = SampleDistinct(1000, count, 5);
    EXPECT_EQ(sample, SampleDistinct(1000, count, 5));
    const std::set<uint32_t> distinct(sample.begin(), sample.end());
    EXPECT_EQ(distinct.size(), count);
    if (count > 0) {
      EXPECT_LT(*distinct.rbegin(), 1000u);
    }
  }
  EXPECT_NE(SampleDistinct(1000, 31, 5), SampleDistinct(1000, 31, 6));
  // Every number is about equally likely: 31 of 1000 in each of 4000 draws, 5 standard deviations.
  std::vector<int> hits(1000);
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    for (uint32_t x : SampleDistinct(1000, 31, seed)) ++hits[x];
  }
  for (int h : hits) EXPECT_NEAR(h, 124, 5 * std::sqrt(124));
}

TACTIC_INSTANTIATE_FOR_ISAS(KMeans);

}  // namespace
}  // namespace tactic
