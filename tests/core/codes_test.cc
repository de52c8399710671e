// Codes of keys: numbers in a byte, quantisers, the rotation, the stored layout against the oracle,
// and that estimates are unbiased with the error they claim.
#include "src/codes.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "src/encode.h"
#include "src/reference/oracle_tactic.h"
#include "tests/core/read_codes.h"
#include "tests/core/rows.h"

namespace tactic {
namespace {

TEST(Codes, ByteFloatsRoundTripAndAscend) {
  EXPECT_EQ(ByteToFloat(0), 0.0f);
  for (int b = 8; b < 256; ++b) {  // 1 to 7 are never written
    const float x = ByteToFloat(static_cast<uint8_t>(b));
    EXPECT_EQ(x, ReadByteFloat(static_cast<uint8_t>(b))) << b;
    EXPECT_EQ(FloatToByte(x), b);
    EXPECT_EQ(FloatToByteAbove(x), b);
    if (b == 255) break;
    const float next = ByteToFloat(static_cast<uint8_t>(b + 1));
    EXPECT_LT(x, next);
    const float middle = (x + next) / 2;
    EXPECT_EQ(FloatToByte(std::nextafter(middle, 0.0f)), b);
    EXPECT_EQ(FloatToByte(std::nextafter(middle, next)), b + 1);
    EXPECT_EQ(FloatToByteAbove(std::nextafter(x, next)), b + 1);
    EXPECT_LE((middle - x) / middle, 1.0f / 16) << "half of one eighth";
  }
  EXPECT_EQ(ByteToFloat(8), 0x1p-23f);
  EXPECT_EQ(ByteToFloat(255), kLargestByteFloat);
}

TEST(Codes, ByteFloatsHaveLimits) {
  for (float x : {0.0f, -1.0f, 0x1p-24f, std::nanf("")}) EXPECT_EQ(FloatToByte(x), 0) << x;
  for (float x : {240.0f, 241.0f, 1e30f, INFINITY}) EXPECT_EQ(FloatToByte(x), 255) << x;
  EXPECT_EQ(FloatToByteAbove(0x1p-30f), 8) << "a bound is not rounded to zero";
  EXPECT_EQ(FloatToByteAbove(0), 0);
}

// 2.7 % rms, as codes.h states.
TEST(Codes, ByteFloatsAreOffByWhatIsStated) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> exponent(-10, 7);
  double squares = 0;
  constexpr int kDraws = 100000;
  for (int i = 0; i < kDraws; ++i) {
    const float x = std::exp2(exponent(random));
    const float y = ByteToFloat(FloatToByte(x));
    squares += (y / x - 1) * (y / x - 1);
    ASSERT_EQ(y, oracle::ByteFloat(x));
  }
  EXPECT_NEAR(std::sqrt(squares / kDraws), 0.027, 0.001);
}

TEST(Codes, LevelsAndBoundariesAreThoseOfTheSpecification) {
  for (int bits = kSmallestBits; bits <= kLargestBits; ++bits) {
    const CodeBook& book = kCodeBooks[bits];
    const oracle::Quantiser& want = oracle::QuantiserOf(bits);
    ASSERT_EQ(book.magnitudes, 1 << (bits - 1));
    for (int m = 0; m < book.magnitudes; ++m) {
      EXPECT_EQ(book.level[m] - kLevelZero, want.level[m]);
      EXPECT_EQ((127 - book.level[m]) - kLevelZero, -want.level[m]) << "symmetric in 7 bits";
      EXPECT_LE(book.level[m], 127);
      if (m == 0) continue;
      EXPECT_EQ(book.boundary[m - 1], static_cast<float>(want.boundary[m - 1]));
      EXPECT_LT(book.level[m - 1], book.level[m]);
    }
  }
}

// A boundary lies in the middle of its levels, for one unit of the levels; half-integers leave 2 %.
TEST(Codes, BoundariesAreMidpoints) {
  for (int bits = kSmallestBits; bits <= kLargestBits; ++bits) {
    const oracle::Quantiser& book = oracle::QuantiserOf(bits);
    double along = 0;
    double square = 0;
    for (size_t m = 0; m < book.boundary.size(); ++m) {
      const double middle = (book.level[m] + book.level[m + 1]) / 2;
      along += middle * book.boundary[m];
      square += book.boundary[m] * book.boundary[m];
    }
    for (size_t m = 0; m < book.boundary.size(); ++m) {
      const double middle = (book.level[m] + book.level[m + 1]) / 2;
      EXPECT_NEAR(middle / (along / square) / book.boundary[m], 1, 0.02) << bits << " bits " << m;
    }
  }
}

// E[level^2] - E[y level]^2 of a Gaussian element y, in closed form and by drawing; and the same as
// a share of the element's variance when its scale is 1 / E[y level].
TEST(Codes, ErrorsAreThoseOfAGaussian) {
  std::mt19937 random(2);
  std::normal_distribution<double> normal;
  const auto density = [](double x) { return std::exp(-x * x / 2) * 0.3989422804014327; };
  for (int bits = kSmallestBits; bits <= kLargestBits; ++bits) {
    const CodeBook& book = kCodeBooks[bits];
    const oracle::Quantiser& quantiser = oracle::QuantiserOf(bits);
    double squares = 0;
    double along = 0;
    double low = 0;
    for (int m = 0; m < book.magnitudes; ++m) {
      const double high = m + 1 < book.magnitudes ? quantiser.boundary[m] : 40;
      const double level = quantiser.level[m];
      squares += level * level * (std::erf(high * M_SQRT1_2) - std::erf(low * M_SQRT1_2));
      along += level * 2 * (density(low) - density(high));
      low = high;
    }
    const double exact = squares - along * along;
    // The constants are on the safe side, of 4 bits by 3 %.
    const double above = bits == 4 ? 0.03 : 0.01;
    EXPECT_GE(book.error / exact, 1) << bits;
    EXPECT_LE(book.error / exact, 1 + above) << bits;
    EXPECT_GE(book.relative * along * along / exact, 1) << bits;
    EXPECT_LE(book.relative * along * along / exact, 1 + above) << bits;
    EXPECT_EQ(book.error, static_cast<float>(oracle::ElementError(bits)));

    double drawn_squares = 0;
    double drawn_along = 0;
    double drawn_variance = 0;
    for (int i = 0; i < 500000; ++i) {
      const double y = std::fabs(normal(random));
      int m = 0;
      while (m + 1 < book.magnitudes && y > book.boundary[m]) ++m;
      const double level = book.level[m] - kLevelZero;
      drawn_squares += level * level;
      drawn_along += y * level;
      drawn_variance += y * y;
    }
    const double relative = drawn_squares * drawn_variance / (drawn_along * drawn_along) - 1;
    EXPECT_NEAR(relative * along * along / exact, 1, 0.01) << bits;
  }
}

TEST(Codes, TheRotationIsOrthogonal) {
  std::mt19937 random(3);
  for (int dim = 8; dim <= 512; dim += 8) {
    const std::vector<float> a = RandomRow(dim, random);
    const std::vector<float> b = RandomRow(dim, random);
    std::vector<float> ra(dim);
    std::vector<float> rb(dim);
    Rotate(a.data(), dim, ra.data());
    Rotate(b.data(), dim, rb.data());
    const oracle::Row da = ToDouble(a);
    const oracle::Row db = ToDouble(b);
    const double lengths = std::sqrt(oracle::Dot(da, da) * oracle::Dot(db, db));
    EXPECT_NEAR(oracle::Dot(ToDouble(ra), ToDouble(rb)), oracle::Dot(da, db), 1e-6 * lengths);
    EXPECT_NEAR(oracle::Dot(ToDouble(ra), ToDouble(ra)), oracle::Dot(da, da),
                1e-6 * oracle::Dot(da, da))
        << dim;
    const oracle::Row want = oracle::Rotated(da);
    for (int x = 0; x < dim; ++x) ASSERT_NEAR(ra[x], want[x], 1e-5) << dim << " " << x;
  }
}

// Keys and values of one KV head and their clusters.
struct Encoded {
  Rows keys;
  Rows values;
  std::vector<uint32_t> cells;
  Clusters clusters;

  Encoded(int n, const LayerShape& shape, int bits, const std::vector<uint32_t>& starts,
          std::mt19937& random)
      : keys(ElementType::kF32, shape.head_dim, 1, n),
        values(ElementType::kF32, shape.value_dim, 1, n) {
    for (int i = 0; i < n; ++i) {
      keys.Set(i, 0, RandomRow(shape.head_dim, random, 1 + i % 3));
      values.Set(i, 0, RandomRow(shape.value_dim, random));
      cells.push_back(static_cast<uint32_t>(n - 1 - i));
    }
    constexpr int kSlots = 16;
    clusters.count = static_cast<int>(starts.size()) - 1;
    clusters.starts = starts;
    clusters.starts.resize(kSlots + 1, starts.back());
    clusters.members.resize(n);
    std::iota(clusters.members.begin(), clusters.members.end(), uint16_t{0});
    std::shuffle(clusters.members.begin(), clusters.members.end(), random);
    Options options;
    options.bits = bits;
    EncodeClusters({keys.View(), values.View(), 0, cells}, shape, options, -1, kSlots, false,
                   nullptr, &clusters);
  }
  oracle::Rows Decoded(const Rows& rows) const {
    oracle::Rows decoded;
    for (uint32_t cell : cells) decoded.push_back(rows.Get(cell, 0));
    return decoded;
  }
};

// Rounding in f32 may decide a tie otherwise: of 250,000 elements, a handful.
TEST(Codes, TheLayoutHoldsWhatTheOracleEncodes) {
  std::mt19937 random(4);
  int64_t elements = 0;
  int64_t differ = 0;
  for (int bits = kSmallestBits; bits <= kLargestBits; ++bits) {
    for (int dim : {8, 40, 64, 72, 80, 96, 128, 512}) {
      const LayerShape shape = {1, 1, dim, 24};
      const Encoded data(83, shape, bits, {0, 1, 30, 62, 83}, random);  // one of a single key
      ASSERT_FALSE(data.clusters.always);
      ASSERT_EQ(data.clusters.codes.bits, bits);
      oracle::CodedIndex stored;
      ReadClusters(data.clusters, 4, 0, dim, 24, false, &stored);
      const oracle::Rows keys = data.Decoded(data.keys);
      const oracle::Rows values = data.Decoded(data.values);
      for (const oracle::CodedCluster& got : stored.clusters) {
        const oracle::CodedCluster want = oracle::Encode(keys, values, got.members, bits);
        for (int x = 0; x < dim; ++x) ASSERT_NEAR(got.centroid[x], want.centroid[x], 1e-6);
        for (int x = 0; x < 24; ++x) ASSERT_NEAR(got.mean[x], want.mean[x], 1e-6);
        for (int r = 0; r < oracle::kSpreadRuns; ++r)
          ASSERT_EQ(got.spreads[r], want.spreads[r]) << dim;
        ASSERT_EQ(got.longest, want.longest);
        for (size_t i = 0; i < got.codes.size(); ++i) {
          int64_t here = 0;
          for (int x = 0; x < dim; ++x) here += got.codes[i].levels[x] != want.codes[i].levels[x];
          elements += dim;
          differ += here;
          if (here == 0) {
            ASSERT_NEAR(got.codes[i].scale, want.codes[i].scale, 0.07 * want.codes[i].scale);
          }
        }
      }
      // Error of all keys: what their scales say.
      double squares = 0;
      for (const auto& cluster : stored.clusters) {
        for (const oracle::Code& code : cluster.codes) squares += code.scale * code.scale / 83;
      }
      EXPECT_NEAR(data.clusters.codes.error / (oracle::ElementError(bits) * squares), 1, 1e-3);
      for (size_t i = 83; i < data.clusters.codes.scales.size(); ++i)
        EXPECT_EQ(data.clusters.codes.scales[i], 0) << "padding";
    }
  }
  EXPECT_LE(differ, elements / 10000) << elements;
}

// The tail's mean of a segment is that of all its members' values.
TEST(Codes, MeansOfASegment) {
  std::mt19937 random(5);
  const LayerShape shape = {1, 1, 16, 24};
  const Encoded data(90, shape, 3, {0, 50, 90}, random);
  oracle::CodedIndex stored;
  ReadClusters(data.clusters, 2, 0, 16, 24, false, &stored);
  const oracle::Rows values = data.Decoded(data.values);
  for (int x = 0; x < 24; ++x) {
    double mean = 0;
    for (const oracle::Row& value : values) mean += value[x] / 90;
    EXPECT_NEAR(stored.means[0][x], mean, 0.02) << x;
  }
}

// A random orthogonal matrix: Gram-Schmidt of Gaussian rows.
std::vector<oracle::Row> RandomRotation(int dim, std::mt19937& random) {
  std::vector<oracle::Row> rows;
  while (std::ssize(rows) < dim) {
    oracle::Row row = ToDouble(RandomRow(dim, random));
    for (const oracle::Row& other : rows) {
      const double along = oracle::Dot(row, other);
      for (int x = 0; x < dim; ++x) row[x] -= along * other[x];
    }
    const double length = std::sqrt(oracle::Dot(row, row));
    for (double& x : row) x /= length;
    rows.push_back(row);
  }
  return rows;
}

// Random keys of all lengths and queries that point at them a little, under random rotations: the
// error, in units of its prediction, has mean 0 and variance 1.
TEST(Codes, EstimatesAreUnbiasedWithThePredictedError) {
  std::mt19937 random(6);
  std::uniform_real_distribution<float> exponent(-2, 2);
  for (int bits = kSmallestBits; bits <= kLargestBits; ++bits) {
    for (int dim : {64, 80}) {
      double sum = 0;
      double squares = 0;
      double rounding = 0;
      int n = 0;
      for (int rotation = 0; rotation < 4; ++rotation) {
        const std::vector<oracle::Row> matrix = RandomRotation(dim, random);
        for (int draw = 0; draw < 2000; ++draw, ++n) {
          const float length = std::exp2(exponent(random));
          const oracle::Row key = ToDouble(RandomRow(dim, random, length));
          oracle::Row query = ToDouble(RandomRow(dim, random));
          for (int x = 0; x < dim; ++x) query[x] += 0.05 / length * key[x];
          oracle::Row k;
          oracle::Row q;
          for (int x = 0; x < dim; ++x) {
            k.push_back(oracle::Dot(matrix[x], key));
            q.push_back(oracle::Dot(matrix[x], query));
          }
          const oracle::Code code = oracle::EncodeResidual(k, bits);
          const oracle::CodedQuery coded = oracle::MakeCodedQuery(q, 1, 0);
          const double truth = oracle::Dot(q, k);
          const double deviation = std::sqrt(oracle::ElementError(bits) * coded.norm) * code.scale;
          const double error = (code.scale * oracle::Dot(coded.rotated, code.levels) - truth);
          sum += error / deviation;
          squares += error * error / (deviation * deviation);
          rounding += 0.027 * 0.027 * truth * truth / (deviation * deviation);
        }
      }
      EXPECT_LE(std::fabs(sum / n), 4 * std::sqrt(squares) / n) << bits << " bits, " << dim;
      // Rounding the scale to a byte adds 2.7 % of the logit, which is not in the prediction. That
      // is for long Gaussian vectors and a little above these.
      EXPECT_GE((squares - rounding) / n, 0.87) << bits << " bits, " << dim;
      EXPECT_LE((squares - rounding) / n, 1.05) << bits << " bits, " << dim;
    }
  }
}

}  // namespace
}  // namespace tactic
