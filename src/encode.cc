#include "src/encode.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <vector>

#include "src/check.h"
#include "src/cpu/kernels.h"
#include "src/half.h"

namespace tactic {
namespace {

// A row in 8 bits with one scale for all of it, element x to out[at(x)]. The scale is rounded up to
// f16, so that no element exceeds 127. False: it is too large for an f16.
template <class At>
bool Quantise(const double* row, int dim, int8_t* out, const At& at, uint16_t* scale) {
  double most = 0;
  for (int x = 0; x < dim; ++x) most = std::max(most, std::fabs(row[x]));
  *scale = FloatToHalf(static_cast<float>(most / 127));
  if (HalfToFloat(*scale) * 127 < most) ++*scale;
  const double step = HalfToFloat(*scale);
  for (int x = 0; x < dim; ++x)
    out[at(static_cast<size_t>(x))] =
        static_cast<int8_t>(step > 0 ? std::lround(row[x] / step) : 0);
  return std::isfinite(step);
}

// The fewest bits whose predicted error of a logit is at most `most`; 3 when nothing is known of
// the queries.
int ChooseBits(double most, double residual, float query_norm) {
  if (query_norm < 0) return 3;
  for (int bits = kSmallestBits; bits < kLargestBits; ++bits) {
    if (std::sqrt(kCodeBooks[bits].relative * residual * query_norm) <= most) return bits;
  }
  return kLargestBits;
}

// The first columns of an array of `rows` rows of `slots` columns.
template <class T>
void CopyColumns(const std::vector<T>& from, int rows, int slots, int columns, std::vector<T>* to) {
  for (int r = 0; r < rows; ++r) {
    const auto begin = from.begin() + static_cast<ptrdiff_t>(r) * slots;
    std::copy(begin, begin + columns, to->begin() + static_cast<ptrdiff_t>(r) * slots);
  }
}

class Encoder {
 public:
  Encoder(const LayerShape& shape, int slots, Clusters* out)
      : shape_(shape),
        slots_(slots),
        out_(*out),
        codes_(out->codes),
        residuals_(static_cast<size_t>(out->members.size()) * shape.head_dim),
        rotated_(shape.head_dim),
        magnitudes_(shape.head_dim) {
    const auto columns = static_cast<size_t>(slots);
    codes_.centroids.assign(static_cast<size_t>(shape.head_dim) * columns, 0);
    codes_.centroid_scales.assign(columns, 0);
    codes_.spreads.assign((Codes::kRuns + 1) * columns, 0);
    codes_.means.assign((columns + 1) * shape.value_dim, 0);
    codes_.mean_scales.assign(columns + 1, 0);
  }

  // Centroid, spread and residuals of cluster `c`, and the mean of its values.
  void Describe(int c, const float* keys, const float* values) {
    const int dim = shape_.head_dim;
    const uint32_t begin = out_.starts[c];
    const auto size = static_cast<int>(out_.Size(c));
    std::vector<double> mean(dim);
    Mean(keys, begin, size, dim, &mean);
    int8_t* centroids = codes_.centroids.data();
    const auto at = [&](size_t x) {
      return CentroidAt(x, static_cast<size_t>(c), static_cast<size_t>(slots_));
    };
    fits_ = Quantise(mean.data(), dim, centroids, at, &codes_.centroid_scales[c]) && fits_;
    const float step = HalfToFloat(codes_.centroid_scales[c]);
    std::vector<float> stored(dim);
    for (int x = 0; x < dim; ++x)
      stored[x] = step * static_cast<float>(centroids[at(static_cast<size_t>(x))]);
    double longest = 0;
    double all = 0;
    std::vector<double> squares(dim);  // of an element, over the members
    for (int i = 0; i < size; ++i) {
      const float* key = keys + static_cast<size_t>(out_.members[begin + i]) * dim;
      float* residual = residuals_.data() + static_cast<size_t>(begin + i) * dim;
      for (int x = 0; x < dim; ++x) {
        residual[x] = key[x] - stored[x];
        squares[x] += static_cast<double>(residual[x]) * residual[x];
      }
      const double length = Square(residual, dim);
      all += length;
      longest = std::max(longest, length);
    }
    std::vector<double> runs(Codes::kRuns);
    for (int x = 0; x < dim; ++x) runs[x * Codes::kRuns / dim] += squares[x];
    const double per_run = static_cast<double>(size) * dim / Codes::kRuns;
    for (int r = 0; r < Codes::kRuns; ++r) {
      codes_.spreads[static_cast<size_t>(r) * slots_ + c] =
          FloatToByte(static_cast<float>(std::sqrt(runs[r] / per_run)));
    }
    codes_.spreads[static_cast<size_t>(Codes::kRuns) * slots_ + c] =
        FloatToByte(all > 0 ? static_cast<float>(std::sqrt(longest / (all / size))) : 1.0f);
    residual_sum_ += all;
    std::vector<double> value_mean(shape_.value_dim);
    Mean(values, begin, size, shape_.value_dim, &value_mean);
    StoreMean(c, value_mean);
  }

  // Mean square of an element of the residuals described so far, `keys` of them.
  double Residual(size_t keys) const {
    return residual_sum_ / (static_cast<double>(keys) * shape_.head_dim);
  }

  // Takes over the clusters of an earlier state of the segment.
  void Adopt(const Clusters& from) {
    CopyColumns(from.codes.centroids, shape_.head_dim / 4, slots_ * 4, from.count * 4,
                &codes_.centroids);
    CopyColumns(from.codes.centroid_scales, 1, slots_, from.count, &codes_.centroid_scales);
    CopyColumns(from.codes.spreads, Codes::kRuns + 1, slots_, from.count, &codes_.spreads);
    CopyColumns(from.codes.means, 1, 0, from.count * shape_.value_dim, &codes_.means);
    CopyColumns(from.codes.mean_scales, 1, 0, from.count, &codes_.mean_scales);
    std::copy(from.codes.scales.begin(), from.codes.scales.end(), codes_.scales.begin());
    std::copy(from.codes.planes.begin(), from.codes.planes.end(), codes_.planes.begin());
  }

  // What is said of all keys together.
  void Summarise() {
    double squares = 0;
    for (const uint8_t scale : codes_.scales) {
      const double t = ByteToFloat(scale);
      squares += t * t;
    }
    const auto keys = static_cast<double>(out_.members.size());
    codes_.error = static_cast<float>(kCodeBooks[codes_.bits].error * squares / keys);
    std::vector<double> mean(shape_.value_dim);
    for (int c = 0; c < out_.count; ++c) {
      const int8_t* row = codes_.means.data() + static_cast<size_t>(c) * shape_.value_dim;
      const double weight = HalfToFloat(codes_.mean_scales[c]) * out_.Size(c) / keys;
      for (int x = 0; x < shape_.value_dim; ++x) mean[x] += weight * row[x];
    }
    StoreMean(slots_, mean);
  }

  // Codes of the keys of members [begin, end). False: one of them, or a mean, is too large.
  bool Encode(uint32_t begin, uint32_t end) {
    const int dim = shape_.head_dim;
    const CodeBook& book = kCodeBooks[codes_.bits];
    const size_t block_bytes = CodeBlockBytes(dim, codes_.bits);
    bool fits = fits_;
    for (uint32_t i = begin; i < end; ++i) {
      Rotate(residuals_.data() + static_cast<size_t>(i) * dim, dim, rotated_.data());
      const double square = Square(rotated_.data(), dim);
      const auto rms = static_cast<float>(std::sqrt(square / dim));
      const double along = ChooseLevels(book, rms);
      Place(i % kCodeBlock, codes_.planes.data() + i / kCodeBlock * block_bytes);
      const double scale = along > 0 ? square / along : 0;
      fits = fits && scale <= kLargestByteFloat;
      codes_.scales[i] = FloatToByte(static_cast<float>(scale));
    }
    return fits;
  }

 private:
  void StoreMean(int slot, const std::vector<double>& mean) {
    fits_ = Quantise(mean.data(), shape_.value_dim,
                     codes_.means.data() + static_cast<size_t>(slot) * shape_.value_dim,
                     std::identity(), &codes_.mean_scales[slot]) &&
            fits_;
  }

  void Mean(const float* rows, uint32_t begin, int size, int dim, std::vector<double>* mean) const {
    for (int i = 0; i < size; ++i) {
      const float* row = rows + static_cast<size_t>(out_.members[begin + i]) * dim;
      for (int x = 0; x < dim; ++x) (*mean)[x] += row[x];
    }
    for (double& x : *mean) x /= size;
  }

  // Sum of squares. In four chains: an index is built for every key, and one chain of additions
  // takes as long as all else.
  static double Square(const float* x, int dim) {
    double sums[4] = {};
    for (int i = 0; i < dim; i += 4) {
      for (int j = 0; j < 4; ++j) sums[j] += static_cast<double>(x[i + j]) * x[i + j];
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  // The nearest levels of rotated_: their magnitudes ; their signs are those of rotated_. Returns
  // <y, levels>.
  double ChooseLevels(const CodeBook& book, float rms) {
    const int dim = shape_.head_dim;
    float edges[7];
    for (int b = 0; b + 1 < book.magnitudes; ++b) edges[b] = book.boundary[b] * rms;
    std::fill_n(magnitudes_.data(), dim, 0);
    for (int b = 0; b + 1 < book.magnitudes; ++b) {
      for (int x = 0; x < dim; ++x) magnitudes_[x] += std::fabs(rotated_[x]) > edges[b];
    }
    double sums[4] = {};
    for (int x = 0; x < dim; x += 4) {
      for (int j = 0; j < 4; ++j) {
        const float level = book.level[magnitudes_[x + j]] - kLevelZero;
        sums[j] += static_cast<double>(std::fabs(rotated_[x + j])) * level;
      }
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  // Writes the levels chosen as key `key` of a block, whose bits are zero so far.
  void Place(int key, uint8_t* block) const {
    const int dim = shape_.head_dim;
    const size_t magnitude_rows = CodeRows(dim, kSmallestBits);
    const int half = 1 << (codes_.bits - 1);
    for (int x = 0; x < dim; ++x) {
      const bool negative = rotated_[x] < 0;
      const int magnitude = magnitudes_[x];
      const int count = negative ? half - 1 - magnitude : half + magnitude;
      const int quad = x / 4;
      uint8_t* column = block + 4 * key + x % 4;
      if (codes_.bits == 2) {
        column[quad / 4 * kCodeRow] |= static_cast<uint8_t>(count << 2 * (quad % 4));
      } else if (codes_.bits == 4) {
        column[quad / 2 * kCodeRow] |= static_cast<uint8_t>(count << 4 * (quad % 2));
      } else {
        column[quad / 4 * kCodeRow] |= static_cast<uint8_t>(magnitude << 2 * (quad % 4));
        column[(magnitude_rows + quad / 8) * kCodeRow] |=
            static_cast<uint8_t>(negative ? 1 << quad % 8 : 0);
      }
    }
  }

  const LayerShape& shape_;
  const int slots_;
  Clusters& out_;
  Codes& codes_;
  std::vector<float> residuals_;  // [member][head_dim]
  std::vector<float> rotated_;
  std::vector<int> magnitudes_;
  double residual_sum_ = 0;
  bool fits_ = true;  // so far every centroid and mean has a scale
};

bool AllFinite(const std::vector<float>& x) {
  return std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); });
}

void ReadAlways(size_t members, Clusters* out) {
  out->always = true;
  out->count = 1;
  out->codes = Codes();
  std::fill(out->starts.begin() + 1, out->starts.end(), static_cast<uint32_t>(members));
  std::iota(out->members.begin(), out->members.end(), static_cast<uint16_t>(0));
}

}  // namespace

void MakePages(int64_t positions, int slots, Clusters* out) {
  *out = Clusters();
  out->count = static_cast<int>((positions + Options::kPage - 1) / Options::kPage);
  TACTIC_CHECK(positions >= 1 && out->count <= slots);
  out->starts.resize(slots + 1);
  for (int c = 0; c <= slots; ++c) {
    out->starts[c] =
        static_cast<uint32_t>(std::min<int64_t>(positions, int64_t{c} * Options::kPage));
  }
  out->members.resize(static_cast<size_t>(positions));
  std::iota(out->members.begin(), out->members.end(), static_cast<uint16_t>(0));
}

void EncodeClusters(const HeadPositions& head, const LayerShape& shape, const Options& options,
                    float query_norm, int slots, bool open, const Clusters* previous,
                    Clusters* out) {
  const size_t n = head.cells.size();
  std::vector<uint16_t>().swap(out->centroids);
  if (out->always) return;
  if (previous != nullptr && previous->always) return ReadAlways(n, out);
  const int known = previous == nullptr ? 0 : previous->count;
  const uint32_t coded = out->starts[known];  // members whose codes are known

  // Rows of known pages are not looked at. (Known members are the first positions.)
  std::vector<float> keys(n * shape.head_dim);
  std::vector<float> values(n * shape.value_dim);
  const auto fresh = head.cells.subspan(coded);
  cpu::LoadRows(
      {head.keys.Head(head.kv_head), head.keys.row_stride, head.keys.type, shape.head_dim},
      fresh.data(), fresh.size(), keys.data() + size_t{coded} * shape.head_dim);
  cpu::LoadRows(
      {head.values.Head(head.kv_head), head.values.row_stride, head.values.type, shape.value_dim},
      fresh.data(), fresh.size(), values.data() + size_t{coded} * shape.value_dim);
  if (!AllFinite(keys) || !AllFinite(values)) return ReadAlways(n, out);

  Encoder encoder(shape, slots, out);
  Codes& codes = out->codes;
  double residual = 0;  // mean square of an element: of the first page, or of all clusters
  for (int c = known; c < out->count; ++c) {
    encoder.Describe(c, keys.data(), values.data());
    if (c == 0 || !open) residual = encoder.Residual(out->starts[c + 1]);
  }
  codes.bits = previous != nullptr ? previous->codes.bits
               : options.bits != 0 ? options.bits
                                   : ChooseBits(options.bits_error, residual, query_norm);
  const size_t blocks = (n + kCodeBlock - 1) / kCodeBlock;
  codes.scales.assign((blocks + 1) * kCodeBlock, 0);
  codes.planes.assign(blocks * CodeBlockBytes(shape.head_dim, codes.bits), 0);
  if (previous != nullptr) encoder.Adopt(*previous);
  if (!encoder.Encode(coded, static_cast<uint32_t>(n))) return ReadAlways(n, out);
  encoder.Summarise();
}

}  // namespace tactic
