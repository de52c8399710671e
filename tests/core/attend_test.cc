// The kernels of src/cpu/attend-inl.h (logits, attention, exponentials) and LoadRows on every
// instruction set against the oracle: all element types, sizes, group sizes and row counts.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "src/cpu/kernels.h"
#include "src/reference/oracle.h"
#include "src/softmax_state.h"
#include "tests/core/isa_param.h"
#include "tests/core/rows.h"
#include "tests/core/tolerance.h"

namespace tactic {
namespace {

constexpr int kDims[] = {8, 64, 72, 80, 96, 128, 256, 512};
constexpr int kGroups[] = {1, 2, 3, 4, 5, 8, 9, 32};
constexpr size_t kCounts[] = {0, 1, 3, 63, 64, 65, 200};
constexpr int kCells = 37;
constexpr float kInf = std::numeric_limits<float>::infinity();

// Rows of one head among two, scattered with an odd stride, and queries.
struct Data {
  Rows rows;
  std::vector<std::vector<double>> decoded;  // [cell][dim]

  Data(ElementType type, int dim, std::mt19937& random) : rows(type, dim, 2, kCells, 3) {
    for (int c = 0; c < kCells; ++c) {
      rows.Set(c, 1, RandomRow(dim, random));  // head 0 stays NaN
      decoded.push_back(rows.Get(c, 1));
    }
  }
  cpu::HeadRows Head() const {
    const RowsView view = rows.View();
    return {view.Head(1), view.row_stride, view.type, rows.dim()};
  }
};

struct Queries {
  size_t stride;
  std::vector<float> q;  // ends with the last query
  std::vector<oracle::Row> decoded;

  Queries(int heads, int dim, std::mt19937& random)
      : stride(static_cast<size_t>(dim) + 5), q((heads - 1) * stride + dim, std::nanf("")) {
    for (int g = 0; g < heads; ++g) {
      const std::vector<float> row = RandomRow(dim, random);
      std::copy(row.begin(), row.end(), q.begin() + g * static_cast<ptrdiff_t>(stride));
      decoded.push_back(ToDouble(row));
    }
  }
};

// The last cell is among them whenever there is a cell at all: reads past it must show.
std::vector<uint32_t> ScatteredCells(size_t n, std::mt19937& random) {
  std::vector<uint32_t> cells;
  for (size_t i = 0; i < n; ++i) cells.push_back(i == n / 2 ? kCells - 1 : random() % kCells);
  return cells;
}

using Kernels = IsaTest;

TEST_P(Kernels, LoadRowsDecodesExactly) {
  std::mt19937 random(1);
  for (ElementType type : kAllTypes) {
    for (int dim : kDims) {
      if (!Legal(type, dim)) continue;
      const Data data(type, dim, random);
      const std::vector<uint32_t> cells = ScatteredCells(9, random);
      std::vector<float> out(cells.size() * dim);
      cpu::LoadRows(data.Head(), cells.data(), cells.size(), out.data());
      for (size_t i = 0; i < out.size(); ++i) {
        ASSERT_EQ(out[i], data.decoded[cells[i / dim]][i % dim]) << ElementTypeName(type) << dim;
      }
    }
  }
}

// Every half there is, as a row element and as the scale of a block.
TEST_P(Kernels, LoadRowsKeepsInfinitiesNansAndSubnormals) {
  const uint32_t cell = 0;
  for (uint32_t first = 0; first <= 0xFFFF; first += 8) {
    uint16_t bits[8];
    for (uint32_t i = 0; i < 8; ++i) bits[i] = static_cast<uint16_t>(first + i);
    float out[32];
    cpu::LoadRows({reinterpret_cast<const uint8_t*>(bits), 16, ElementType::kF16, 8}, &cell, 1,
                  out);
    for (int i = 0; i < 8; ++i) {
      const float want = HalfToFloat(bits[i]);
      ASSERT_TRUE(out[i] == want || (std::isnan(out[i]) && std::isnan(want))) << bits[i];
    }
    uint8_t block[kQ8BlockBytes] = {};
    Put(block, bits[0]);
    block[2 + 9] = 1;
    cpu::LoadRows({block, sizeof(block), ElementType::kQ8_0, kQuantBlock}, &cell, 1, out);
    const float want = HalfToFloat(bits[0]);
    ASSERT_TRUE(out[9] == want || (std::isnan(out[9]) && std::isnan(want))) << bits[0];
  }
}

TEST_P(Kernels, ScoreRowsGivesLogits) {
  std::mt19937 random(2);
  for (ElementType type : kAllTypes) {
    for (int dim : kDims) {
      if (!Legal(type, dim)) continue;
      const Data data(type, dim, random);
      const Queries queries(32, dim, random);
      const auto scale = static_cast<float>(1 / std::sqrt(dim));
      for (float softcap : {0.0f, 1.5f}) {
        std::vector<std::vector<tolerance::Bounded>> logits(32);
        for (int g = 0; g < 32; ++g) {
          for (int c = 0; c < kCells; ++c) {
            logits[g].push_back(tolerance::Logit(queries.decoded[g], data.decoded[c], scale,
                                                 softcap, KernelLanes(dim)));
          }
        }
        for (int group : kGroups) {
          const cpu::QueryHeads query = {queries.q.data(), queries.stride, group, scale, softcap};
          for (size_t n : kCounts) {
            const std::vector<uint32_t> cells = ScatteredCells(n, random);
            const size_t stride = n + 3;
            std::vector<float> scores((group - 1) * stride + n);
            cpu::ScoreRows(query, data.Head(), cells.data(), n, scores.data(), stride);
            for (int g = 0; g < group; ++g) {
              for (size_t i = 0; i < n; ++i) {
                const tolerance::Bounded& want = logits[g][cells[i]];
                ASSERT_NEAR(scores[g * stride + i], want.value, want.error)
                    << ElementTypeName(type) << " dim " << dim << " group " << group << " n " << n
                    << " row " << i;
              }
            }
          }
        }
      }
    }
  }
}

// One combination of sizes, attended in two calls so that the running state is used.
void ExpectAttention(const Data& keys, const Data& values, int group, float softcap, int lanes,
                     std::mt19937& random) {
  const int dim = keys.rows.dim();
  const int value_dim = values.rows.dim();
  const auto scale = static_cast<float>(2 / std::sqrt(dim));
  const Queries queries(group, dim, random);
  const cpu::QueryHeads query = {queries.q.data(), queries.stride, group, scale, softcap};
  const size_t stride = SoftmaxStateStride(value_dim);
  for (size_t n : kCounts) {
    const std::vector<uint32_t> cells = ScatteredCells(n, random);
    const std::vector<int64_t> rows(cells.begin(), cells.end());
    std::vector<float> states((group - 1) * stride + value_dim + 2);
    for (int g = 0; g < group; ++g) ClearState(states.data() + g * stride, value_dim);
    const size_t first = n == 0 ? 0 : random() % n;
    cpu::AttendRows(query, keys.Head(), values.Head(), cells.data(), first, states.data(), stride);
    cpu::AttendRows(query, keys.Head(), values.Head(), cells.data() + first, n - first,
                    states.data(), stride);
    for (int g = 0; g < group; ++g) {
      const float* state = states.data() + g * stride;
      const tolerance::BoundedAttention want = tolerance::Attend(
          queries.decoded[g], keys.decoded, values.decoded, rows, scale, softcap, lanes, 1);
      ASSERT_EQ(StateEmpty(state, value_dim), n == 0);
      if (n == 0) continue;
      const float sum = StateSum(state, value_dim);
      ASSERT_NEAR(StateMax(state, value_dim) + std::log(sum), want.lse.value, want.lse.error);
      for (int x = 0; x < value_dim; ++x) {
        ASSERT_NEAR(state[x] / sum, want.out[x].value, want.out[x].error)
            << ElementTypeName(keys.rows.type()) << "/" << ElementTypeName(values.rows.type())
            << " dims " << dim << "/" << value_dim << " group " << group << " n " << n
            << " softcap " << softcap << " column " << x;
      }
    }
  }
}

// Every pair of element types at every head_dim; the other sizes take turns.
TEST_P(Kernels, AttendRowsIsSoftmaxAttention) {
  std::mt19937 random(3);
  size_t turn = 0;
  for (ElementType key_type : kAllTypes) {
    for (ElementType value_type : kAllTypes) {
      for (int dim : kDims) {
        if (!Legal(key_type, dim)) continue;
        int value_dim = 0;
        do {
          value_dim = kDims[++turn % std::size(kDims)];
        } while (!Legal(value_type, value_dim));
        const Data keys(key_type, dim, random);
        const Data values(value_type, value_dim, random);
        const int group = kGroups[turn / 3 % std::size(kGroups)];
        ExpectAttention(keys, values, group, turn % 2 == 0 ? 0 : 2.5f, KernelLanes(dim), random);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(Kernels, ExpShiftedHasFourUlp) {
  std::mt19937 random(4);
  std::uniform_real_distribution<float> uniform(-110, 0);
  for (size_t n :
       {size_t{0}, size_t{1}, size_t{3}, size_t{15}, size_t{16}, size_t{17}, size_t{500}}) {
    std::vector<float> x;
    for (size_t i = 0; i < n; ++i) x.push_back(i == 0 ? 0 : uniform(random));
    const float shift = 3.25f;
    for (float& v : x) v += shift;
    std::vector<float> out = x;
    cpu::ExpShifted(out.data(), n, shift);
    for (size_t i = 0; i < n; ++i) {
      const double want = std::exp(static_cast<double>(x[i]) - shift);
      const double error = want * tolerance::Weight({x[i], 0}, shift) + tolerance::kSmallestNormal;
      ASSERT_NEAR(out[i], want, error) << x[i];
    }
  }
  float lost[2] = {-kInf, 0};
  cpu::ExpShifted(lost, 2, 0);
  EXPECT_EQ(lost[0], 0);
  EXPECT_EQ(lost[1], 1);
}

// --- rows that are not finite -----------------------------------------------------------------

// Attention of one query over f32 keys {first components} with values 1, 2, 3, ...
struct Probe {
  float out;
  bool empty;
};
Probe AttendTo(const std::vector<float>& logits) {
  constexpr int kDim = 8;
  Rows keys(ElementType::kF32, kDim, 1, static_cast<int>(logits.size()));
  Rows values(ElementType::kF32, kDim, 1, static_cast<int>(logits.size()));
  std::vector<uint32_t> cells;
  for (size_t i = 0; i < logits.size(); ++i) {
    std::vector<float> key(kDim, 0.0f);
    key[0] = logits[i];
    keys.Set(static_cast<int64_t>(i), 0, key);
    values.Set(static_cast<int64_t>(i), 0, std::vector<float>(kDim, static_cast<float>(i + 1)));
    cells.push_back(static_cast<uint32_t>(i));
  }
  const std::vector<float> q(kDim, 1.0f);
  const RowsView k = keys.View();
  const RowsView v = values.View();
  std::vector<float> state(SoftmaxStateStride(kDim));
  ClearState(state.data(), kDim);
  cpu::AttendRows({q.data(), kDim, 1, 1.0f, 0.0f}, {k.data, k.row_stride, k.type, kDim},
                  {v.data, v.row_stride, v.type, kDim}, cells.data(), cells.size(), state.data(),
                  state.size());
  // As a decode step does: into a total that other rows started.
  std::vector<float> total(SoftmaxStateStride(kDim));
  ClearState(total.data(), kDim);
  MergeState(state.data(), kDim, total.data());
  return {total[0] / StateSum(total.data(), kDim), StateEmpty(total.data(), kDim)};
}

TEST_P(Kernels, ANanLogitPoisonsTheOutputWhereverItStands) {
  for (size_t n :
       {size_t{1}, size_t{2}, size_t{16}, size_t{17}, size_t{64}, size_t{65}, size_t{130}}) {
    for (float bad : {std::nanf(""), -std::nanf(""), kInf}) {
      for (size_t at = 0; at < n; ++at) {
        std::vector<float> logits(n, 0.5f);
        logits[at] = bad;
        const Probe probe = AttendTo(logits);
        ASSERT_FALSE(probe.empty) << n << " " << at;
        ASSERT_TRUE(std::isnan(probe.out)) << n << " " << at << " " << bad;
      }
    }
    ASSERT_TRUE(std::isnan(AttendTo(std::vector<float>(n, std::nanf(""))).out)) << n;
  }
}

TEST_P(Kernels, ALogitOfMinusInfinityHasNoWeight) {
  for (size_t n : {size_t{2}, size_t{17}, size_t{65}, size_t{130}}) {
    for (size_t at = 0; at < n; ++at) {
      std::vector<float> logits(n, -kInf);
      logits[at] = 3.0f;
      ASSERT_EQ(AttendTo(logits).out, static_cast<float>(at + 1)) << n;
    }
  }
  EXPECT_TRUE(AttendTo(std::vector<float>(70, -kInf)).empty);
}

TEST_P(Kernels, LogitsFarApartDoNotOverflow) {
  EXPECT_EQ(AttendTo({-3e38f, 3e38f}).out, 2);
  EXPECT_EQ(AttendTo({3e38f, -3e38f}).out, 1);
  std::vector<float> rising(200);
  for (size_t i = 0; i < rising.size(); ++i) rising[i] = static_cast<float>(i) * 1e36f;
  EXPECT_EQ(AttendTo(rising).out, 200);
}

TACTIC_INSTANTIATE_FOR_ISAS(Kernels);

}  // namespace
}  // namespace tactic
