// The specification of what mode tactic stores: clusters and codes of keys, in scalar double
// precision.
//
// Nothing is shared with the encoder it judges but the generator of random signs. Positions are the
// tokens of one sequence, counted from 0; keys and values are plain vectors.
#ifndef TACTIC_SRC_REFERENCE_ORACLE_CODES_H_
#define TACTIC_SRC_REFERENCE_ORACLE_CODES_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "src/random.h"
#include "src/reference/oracle.h"

namespace tactic::oracle {

// ---- Numbers as they are stored -----------------------------------------------------------------

// The distance between neighbours of x > 0 among numbers with `bits` bits after the leading one
// that are not smaller than 2^lowest.
inline double Spacing(double x, int bits, int lowest) {
  int exponent;
  std::frexp(x, &exponent);
  return std::ldexp(1.0, std::max(exponent - 1, lowest) - bits);
}

// A number >= 0 in a byte: the nearest with 3 bits after the leading one, in [2^-23, 240], or 0.
inline double ByteFloat(double x) {
  if (!(x >= 0x1p-23)) return 0;
  if (x >= 240) return 240;
  const double spacing = Spacing(x, 3, -23);
  return std::floor(x / spacing + 0.5) * spacing;
}

// A row in 8 bits: integers within 127 times a step in f16, rounded up where the nearest would not
// do.
inline Row Bytes(const Row& row) {
  double most = 0;
  for (double x : row) most = std::max(most, std::fabs(x));
  if (most == 0) return Row(row.size(), 0.0);
  const double spacing = Spacing(most / 127, 10, -14);
  double step = std::nearbyint(most / 127 / spacing) * spacing;
  if (step * 127 < most) step += step == 0 ? spacing : Spacing(step, 10, -14);
  Row bytes;
  for (double x : row) bytes.push_back(std::round(x / step) * step);
  return bytes;
}

// ---- Codes --------------------------------------------------------------------------------------

// Levels of Lloyd-Max quantisers (Max 1960) of a Gaussian, as half-integers; positive ones of 2, 3
// and 4 bits. A magnitude above boundary i, in units of the root mean square, has level i + 1.
struct Quantiser {
  std::vector<double> level;
  std::vector<double> boundary;
};
inline const Quantiser& QuantiserOf(int bits) {
  static const Quantiser two = {{18.5, 61.5}, {0.9816}};
  static const Quantiser three = {{7.5, 22.5, 39.5, 63.5}, {0.5006, 1.050, 1.748}};
  static const Quantiser four = {{2.5, 7.5, 12.5, 18.5, 24.5, 31.5, 40.5, 53.5},
                                 {0.2554, 0.5108, 0.7918, 1.0983, 1.4304, 1.8390, 2.4010}};
  return bits == 2 ? two : bits == 3 ? three : four;
}

// Of a Gaussian element y of deviation 1 and its level: E[level^2] - E[y level]^2, as the format
// has it. Times t^2, this is the variance of t level about y.
inline double ElementError(int bits) { return bits == 2 ? 172.69 : bits == 3 ? 29.383 : 3.722; }

// y = H D x: signs from SplitMix64(0x7AC71C), the top bit of each number; then, block by block,
// normalised Hadamard matrices of the powers of two that the dimension is the sum of, largest
// first.
inline Row Rotated(const Row& x) {
  Random random(0x7AC71C);
  Row flipped;
  for (double v : x) flipped.push_back(random.Next() >> 63 != 0 ? -v : v);
  Row y;
  for (size_t begin = 0; begin < x.size();) {
    const size_t size = std::bit_floor(x.size() - begin);
    for (size_t i = 0; i < size; ++i) {
      double sum = 0;
      for (size_t j = 0; j < size; ++j)
        sum += std::popcount(i & j) % 2 == 0 ? flipped[begin + j] : -flipped[begin + j];
      y.push_back(sum / std::sqrt(static_cast<double>(size)));
    }
    begin += size;
  }
  return y;
}

// What is stored of a key beside its cluster: the rotated residual is estimated as scale * levels.
struct Code {
  Row levels;
  double scale = 0;
};

// The scale makes <y, scale * levels> = |y|^2, which is unbiased.
inline Code EncodeResidual(const Row& residual, int bits) {
  const Quantiser& quantiser = QuantiserOf(bits);
  const Row y = Rotated(residual);
  const double square = Dot(y, y);
  const double rms = std::sqrt(square / static_cast<double>(y.size()));
  Code code;
  for (double element : y) {
    size_t m = 0;
    for (double boundary : quantiser.boundary) m += std::fabs(element) > boundary * rms;
    code.levels.push_back(element < 0 ? -quantiser.level[m] : quantiser.level[m]);
  }
  const double along = Dot(y, code.levels);
  code.scale = along > 0 ? ByteFloat(square / along) : 0;
  return code;
}

constexpr int kSpreadRuns = 16;

struct CodedCluster {
  std::vector<int64_t> members;
  int bits = 0;
  Row centroid;             // as stored: 8 bits
  std::vector<Code> codes;  // of the members
  Row spreads;              // root mean square of a residual's element, over runs of elements
  double longest = 1;       // longest residual over the root mean square one
  Row mean;                 // of the members' values, as stored
  int segment = 0;          // which the cluster is in; numbers of CodedIndex::means
  bool page = false;        // consecutive positions: never skipped
};

inline CodedCluster Encode(const Rows& keys, const Rows& values, std::vector<int64_t> members,
                           int bits) {
  const auto mean_of = [&](const Rows& rows) {
    Row mean(rows[members[0]].size(), 0.0);
    for (int64_t p : members) {
      for (size_t i = 0; i < mean.size(); ++i)
        mean[i] += rows[p][i] / static_cast<double>(members.size());
    }
    return Bytes(mean);
  };
  CodedCluster cluster;
  cluster.bits = bits;
  cluster.centroid = mean_of(keys);
  cluster.mean = mean_of(values);
  const size_t dim = cluster.centroid.size();
  const auto size = static_cast<double>(members.size());
  Row runs(kSpreadRuns, 0.0);
  double longest = 0;
  for (int64_t p : members) {
    Row residual;
    for (size_t i = 0; i < dim; ++i) {
      residual.push_back(keys[p][i] - cluster.centroid[i]);
      runs[i * kSpreadRuns / dim] += residual[i] * residual[i];
    }
    longest = std::max(longest, Dot(residual, residual));
    cluster.codes.push_back(EncodeResidual(residual, bits));
  }
  const double all = std::accumulate(runs.begin(), runs.end(), 0.0);
  // A run has dim / 16 elements, on average where that is no integer.
  for (double run : runs)
    cluster.spreads.push_back(
        ByteFloat(std::sqrt(run / (size * static_cast<double>(dim) / kSpreadRuns))));
  cluster.longest = all > 0 ? ByteFloat(std::sqrt(longest / (all / size))) : 1;
  cluster.members = std::move(members);
  return cluster;
}

struct CodedIndex {
  std::vector<CodedCluster> clusters;
  Rows means;  // of the values of each segment, as stored
};

}  // namespace tactic::oracle

#endif  // TACTIC_SRC_REFERENCE_ORACLE_CODES_H_
