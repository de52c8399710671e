// What the machine delivers, and what each kernel makes of it: bare loops that multiply, bare loops
// that read, then every stage of attention alone, on data that fits L2, L3, or neither. Takes
// google-benchmark's options.
//
// Counters: bytes_per_second counts bytes that must be read, items_per_second keys, centroids or
// codes, products multiply-adds per second; `error` is the largest difference to the same in double
// precision, relative to the largest value (of code scans: root mean square error of a logit, which
// is the code's and not the arithmetic's; of assignments: the share of keys for which another
// centroid is nearer).
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "bench/roofline/arithmetic_loops.h"
#include "bench/roofline/data.h"
#include "bench/roofline/read_loops.h"
#include "src/attend.h"
#include "src/code_query.h"
#include "src/softmax_state.h"
#include "tactic/isa.h"
#include "tactic/options.h"

namespace tactic::bench {

static std::atomic<bool> failed = false;  // some stage computes something else

namespace {

using benchmark::State;

struct Size {
  const char* name;
  size_t bytes;
  bool shared;  // by the threads
  size_t PerThread(const State& state) const {
    return shared ? bytes / static_cast<size_t>(state.threads()) : bytes;
  }
};
constexpr Size kSizes[] = {{"L2", size_t{1} << 20, false},
                           {"L3", size_t{32} << 20, true},
                           {"memory", size_t{1} << 30, true}};

struct Model {
  const char* name;
  LayerShape shape;
};
// Of the models that the project measures: SmolLM2-135M and Llama-3-8B.
constexpr Model kModels[] = {{"d64", {9, 3, 64, 64}}, {"d128", {32, 8, 128, 128}}};

// `products`: multiply-adds of elements that the stage consists of; what turns keys into floats, or
// codes into bytes, and all that comes after is left out.
void Report(State& state, size_t bytes, size_t items, size_t products) {
  state.SetBytesProcessed(static_cast<int64_t>(bytes) * state.iterations());
  state.SetItemsProcessed(static_cast<int64_t>(items) * state.iterations());
  if (products == 0) return;
  // Not kIsIterationInvariantRate, which counts the iterations of all threads for each of them.
  state.counters["products"] =
      benchmark::Counter(static_cast<double>(products) * static_cast<double>(state.iterations()),
                         benchmark::Counter::kIsRate);
}

// Threads each measure the same; its mean is what is meant. More than `most`, or NaN, fails the
// run: what is fast and wrong is not worth a figure.
void ReportError(State& state, double error, double most = 1e-5) {
  state.counters["error"] = benchmark::Counter(error, benchmark::Counter::kAvgThreads);
  if (error <= most) return;
  failed = true;
  state.SkipWithError("the result is wrong");
}

// The largest difference to `exact`, relative to its largest value.
class Difference {
 public:
  void Add(double value, double exact) {
    difference_ = std::max(difference_, std::fabs(value - exact));
    largest_ = std::max(largest_, std::fabs(exact));
  }
  double Relative() const { return difference_ / largest_; }

 private:
  double difference_ = 0;
  double largest_ = 0;
};

double ExactLogit(const Cache& cache, int kv_head, int g, size_t cell) {
  const cpu::QueryHeads query = cache.Query();
  double dot = 0;
  for (int x = 0; x < cache.shape().head_dim; ++x) {
    dot += double{query.q[static_cast<size_t>(g) * query.stride + static_cast<size_t>(x)]} *
           cache.Key(kv_head, cell, x);
  }
  return dot * query.scale;
}

// Of one row, key or code with all queries of a group.
size_t GroupProducts(const LayerShape& shape) {
  return static_cast<size_t>(shape.group()) * static_cast<size_t>(shape.head_dim);
}

// Times f(kv_head, cells) for all KV heads, with another set of cells each time.
template <class F>
void OverSparseRows(State& state, const Cache& cache, size_t products_of_row, const F& f) {
  size_t turn = 0, rows = 0;
  for (auto _ : state) {
    for (int h = 0; h < cache.shape().kv_heads; ++h) {
      const auto cells = cache.Sparse(turn++);
      f(h, cells);
      rows += cells.size();
    }
  }
  rows /= static_cast<size_t>(state.iterations());
  Report(state, rows * cache.RowBytes(), rows, rows * products_of_row);
}

// --- bare loops ---

void Stream(State& state, const Size& size) {
  const std::vector<uint8_t> data(size.PerThread(state) / 512 * 512, 1);
  for (auto _ : state) benchmark::DoNotOptimize(ReadStream(data.data(), data.size()));
  Report(state, data.size(), 0, 0);
}

void Rows(State& state, const LayerShape& shape, const Size& size) {
  const Cache cache(shape, size.PerThread(state));
  OverSparseRows(state, cache, 0, [&](int h, std::span<const uint32_t> cells) {
    benchmark::DoNotOptimize(
        ReadRows(cache.Keys(h).data, cache.Stride(), cache.RowBytes(), cells.data(), cells.size()));
  });
}

void Multiply(State& state, size_t (*multiply)()) {
  size_t products = 0;
  for (auto _ : state) products = multiply();
  Report(state, 0, 0, products);
}

// --- stages ---

void ScoreRows(State& state, const LayerShape& shape, const Size& size) {
  const Cache cache(shape, size.PerThread(state));
  std::vector<float> scores(cache.cells() * static_cast<size_t>(shape.group()));
  OverSparseRows(state, cache, GroupProducts(shape), [&](int h, std::span<const uint32_t> cells) {
    cpu::ScoreRows(cache.Query(), cache.Keys(h), cells.data(), cells.size(), scores.data(),
                   cells.size());
  });

  const auto cells = cache.Sparse(0);
  cpu::ScoreRows(cache.Query(), cache.Keys(0), cells.data(), cells.size(), scores.data(),
                 cells.size());
  Difference error;
  for (int g = 0; g < shape.group(); ++g) {
    for (size_t i = 0; i < std::min<size_t>(256, cells.size()); ++i)
      error.Add(scores[static_cast<size_t>(g) * cells.size() + i],
                ExactLogit(cache, 0, g, cells[i]));
  }
  ReportError(state, error.Relative());
}

// Of the attention of KV head 0 over `cells`, for the states that result.
double AttentionError(const Cache& cache, std::span<const uint32_t> cells, const float* states,
                      size_t stride) {
  const LayerShape& shape = cache.shape();
  Difference error;
  for (int g = 0; g < shape.group(); ++g) {
    std::vector<double> out(static_cast<size_t>(shape.value_dim));
    double sum = 0;
    for (const uint32_t cell : cells) {
      const double weight = std::exp(ExactLogit(cache, 0, g, cell));
      sum += weight;
      for (int x = 0; x < shape.value_dim; ++x)
        out[static_cast<size_t>(x)] += weight * cache.Value(0, cell, x);
    }
    const float* state = states + static_cast<size_t>(g) * stride;
    for (int x = 0; x < shape.value_dim; ++x)
      error.Add(state[x] / StateSum(state, shape.value_dim), out[static_cast<size_t>(x)] / sum);
  }
  return error.Relative();
}

std::vector<float> EmptyStates(const LayerShape& shape) {
  const size_t stride = SoftmaxStateStride(shape.value_dim);
  std::vector<float> states(stride * static_cast<size_t>(shape.group()));
  for (int g = 0; g < shape.group(); ++g)
    ClearState(states.data() + static_cast<size_t>(g) * stride, shape.value_dim);
  return states;
}

// Attention over rows whose logits are known.
void AttendScored(State& state, const LayerShape& shape, const Size& size) {
  const Cache cache(shape, size.PerThread(state));
  const size_t stride = SoftmaxStateStride(shape.value_dim);
  std::vector<float> states = EmptyStates(shape);
  const std::vector<float> logits(cache.cells() * static_cast<size_t>(shape.group()));
  OverSparseRows(state, cache, GroupProducts(shape), [&](int h, std::span<const uint32_t> cells) {
    cpu::AttendScored(logits.data(), cells.size(), shape.group(), cache.Values(h), cells.data(),
                      cells.size(), states.data(), stride);
  });

  const auto cells = cache.Sparse(0).first(std::min<size_t>(256, cache.Sparse(0).size()));
  std::vector<float> scored(cells.size() * static_cast<size_t>(shape.group()));
  cpu::ScoreRows(cache.Query(), cache.Keys(0), cells.data(), cells.size(), scored.data(),
                 cells.size());
  states = EmptyStates(shape);
  cpu::AttendScored(scored.data(), cells.size(), shape.group(), cache.Values(0), cells.data(),
                    cells.size(), states.data(), stride);
  ReportError(state, AttentionError(cache, cells, states.data(), stride));
}

// All rows, block by block for all KV heads, as the library does it.
void AttendDense(State& state, const LayerShape& shape, const Size& size) {
  const Cache cache(shape, size.PerThread(state));
  const size_t stride = SoftmaxStateStride(shape.value_dim);
  std::vector<float> states = EmptyStates(shape);
  const size_t cells_together = CellBlock(2 * cache.Stride());
  for (auto _ : state) {
    for (auto cells = cache.All(); !cells.empty();) {
      const auto block = cells.first(std::min(cells_together, cells.size()));
      cells = cells.subspan(block.size());
      const bool more = cells.size() >= block.size();
      for (int h = 0; h < shape.kv_heads; ++h) {
        const size_t next = more ? cells.front() * cache.Stride() +
                                       static_cast<size_t>(h) * block.size() * cache.RowBytes()
                                 : 0;
        cpu::AttendRows(cache.Query(), cache.Keys(h), cache.Values(h), block.data(), block.size(),
                        states.data(), stride,
                        {more ? cache.Keys(0).data + next : nullptr,
                         more ? cache.Values(0).data + next : nullptr});
      }
    }
  }
  const size_t rows = cache.cells() * static_cast<size_t>(shape.kv_heads);
  Report(state, 2 * cache.cells() * cache.Stride(), rows, 2 * rows * GroupProducts(shape));

  const auto cells = cache.All().first(std::min<size_t>(256, cache.cells()));
  states = EmptyStates(shape);
  cpu::AttendRows(cache.Query(), cache.Keys(0), cache.Values(0), cells.data(), cells.size(),
                  states.data(), stride);
  ReportError(state, AttentionError(cache, cells, states.data(), stride));
}

// The queries of a group as centroids are scored with.
struct CentroidQueries {
  std::vector<std::vector<int32_t>> parts;
  std::vector<cpu::CentroidQuery> queries;

  CentroidQueries(const cpu::QueryHeads& heads, int dim) {
    for (int g = 0; g < heads.heads; ++g) {
      parts.emplace_back(dim / 2);
      queries.push_back(SplitQuery(heads.q + static_cast<size_t>(g) * heads.stride, dim,
                                   heads.scale, parts.back().data()));
    }
  }
};

void ScoreCentroids(State& state, const LayerShape& shape, const Size& size) {
  const Cache cache = CodedCache::Keys(shape);
  const CodedCache coded(cache, 2, 0);
  const Codes& codes = coded.clusters.codes;
  const size_t slots = codes.centroid_scales.size();
  const size_t segment = codes.centroids.size() + slots * sizeof(uint16_t);
  const size_t segments = std::max<size_t>(1, size.PerThread(state) / segment);
  std::vector<int8_t> centroids;
  std::vector<uint16_t> scales;
  for (size_t s = 0; s < segments; ++s) {
    centroids.insert(centroids.end(), codes.centroids.begin(), codes.centroids.end());
    scales.insert(scales.end(), codes.centroid_scales.begin(), codes.centroid_scales.end());
  }
  std::vector<float> scores(slots * static_cast<size_t>(shape.group()));
  const CentroidQueries queries(cache.Query(), shape.head_dim);
  for (auto _ : state) {
    for (size_t s = 0; s < segments; ++s) {
      cpu::ScoreByteCentroids(queries.queries.data(), shape.group(), shape.head_dim,
                              centroids.data() + s * codes.centroids.size(),
                              scales.data() + s * slots, static_cast<int>(slots), scores.data(),
                              slots);
    }
  }
  // A query is two parts of a byte each.
  Report(state, segments * segment, segments * slots, 2 * segments * slots * GroupProducts(shape));

  Difference error;
  const cpu::QueryHeads query = cache.Query();
  for (size_t g = 0; g < static_cast<size_t>(shape.group()); ++g) {
    for (size_t c = 0; c < slots; ++c) {
      double dot = 0;
      for (size_t x = 0; x < static_cast<size_t>(shape.head_dim); ++x)
        dot += double{query.q[g * query.stride + x]} * codes.centroids[CentroidAt(x, c, slots)];
      error.Add(scores[g * slots + c], dot * query.scale * HalfToFloat(codes.centroid_scales[c]));
    }
  }
  // The query is in units of a 4032nd of its largest element; sums of that many roundings, largest
  // against largest.
  ReportError(state, error.Relative(), 2.0 / (cpu::kHighPart * cpu::kSmallByte));
}

void ScanCodes(State& state, const LayerShape& shape, int bits, const Size& size) {
  constexpr size_t kKeys = CodedCache::kKeys;
  const Cache cache = CodedCache::Keys(shape);
  const CodedCache coded(cache, bits, size.PerThread(state));
  const Clusters& clusters = coded.clusters;
  const auto group = static_cast<size_t>(shape.group());
  const auto dim = static_cast<size_t>(shape.head_dim);
  const cpu::QueryHeads query = cache.Query();
  std::vector<cpu::CodeQuery> queries;
  std::vector<std::vector<int32_t>> packed(group, std::vector<int32_t>(dim));
  for (size_t g = 0; g < group; ++g) {
    float norm;
    queries.push_back(PackQuery(query.q + g * query.stride, shape.head_dim, query.scale,
                                packed[g].data(), &norm));
    queries.back().half_variance = kCodeBooks[bits].error * norm / 2;
    // An eighth of the keys go into bins.
    queries.back().floor = static_cast<uint32_t>((1.15f - cpu::kLowestKey) * cpu::kKeyLevels);
  }
  const size_t slots = clusters.codes.centroid_scales.size();
  std::vector<float> scores(slots * group);
  const CentroidQueries centroid_queries(query, shape.head_dim);
  cpu::ScoreByteCentroids(centroid_queries.queries.data(), shape.group(), shape.head_dim,
                          clusters.codes.centroids.data(), clusters.codes.centroid_scales.data(),
                          static_cast<int>(slots), scores.data(), slots);
  const std::vector<uint8_t> kept(slots, 1);
  std::vector<uint32_t> blocks(kKeys / kCodeBlock);
  for (size_t b = 0; b < blocks.size(); ++b) blocks[b] = static_cast<uint32_t>(b);
  constexpr size_t kStride = kKeys + kCodeBlock;
  std::vector<float> by_key(kStride * group);
  std::vector<cpu::KeyLevel> keys(kKeys * group);
  std::vector<float> sums(group);
  std::vector<cpu::MassBins> bins(group);
  const auto scan = [&](size_t segment) {
    for (size_t g = 0; g < group; ++g) {
      cpu::SpreadScores(clusters.starts.data(), kept.data(), clusters.count,
                        scores.data() + g * slots, by_key.data() + g * kStride);
    }
    cpu::ScanCodes({coded.planes.data() + segment * clusters.codes.planes.size(),
                    coded.scales.data() + segment * kKeys, bits, shape.head_dim},
                   queries.data(), shape.group(), 0, blocks.data(), blocks.size(), 0, by_key.data(),
                   kStride, keys.data(), kKeys, sums.data(), bins.data());
  };
  for (auto _ : state) {
    for (size_t s = 0; s < coded.segments; ++s) scan(s);
  }
  Report(state, coded.planes.size() + coded.scales.size(), coded.segments * kKeys,
         coded.segments * kKeys * GroupProducts(shape));

  scan(0);
  double squares = 0;
  for (size_t g = 0; g < group; ++g) {
    for (size_t i = 0; i < kKeys; ++i) {
      const float t = ByteToFloat(clusters.codes.scales[i]);
      const float half = std::min(t * t * queries[g].half_variance, cpu::kLargestHalfVariance);
      const double logit = cpu::kLowestKey + keys[g * kKeys + i] / cpu::kKeyLevels - half;
      squares += std::pow(logit - ExactLogit(cache, 0, static_cast<int>(g), i), 2);
    }
  }
  // Keys have the norm of a query: |error| = sqrt(relative error of the code), and then some.
  ReportError(state, std::sqrt(squares / static_cast<double>(group * kKeys)),
              1.5 * std::sqrt(kCodeBooks[bits].relative));
}

// One pass of K-means over a segment's keys, widened.
void AssignNearest(State& state, const LayerShape& shape) {
  constexpr size_t kKeys = 2048, kCentroids = 128;
  const auto dim = static_cast<size_t>(shape.head_dim);
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  std::vector<float> x(kKeys * dim), centroids(dim * kCentroids), half_norms(kCentroids);
  for (float& v : x) v = normal(random);
  for (float& v : centroids) v = normal(random);
  for (size_t i = 0; i < centroids.size(); ++i)
    half_norms[i % kCentroids] += centroids[i] * centroids[i] / 2;
  std::vector<uint16_t> labels(kKeys);
  for (auto _ : state) {
    cpu::AssignNearest(x.data(), kKeys, shape.head_dim, centroids.data(), half_norms.data(),
                       kCentroids, labels.data());
    benchmark::ClobberMemory();
  }
  Report(state, x.size() * sizeof(float), kKeys, kKeys * kCentroids * dim);
  double wrong = 0;
  for (size_t i = 0; i < kKeys; ++i) {
    const auto far = [&](size_t c) {
      double sum = half_norms[c];
      for (size_t k = 0; k < dim; ++k)
        sum -= double{x[i * dim + k]} * centroids[k * kCentroids + c];
      return sum;
    };
    double nearest = std::numeric_limits<double>::infinity();
    for (size_t c = 0; c < kCentroids; ++c) nearest = std::min(nearest, far(c));
    wrong += far(labels[i]) > nearest + 1e-4 ? 1 : 0;
  }
  ReportError(state, wrong / kKeys, 0);
}

// Both levels of a segment but for its clustering: centroids, codes, means.
void Encode(State& state, const LayerShape& shape, int bits) {
  const Cache cache = CodedCache::Keys(shape);
  for (auto _ : state) benchmark::DoNotOptimize(CodedCache(cache, bits, 0));
  Report(state, 2 * CodedCache::kKeys * cache.RowBytes(), CodedCache::kKeys, 0);
}

void Add(const std::string& name, const std::function<void(State&)>& run) {
  auto* added = benchmark::RegisterBenchmark(name.c_str(), run);
  added->UseRealTime()->Unit(benchmark::kMicrosecond)->Threads(1);
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  if (cores > 1) added->Threads(cores);
}

void AddAll() {
  Add("multiply_floats", [](State& s) { Multiply(s, MultiplyFloats); });
  Add("multiply_bytes", [](State& s) { Multiply(s, MultiplyBytes); });
  for (const Size& size : kSizes) {
    const std::string on = std::string("/") + size.name;
    Add("stream" + on, [&size](State& s) { Stream(s, size); });
    for (const Model& model : kModels) {
      const LayerShape& shape = model.shape;
      const std::string of = std::string("/") + model.name + on;
      Add("rows" + of, [&](State& s) { Rows(s, shape, size); });
      Add("score_rows" + of, [&](State& s) { ScoreRows(s, shape, size); });
      Add("attend_scored" + of, [&](State& s) { AttendScored(s, shape, size); });
      Add("attend_dense" + of, [&](State& s) { AttendDense(s, shape, size); });
      Add("score_centroids" + of, [&](State& s) { ScoreCentroids(s, shape, size); });
      for (int bits = kSmallestBits; bits <= kLargestBits; ++bits) {
        Add("scan_codes_" + std::to_string(bits) + of,
            [&, bits](State& s) { ScanCodes(s, shape, bits, size); });
      }
    }
  }
  for (const Model& model : kModels) {
    const LayerShape& shape = model.shape;
    Add(std::string("assign_nearest/") + model.name, [&](State& s) { AssignNearest(s, shape); });
    for (int bits = kSmallestBits; bits <= kLargestBits; ++bits) {
      Add("encode_" + std::to_string(bits) + "/" + model.name,
          [&, bits](State& s) { Encode(s, shape, bits); });
    }
  }
}

}  // namespace
}  // namespace tactic::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::AddCustomContext("isa", tactic::IsaName());
  tactic::bench::AddAll();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return tactic::bench::failed ? 1 : 0;
}
