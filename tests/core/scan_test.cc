// The kernels of src/cpu/scan-inl.h on every instruction set against scalar double: all widths,
// group sizes and block lists; and AttendScored against AttendRows, bit for bit.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "src/codes.h"
#include "src/cpu/kernels.h"
#include "src/reference/oracle_tactic.h"
#include "src/softmax_state.h"
#include "tests/core/isa_param.h"
#include "tests/core/read_codes.h"
#include "tests/core/rows.h"
#include "tests/core/tolerance.h"

namespace tactic {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int kDims[] = {8, 40, 64, 72, 80, 96, 128, 512};
constexpr double kUnit = tolerance::kUnit;

using ScanKernels = IsaTest;

// Codes at random, in the documented layout: every byte is some key's.
struct RandomCodes {
  int dim;
  int bits;
  std::vector<uint8_t> planes;
  std::vector<uint8_t> scales;

  RandomCodes(int dim_, int bits_, int blocks, std::mt19937& random)
      : dim(dim_), bits(bits_), planes(blocks * CodeBlockBytes(dim_, bits_)), scales(16 * blocks) {
    for (uint8_t& byte : planes) byte = static_cast<uint8_t>(random());
    for (uint8_t& byte : scales)
      byte = random() % 9 == 0 ? uint8_t{0} : FloatToByte(static_cast<float>(random() % 100) / 500);
    scales[3] = 255;  // v / 2 far above its limit
  }
  cpu::CodedKeys View() const { return {planes.data(), scales.data(), bits, dim}; }
  double Level(size_t key, int x) const {
    return ReadLevel(planes.data() + key / 16 * CodeBlockBytes(dim, bits), dim, bits,
                     static_cast<int>(key % 16), x);
  }
};

struct RandomQueries {
  int padded;
  std::vector<int32_t> packed;
  std::vector<cpu::CodeQuery> queries;

  RandomQueries(int heads, int dim, std::mt19937& random)
      : padded(CodeQueryDim(dim)), packed(heads * padded / 4), queries(heads) {
    auto* bytes = reinterpret_cast<int8_t*>(packed.data());
    for (int g = 0; g < heads; ++g) {
      int sum = 0;
      for (int x = 0; x < padded; ++x) {
        // The extremes, too: -127 and 127 throughout for some heads.
        const int value = g == 1 ? 127 : g == 2 ? -127 : static_cast<int>(random() % 255) - 127;
        bytes[g * padded + x] = static_cast<int8_t>(x < dim ? value : 0);
        sum += bytes[g * padded + x];
      }
      const float unit = 0.002f / (1 + g);
      queries[g] = {
          packed.data() + g * padded / 4,    unit,     -kLevelZero * unit * sum,
          0.05f * static_cast<float>(1 + g), 3.0f - g, static_cast<uint32_t>(25000 + 1000 * g)};
    }
  }
  double Dot(const RandomCodes& codes, int g, size_t key, double* size) const {
    const auto* bytes = reinterpret_cast<const int8_t*>(packed.data()) + g * padded;
    double dot = 0;
    *size = 0;
    for (int x = 0; x < codes.dim; ++x) {
      dot += bytes[x] * codes.Level(key, x);
      *size += 127.0 * std::abs(bytes[x]);
    }
    *size *= queries[g].factor;
    return dot * queries[g].factor;
  }
};

void JudgeScan(const RandomCodes& codes, const RandomQueries& queries, float softcap,
               const std::vector<uint32_t>& numbers, std::mt19937& random) {
  const auto heads = static_cast<int>(queries.queries.size());
  // The segment is not the first: its keys begin some blocks into the array.
  constexpr uint32_t kFirst = 3;
  std::vector<uint32_t> blocks = numbers;
  for (uint32_t& block : blocks) block += kFirst;
  const size_t end = 16 * kFirst + codes.scales.size();
  const size_t stride = end + 7;
  const size_t score_stride = codes.scales.size() + 5;
  std::vector<float> scores(heads * score_stride);
  for (float& score : scores)
    score = random() % 6 == 0 ? -kInf
                              : (static_cast<float>(random() % 200) / 10 - 10) * cpu::kKeyLevels;
  constexpr cpu::KeyLevel kUntouched = 12345;
  std::vector<cpu::KeyLevel> keys(heads * stride, kUntouched);
  std::vector<float> sums(heads, 2.0f);
  std::vector<cpu::MassBins> bins(heads);
  cpu::ScanCodes(codes.View(), queries.queries.data(), heads, softcap, blocks.data(), blocks.size(),
                 kFirst, scores.data(), score_stride, keys.data(), stride, sums.data(),
                 bins.data());
  for (int g = 0; g < heads; ++g) {
    double sum = 2;
    double sum_error = 1e-6;
    uint32_t binned = 0;
    std::vector<bool> listed(end / 16, false);
    for (uint32_t block : blocks) listed[block] = true;
    for (size_t i = 0; i < stride; ++i) {
      const cpu::KeyLevel got = keys[g * stride + i];
      if (i >= end || !listed[i / 16]) {
        ASSERT_EQ(got, kUntouched) << "not in the list";
        continue;
      }
      double size;
      const size_t key = i - 16 * kFirst;
      const float scaled = scores[g * score_stride + key];
      const double score = scaled / static_cast<double>(cpu::kKeyLevels);
      if (scaled == -kInf) {
        ASSERT_EQ(got, cpu::kSkippedKey) << "skipped keys stay so; softcap " << softcap;
        continue;
      }
      const double t = ReadByteFloat(codes.scales[key]);
      const double residual = t * queries.Dot(codes, g, key, &size);
      const cpu::CodeQuery& query = queries.queries[g];
      const double half = std::min(query.half_variance * t * t, 20.0);
      const double want =
          std::clamp(oracle::Capped(score + residual, softcap) - query.reference + half,
                     KeyOf(cpu::kSkippedKey), KeyOf(cpu::kLastKey));
      const double error = 6 * kUnit * (t * size + std::fabs(score) + std::fabs(residual)) +
                           16 * kUnit * (softcap + 90 + half) + 0.5 / cpu::kKeyLevels;
      ASSERT_NEAR(KeyOf(got), want, error) << "head " << g << " key " << i;
      // Of what the level means: what is promised of a key is what is summed.
      const double mass = std::exp(KeyOf(got));
      sum += mass;
      sum_error += mass * 1e-5;
      binned += got >= query.floor;
    }
    ASSERT_NEAR(sums[g], sum, sum_error) << "head " << g;
    ASSERT_EQ(std::accumulate(bins[g].count, bins[g].count + cpu::kMassBins, 0u), binned);
    // Bins are what AddToBins makes of the levels.
    cpu::MassBins again = {};
    cpu::AddToBins(keys.data() + g * stride, blocks.data(), blocks.size(), queries.queries[g].floor,
                   &again);
    ASSERT_EQ(std::memcmp(&bins[g], &again, sizeof(again)), 0);
  }
}

TEST_P(ScanKernels, ScanCodesOfAllWidthsAndGroups) {
  std::mt19937 random(4);
  for (int bits = kSmallestBits; bits <= kLargestBits; ++bits) {
    for (int dim : kDims) {
      const RandomCodes codes(dim, bits, 7, random);
      for (int heads : {1, 2, 3, 4, 5, 6, 7, 8, 9, 32}) {
        const RandomQueries queries(heads, dim, random);
        const std::vector<std::vector<uint32_t>> lists = {{0, 1, 2, 3, 4, 5, 6}, {6}, {0, 2, 5}};
        JudgeScan(codes, queries, 0, lists[heads % 3], random);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(ScanKernels, ScanCodesOfNoBlockAndManyBlocks) {
  std::mt19937 random(5);
  for (int bits = kSmallestBits; bits <= kLargestBits; ++bits) {
    const RandomCodes codes(64, bits, 130, random);
    const RandomQueries queries(3, 64, random);
    for (int every : {1, 2, 3, 200}) {
      std::vector<uint32_t> blocks;
      for (int b = every == 2; b < 130; b += every) blocks.push_back(static_cast<uint32_t>(b));
      JudgeScan(codes, queries, 0, every == 3 ? std::vector<uint32_t>() : blocks, random);
      if (HasFatalFailure()) return;
    }
  }
}

// A cap must not turn the -inf of a skipped key, or of padding, into a number.
TEST_P(ScanKernels, ScanCodesWithSoftcap) {
  std::mt19937 random(6);
  for (int bits = kSmallestBits; bits <= kLargestBits; ++bits) {
    const RandomCodes codes(80, bits, 5, random);
    const RandomQueries queries(4, 80, random);
    JudgeScan(codes, queries, 6, {0, 3, 4}, random);
    if (HasFatalFailure()) return;
  }
}

// Every eighth is skipped.
std::vector<cpu::KeyLevel> RandomKeys(size_t n, std::mt19937& random) {
  std::vector<cpu::KeyLevel> keys(n);
  for (cpu::KeyLevel& key : keys)
    key = static_cast<cpu::KeyLevel>(random() % 8 == 0 ? cpu::kSkippedKey
                                                       : random() % (cpu::kLastKey + 1));
  return keys;
}

// Every third block is not listed; the last one always is.
std::vector<uint32_t> SomeBlocks(size_t keys) {
  std::vector<uint32_t> blocks;
  for (uint32_t b = 0; b < keys / 16; ++b) {
    if (b % 3 != 1 || b + 1 == keys / 16) blocks.push_back(b);
  }
  return blocks;
}

TEST_P(ScanKernels, SpreadScores) {
  std::mt19937 random(8);
  for (int trial = 0; trial < 200; ++trial) {
    constexpr int kClusters = 12;
    std::vector<uint32_t> starts = {0};
    std::vector<uint8_t> kept;
    std::vector<float> scores;
    for (int c = 0; c < kClusters; ++c) {
      starts.push_back(starts.back() + 1 + static_cast<uint32_t>(random() % 50));
      kept.push_back(random() % 4 == 0);
      scores.push_back(static_cast<float>(c));
    }
    const size_t padded = (starts[kClusters] + 15) / 16 * 16;
    std::vector<float> keys(padded + 16, 9);
    cpu::SpreadScores(starts.data(), kept.data(), kClusters, scores.data(), keys.data());
    const auto score_of = [&](size_t i) {
      int c = 0;
      while (c < kClusters && i >= starts[c + 1]) ++c;
      return c < kClusters && kept[c] != 0 ? scores[c] * cpu::kKeyLevels : -kInf;
    };
    for (size_t block = 0; block < padded; block += 16) {
      bool listed = false;
      for (size_t i = block; i < block + 16; ++i) listed = listed || score_of(i) != -kInf;
      for (size_t i = block; listed && i < block + 16; ++i)
        ASSERT_EQ(keys[i], score_of(i)) << "trial " << trial << " key " << i;
    }
  }
}

TEST_P(ScanKernels, AddToBins) {
  std::mt19937 random(7);
  for (size_t n : {16, 48, 640, 4096}) {
    const std::vector<cpu::KeyLevel> keys = RandomKeys(n, random);
    const std::vector<uint32_t> blocks = SomeBlocks(n);
    for (uint32_t low : {1u, 20000u, 33333u, 57000u, uint32_t{cpu::kLastKey}}) {
      cpu::MassBins bins = {};
      bins.mass[7] = 3;  // what is there stays
      bins.count[7] = 5;
      cpu::AddToBins(keys.data(), blocks.data(), blocks.size(), low, &bins);
      std::vector<double> mass(cpu::kMassBins, 0.0);
      std::vector<uint32_t> count(cpu::kMassBins, 0);
      mass[7] = 3;
      count[7] = 5;
      for (uint32_t block : blocks) {
        for (size_t i = 16 * block; i < 16 * block + 16; ++i) {
          if (!(keys[i] >= low)) continue;
          const uint32_t bin =
              std::min<uint32_t>((keys[i] - low) / cpu::kBinLevels, cpu::kMassBins - 1);
          mass[bin] += std::exp(KeyOf(keys[i]));
          ++count[bin];
        }
      }
      for (int b = 0; b < cpu::kMassBins; ++b) {
        ASSERT_EQ(bins.count[b], count[b]) << n << " " << low << " bin " << b;
        ASSERT_NEAR(bins.mass[b], mass[b], 1e-5 * mass[b]);
      }
    }
  }
}

TEST_P(ScanKernels, SelectKeys) {
  std::mt19937 random(8);
  for (size_t n : {16, 32, 64, 80, 1000 / 16 * 16}) {
    for (int heads : {1, 3, 8}) {
      const size_t stride = n + 16;
      const std::vector<cpu::KeyLevel> keys = RandomKeys(heads * stride, random);
      const std::vector<uint32_t> blocks = SomeBlocks(n);
      constexpr uint32_t kNone = 65536;
      std::vector<cpu::KeyRange> ranges(heads);
      for (int g = 0; g < heads; ++g) {
        // Bounds that keys equal, and ranges of nothing.
        const uint32_t low = std::max<uint32_t>(1, keys[g * stride + 2]);
        const uint32_t high = g % 2 == 0 ? kNone : std::max<uint32_t>(low, keys[g * stride + 5]);
        ranges[g] = g % 3 == 2 ? cpu::KeyRange{kNone, kNone} : cpu::KeyRange{low, high};
      }
      if (heads == 8) ranges[0].low = 1;  // all that are not skipped
      std::vector<uint64_t> read((n + 63) / 64);
      for (uint64_t& word : read) word = (static_cast<uint64_t>(random()) << 32) & random();
      read[0] |= 0xF0;
      std::vector<uint64_t> want_read = read;
      std::vector<uint32_t> want;
      for (uint32_t block : blocks) {
        for (size_t i = 16 * block; i < 16 * block + 16; ++i) {
          bool in = false;
          for (int g = 0; g < heads; ++g) {
            const cpu::KeyLevel key = keys[g * stride + i];
            in = in || (key >= ranges[g].low && key < ranges[g].high);
          }
          uint64_t& word = want_read[i / 64];
          if (!in || (word >> i % 64 & 1) != 0) continue;
          word |= uint64_t{1} << i % 64;
          want.push_back(static_cast<uint32_t>(i));
        }
      }
      std::vector<uint32_t> out(n + 16, 0xABCD);
      const size_t level_stride = n + 17;
      std::vector<cpu::KeyLevel> levels(heads * level_stride);
      out.resize(cpu::SelectKeys(keys.data(), stride, heads, ranges.data(), blocks.data(),
                                 blocks.size(), read.data(), out.data(), levels.data(),
                                 level_stride));
      EXPECT_EQ(out, want);
      EXPECT_EQ(read, want_read);
      std::vector<uint32_t> again(n + 16);
      EXPECT_EQ(
          cpu::SelectKeys(keys.data(), stride, heads, ranges.data(), blocks.data(), blocks.size(),
                          read.data(), again.data(), levels.data() + out.size(), level_stride),
          0u)
          << "once read, never again";
      for (int g = 0; g < heads; ++g) {
        for (size_t i = 0; i < out.size(); ++i)
          ASSERT_EQ(levels[g * level_stride + i], keys[g * stride + out[i]]) << g << " " << i;
      }
    }
  }
}

TEST_P(ScanKernels, SumRange) {
  std::mt19937 random(9);
  const std::vector<cpu::KeyLevel> keys = RandomKeys(500, random);
  for (size_t n = 0; n < 70; ++n) {
    // Ends with the last row: a sanitizer sees reads past it.
    const std::vector<cpu::KeyLevel> rows(keys.begin(), keys.begin() + n);
    std::vector<float> logits(n);
    for (size_t i = 0; i < n; ++i) logits[i] = static_cast<float>(KeyOf(rows[i]) + 2);
    for (uint32_t low : {1u, 20000u, 30000u}) {
      for (uint32_t high : {65536u, 40000u, 30000u}) {
        double exact = 4;
        double estimated = 5;
        double want_exact = 4;
        double want_estimated = 5;
        size_t count = 0;
        for (size_t i = 0; i < n; ++i) {
          const cpu::KeyLevel key = rows[i];
          if (key < low || key >= high) continue;
          ++count;
          want_exact += std::exp(logits[i] - 1.5);
          want_estimated += std::exp(KeyOf(key));
        }
        EXPECT_EQ(
            cpu::SumRange(rows.data(), logits.data(), n, {low, high}, 1.5f, &exact, &estimated),
            count);
        EXPECT_NEAR(exact, want_exact, 1e-5 * want_exact);
        EXPECT_NEAR(estimated, want_estimated, 1e-5 * want_estimated);
      }
    }
  }
}

// Given the logits that ScoreRows gives, AttendScored is AttendRows.
TEST_P(ScanKernels, AttendScoredIsAttendRows) {
  std::mt19937 random(12);
  for (ElementType type : kAllTypes) {
    for (int heads : {1, 3, 4, 9}) {
      const int dim = 64;
      const int value_dim = Legal(type, 72) ? 72 : 96;
      Rows keys(type, dim, 1, 50);
      Rows values(type, value_dim, 1, 50);
      for (int c = 0; c < 50; ++c) {
        keys.Set(c, 0, RandomRow(dim, random));
        values.Set(c, 0, RandomRow(value_dim, random));
      }
      const cpu::HeadRows k = {keys.View().Head(0), keys.View().row_stride, type, dim};
      const cpu::HeadRows v = {values.View().Head(0), values.View().row_stride, type, value_dim};
      const std::vector<float> q = RandomRow(heads * dim, random);
      const float softcap = heads % 2 == 0 ? 3.0f : 0.0f;
      const cpu::QueryHeads query = {q.data(), static_cast<size_t>(dim), heads, 0.4f, softcap};
      for (size_t n : {0, 1, 63, 64, 65, 200}) {
        std::vector<uint32_t> cells(n);
        for (uint32_t& cell : cells) cell = random() % 50;
        const size_t logit_stride = n + 3;
        std::vector<float> logits(heads * logit_stride);
        cpu::ScoreRows(query, k, cells.data(), n, logits.data(), logit_stride);
        const size_t stride = SoftmaxStateStride(value_dim);
        std::vector<float> by_rows(heads * stride);
        for (int g = 0; g < heads; ++g) ClearState(by_rows.data() + g * stride, value_dim);
        std::vector<float> by_logits = by_rows;
        cpu::AttendRows(query, k, v, cells.data(), n, by_rows.data(), stride);
        cpu::AttendScored(logits.data(), logit_stride, heads, v, cells.data(), n, by_logits.data(),
                          stride);
        ASSERT_EQ(by_rows, by_logits) << ElementTypeName(type) << " " << heads << " " << n;
      }
    }
  }
}

TACTIC_INSTANTIATE_FOR_ISAS(ScanKernels);

}  // namespace
}  // namespace tactic
