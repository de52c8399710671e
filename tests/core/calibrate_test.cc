// Calibrate: its decisions on made-up times and clocks, its data, its errors. What it finds on this
// machine is nobody's business here.
#include "tactic/calibrate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "src/crossover.h"
#include "src/planted_layer.h"
#include "tests/core/rows.h"

namespace tactic {
namespace {

// Measures nothing: the mode takes `ratio` of dense's time at each length, and a length takes
// `cost` seconds per 1,000 tokens.
Calibration Find(const std::map<int64_t, double>& ratio, double cost = 0, int64_t last = 4096) {
  double time = 100;
  Calibration found;
  const Status status = FindCrossover({.first = 512,
                                       .last = last,
                                       .seconds = 1,
                                       .now = [&] { return time; },
                                       .measure =
                                           [&](CalibrationPoint* point) {
                                             const auto tokens = static_cast<double>(point->tokens);
                                             time += cost * tokens / 1000;
                                             point->dense = tokens;
                                             point->mode = tokens * ratio.at(point->tokens);
                                             return Status::Ok();
                                           }},
                                      &found);
  EXPECT_TRUE(status.ok());
  return found;
}

TEST(FindCrossover, IsWhereTheModeWinsFromThenOn) {
  const Calibration found = Find({{512, 2.0}, {1024, 1.2}, {2048, 0.9}, {4096, 0.8}});
  EXPECT_TRUE(found.found);
  EXPECT_EQ(found.tokens, 2048);
  EXPECT_EQ(found.points.size(), 4U);
  EXPECT_EQ(found.points[1].tokens, 1024);
}

TEST(FindCrossover, AWinThatIsLostAgainDoesNotCount) {
  EXPECT_EQ(Find({{512, 0.9}, {1024, 1.1}, {2048, 0.9}, {4096, 0.9}}).tokens, 2048);
  const Calibration lost = Find({{512, 0.9}, {1024, 0.9}, {2048, 0.9}, {4096, 1.1}});
  EXPECT_FALSE(lost.found);
  EXPECT_EQ(lost.tokens, 8192);
}

TEST(FindCrossover, WhereTheModeNeverWinsLongerSequencesAreDense) {
  const Calibration found = Find({{512, 3}, {1024, 2}, {2048, 1.5}, {4096, 1}});
  EXPECT_FALSE(found.found) << "a tie is dense's";
  EXPECT_EQ(found.tokens, 8192);
  const double nan = std::nan("");
  EXPECT_FALSE(Find({{512, nan}, {1024, nan}, {2048, nan}, {4096, nan}}).found);
}

TEST(FindCrossover, StopsOnceTheModeWinsClearly) {
  const Calibration found = Find({{512, 1.3}, {1024, 0.9}, {2048, 0.5}});
  EXPECT_EQ(found.tokens, 1024);
  EXPECT_EQ(found.points.size(), 3U);
}

TEST(FindCrossover, StartsNoLengthThatWouldNotBeDoneInTime) {
  const std::map<int64_t, double> slow = {{512, 2}, {1024, 1.5}, {2048, 1.1}, {4096, 1.05}};
  // 512 and 1024 take 0.46 s; 2048 would take 0.61 more.
  const Calibration some = Find(slow, 0.3);
  EXPECT_EQ(some.points.size(), 2U);
  EXPECT_EQ(some.tokens, 2048);
  EXPECT_FALSE(some.found);
  EXPECT_EQ(Find(slow, 1e6).points.size(), 1U) << "the shortest is always measured";
  EXPECT_EQ(Find(slow, 0.1).points.size(), 4U);
}

TEST(FindCrossover, PassesErrorsOn) {
  Calibration found;
  const Status status = FindCrossover(
      {512, 4096, 1, [] { return 0.0; }, [](CalibrationPoint*) { return Status::Internal("no"); }},
      &found);
  EXPECT_EQ(status.message(), "no");
}

// The fewest tokens with 90 % of a query head's mass, as a share of all.
double NeededShare(const PlantedLayer& layer, const LayerShape& shape, int64_t tokens, int query,
                   int q_head) {
  const RowsView keys = layer.keys();
  std::vector<double> mass;
  for (int64_t t = 0; t < tokens; ++t) {
    const uint8_t* key =
        keys.Head(q_head / shape.group()) + static_cast<size_t>(t) * keys.row_stride;
    double dot = 0;
    for (int x = 0; x < shape.head_dim; ++x) {
      uint16_t half;
      std::memcpy(&half, key + 2 * x, 2);
      dot += double{layer.Query(query)[q_head * shape.head_dim + x]} * HalfToFloat(half);
    }
    mass.push_back(dot * layer.scale());
  }
  std::sort(mass.begin(), mass.end(), std::greater<>());
  const double most = mass[0];
  for (double& m : mass) m = std::exp(m - most);
  const double all = std::accumulate(mass.begin(), mass.end(), 0.0);
  double sum = 0;
  size_t n = 0;
  while (sum < 0.9 * all) sum += mass[n++];
  return static_cast<double>(n) / static_cast<double>(tokens);
}

TEST(PlantedLayer, MassIsInFewTokensAndHowFewDiffers) {
  const LayerShape shape = {6, 2, 64, 32};
  constexpr int kQueries = 8;
  PlantedLayer layer(shape, ElementType::kF16, ElementType::kF16, 4096, kQueries);
  for (const int64_t tokens : {512, 4096}) {
    std::vector<double> needed;
    for (int h = 0; h < shape.kv_heads; ++h) layer.Grow(h, tokens);
    for (int query = 0; query < kQueries; ++query) {
      for (int h = 0; h < shape.q_heads; ++h)
        needed.push_back(NeededShare(layer, shape, tokens, query, h));
    }
    std::sort(needed.begin(), needed.end());
    const double mean =
        std::accumulate(needed.begin(), needed.end(), 0.0) / static_cast<double>(needed.size());
    EXPECT_GT(mean, 0.02) << tokens;
    EXPECT_LT(mean, 0.2) << tokens;
    EXPECT_GT(needed[needed.size() * 9 / 10], 3 * needed[needed.size() / 10]) << tokens;
  }
  for (const float norm : layer.QueryNorms()) EXPECT_GT(norm, 1);
}

class CalibrateTypes : public testing::TestWithParam<ElementType> {};

TEST_P(CalibrateTypes, MeasuresWhatItSaysInAnyType) {
  CalibrationRequest request = {{4, 2, 32, 32}, Options(), 2, GetParam(), GetParam(), 1e-9};
  for (const Mode mode : {Mode::kPaper, Mode::kTactic}) {
    request.options = Options::For(mode);
    Calibration found;
    const Status status = Calibrate(request, &found);
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_EQ(found.points.size(), 1U) << "there was no time for more";
    EXPECT_EQ(found.points[0].tokens, mode == Mode::kPaper ? 1024 : kShortestCalibrated);
    EXPECT_GT(found.points[0].dense, 0);
    EXPECT_GT(found.points[0].mode, 0);
    EXPECT_EQ(found.tokens, (found.found ? 1 : 2) * found.points[0].tokens);
  }
}

INSTANTIATE_TEST_SUITE_P(All, CalibrateTypes, testing::ValuesIn(kAllTypes),
                         [](const auto& info) { return std::string(ElementTypeName(info.param)); });

TEST(Calibrate, ErrorsNameWhatIsWrong) {
  const CalibrationRequest good = {{4, 2, 40, 64}, Options(), 1};
  const auto message = [&](const auto& change) {
    CalibrationRequest request = good;
    change(&request);
    Calibration found;
    const Status status = Calibrate(request, &found);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  };
  using Request = CalibrationRequest;
  const std::pair<const char*, std::string> cases[] = {
      {"mode is dense", message([](Request* r) { r->options.mode = Mode::kDense; })},
      {"target", message([](Request* r) { r->options.target = 2; })},
      {"head_dim", message([](Request* r) { r->shape.head_dim = 3; })},
      {"threads is 0", message([](Request* r) { r->threads = 0; })},
      {"seconds", message([](Request* r) { r->seconds = 0; })},
      {"keys have 40", message([](Request* r) { r->key_type = ElementType::kQ8_0; })},
  };
  for (const auto& [part, text] : cases) EXPECT_NE(text.find(part), std::string::npos) << text;
}

}  // namespace
}  // namespace tactic
