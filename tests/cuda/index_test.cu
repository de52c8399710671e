// Index: clusters, codes and means against the specification, and growing and shrinking.
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/cuda/check.h"
#include "tests/cuda/index_judge.h"
#include "tests/cuda/index_world.h"

namespace tactic::cuda {
namespace {

constexpr int kSkipped = 77;  // what CTest takes for a skipped test

Options TestOptions(int segment_size, int cluster_size, int bits, int sinks) {
  Options options = bits == 0 ? OptionsFor(Mode::kPaper) : OptionsFor(Mode::kTactic);
  options.segment_size = segment_size;
  options.cluster_size = cluster_size;
  if (bits != 0) options.bits = bits;
  options.sinks = sinks;
  return options;
}

std::unique_ptr<Index> MakeIndex(const CachedLayer& layer, const Options& options) {
  const LayerSpec& spec = layer.spec();
  std::unique_ptr<Index> index;
  CHECK_OK(Index::Create({spec.kv_heads, spec.kv_heads, spec.head_dim, spec.head_dim}, options,
                         spec.positions, &index));
  return index;
}

HeadRows RowsOf(const CachedLayer& layer, int head) {
  return {layer.Keys(head), layer.Values(head)};
}

std::string NameOf(const LayerSpec& spec, const Options& options) {
  const char* type = spec.type == Element::kBF16  ? "bf16"
                     : spec.type == Element::kF16 ? "f16"
                                                  : "e4m3";
  return std::string(type) + " dim " + std::to_string(spec.head_dim) + " bits " +
         std::to_string(options.mode == Mode::kPaper ? 0 : options.bits) + " segment " +
         std::to_string(options.segment_size) + " page " + std::to_string(spec.page_size) +
         " sinks " + std::to_string(options.sinks);
}

// Sum of squared distances to the mean of each cluster.
double Objective(const oracle::Rows& keys, const std::vector<std::vector<int64_t>>& clusters) {
  double sum = 0;
  for (const auto& members : clusters) {
    if (members.empty()) continue;
    for (size_t x = 0; x < keys[0].size(); ++x) {
      double mean = 0;
      for (int64_t p : members) mean += keys[p][x] / static_cast<double>(members.size());
      for (int64_t p : members) sum += (keys[p][x] - mean) * (keys[p][x] - mean);
    }
  }
  return sum;
}

// K-means of segment `segment` against the oracle's, from the same start. Returns the ratio of
// objectives.
double CompareClusters(const IndexJudge& judge, const Stored& stored, const Options& options,
                       const oracle::Rows& keys, int head, int segment) {
  const int64_t end = int64_t{segment + 1} * options.segment_size;
  const int64_t first = std::max<int64_t>(end - options.segment_size, options.sinks);
  const int64_t n = end - first;
  const int64_t count = std::max<int64_t>(1, (n + options.cluster_size / 2) / options.cluster_size);
  std::vector<uint32_t> initial;
  for (int64_t c = 0; c < count; ++c)
    initial.push_back(static_cast<uint32_t>((2 * c + 1) * n / (2 * count)));
  std::vector<std::vector<int64_t>> expected;
  for (const auto& cluster : oracle::KMeans(keys, first, end, initial, options.kmeans_iterations))
    expected.push_back(cluster.members);
  std::vector<std::vector<int64_t>> got;
  for (int c = 0; c < stored.view.slots; ++c) got.push_back(judge.Members(head, segment, c));
  const double ratio = Objective(keys, got) / Objective(keys, expected);
  CHECK(ratio < 1.02, "head %d segment %d: %g of the oracle's objective", head, segment, ratio);
  return ratio;
}

// Builds, judges everything, prints a line.
void Judge(CachedLayer& layer, const Options& options, Stream stream, int stride, int compared) {
  const KvCache cache = layer.Upload();
  auto index = MakeIndex(layer, options);
  CHECK_OK(index->Append(cache, layer.spec().sequence, layer.spec().positions, stream));
  const Stored stored = Read(*index, stream);
  IndexJudge judge(stored, stride);
  double worst = 0;
  for (int head = 0; head < layer.spec().kv_heads; ++head) {
    const HeadRows rows = RowsOf(layer, head);
    CHECK(stored.view.unfit[head] == 0, "head %d", head);
    judge.JudgeHead(head, rows);
    for (int segment = 0; segment < std::min(compared, stored.view.closed); ++segment) {
      worst = std::max(worst, CompareClusters(judge, stored, options, rows.keys, head, segment));
    }
  }
  const int64_t end = layer.spec().positions - options.recent;
  CHECK(stored.view.closed == end / options.segment_size, "%d closed", stored.view.closed);
  CHECK(stored.view.pages ==
            (options.mode == Mode::kPaper ? 0 : end % options.segment_size / Options::kPage),
        "%d pages", stored.view.pages);
  std::printf("%-58s objective %.4f, %ld of %ld levels close\n",
              NameOf(layer.spec(), options).c_str(), worst, judge.close(), judge.elements());
}

void TestShapes(Stream stream) {
  constexpr int kPages[] = {0, 1, 16, 64, 256};
  int number = 0;
  for (const int dim : {64, 96, 128, 256}) {
    for (const Element type : {Element::kF16, Element::kBF16, Element::kE4M3}) {
      for (const int bits : {2, 3, 4, 0}) {
        LayerSpec spec;
        spec.type = type;
        spec.head_dim = dim;
        spec.page_size = kPages[number % 5];
        spec.heads_first = number % 2 == 1;
        spec.sequence = number % 3;
        const Options options = TestOptions(256, 16, bits, number % 3 == 0 ? 0 : 4);
        spec.positions = 2 * 256 + 3 * Options::kPage + options.recent + 7;
        CachedLayer layer(spec, 100 + number);
        layer.Fill();
        Judge(layer, options, stream, dim == 256 ? 3 : 1, 2);
        ++number;
      }
    }
  }
}

void TestSegments(Stream stream) {
  struct Case {
    int segment_size, cluster_size, sinks, dim;
  };
  for (const Case& c : {Case{2048, 32, 4, 128}, Case{2048, 8, 0, 64}, Case{4096, 32, 40, 96},
                        Case{8192, 32, 4, 128}, Case{8192, 32, 0, 64}}) {
    LayerSpec spec;
    spec.kv_heads = 1;
    spec.head_dim = c.dim;
    spec.page_size = 16;
    const Options options = TestOptions(c.segment_size, c.cluster_size, 2, c.sinks);
    spec.positions = c.segment_size + 2 * Options::kPage + options.recent;
    CachedLayer layer(spec, 7);
    layer.Fill();
    Judge(layer, options, stream, 29, c.segment_size <= 2048 ? 1 : 0);
  }
}

// Keys whose clusters are degenerate.
void TestAdversarial(Stream stream) {
  constexpr int kSegment = 256;
  constexpr int kSegments = 4;
  LayerSpec spec;
  spec.positions = kSegments * kSegment + 64;
  spec.kv_heads = 4;
  const Options options = TestOptions(kSegment, 16, 3, 4);
  CachedLayer layer(spec, 3);
  layer.Fill();
  for (int64_t p = 0; p < spec.positions; ++p) {
    for (int x = 0; x < spec.head_dim; ++x) {
      layer.Key(0, p)[x] = 0.3f * static_cast<float>(x % 5);  // all equal
      layer.Key(1, p)[x] = 0;                                 // nothing
      layer.Value(1, p)[x] = 0;
      if (p % 100 == 50) layer.Key(2, p)[x] *= 1000;                         // some huge
      if (p % 16 != 3) layer.Key(3, p)[x] = 1 + 0.01f * layer.Key(3, p)[x];  // one large cluster
    }
  }
  Judge(layer, options, stream, 1, 0);
}

// A head with a key or value that has no code is unfit, the others are not.
void TestUnfit(Stream stream) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Element type : {Element::kF16, Element::kBF16, Element::kE4M3}) {
    for (const bool page : {false, true}) {
      LayerSpec spec;
      spec.type = type;
      spec.kv_heads = 4;
      spec.positions = 256 + 2 * Options::kPage + 64;
      const Options options = TestOptions(256, 16, 2, 4);
      CachedLayer layer(spec, 5);
      layer.Fill();
      const int64_t at = page ? 256 + 40 : 77;
      layer.Key(0, at)[3] = nan;
      layer.Value(2, at)[50] = nan;
      const bool fp8 = type == Element::kE4M3;
      if (!fp8) layer.Key(3, at)[9] = type == Element::kF16 ? infinity : 1e30f;
      const KvCache cache = layer.Upload();
      auto index = MakeIndex(layer, options);
      CHECK_OK(index->Append(cache, 0, spec.positions, stream));
      const Stored stored = Read(*index, stream);
      const int expected[] = {1, 0, 1, fp8 ? 0 : 1};
      for (int head = 0; head < spec.kv_heads; ++head)
        CHECK(stored.view.unfit[head] == expected[head], "head %d", head);
      IndexJudge judge(stored, 8);
      judge.JudgeHead(1, RowsOf(layer, 1));
      CHECK_OK(index->Truncate(0, stream));
      CHECK(Read(*index, stream).view.unfit[0] == 0, "an empty index");
    }
  }
  std::printf("unfit keys and values\n");
}

template <class T>
bool Same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

void CheckSame(const Stored& a, const Stored& b, const char* what) {
  CHECK(a.view.closed == b.view.closed && a.view.pages == b.view.pages, "%s: %d+%d, %d+%d", what,
        a.view.closed, a.view.pages, b.view.closed, b.view.pages);
  CHECK(Same(a.centroids, b.centroids), "%s", what);
  CHECK(Same(a.facts, b.facts), "%s", what);
  CHECK(Same(a.starts, b.starts), "%s", what);
  CHECK(Same(a.members, b.members), "%s", what);
  CHECK(Same(a.key_scales, b.key_scales), "%s", what);
  CHECK(Same(a.codes, b.codes), "%s", what);
  CHECK(Same(a.means, b.means), "%s", what);
  CHECK(Same(a.mean_scales, b.mean_scales), "%s", what);
  CHECK(Same(a.errors, b.errors), "%s", what);
}

// What is indexed is a function of the sequence, however it came about.
void TestGrowth(Stream stream) {
  for (const int bits : {0, 2, 3, 4}) {
    LayerSpec spec;
    spec.head_dim = 96;
    spec.page_size = 16;
    spec.sequence = 1;
    const Options options = TestOptions(256, 16, bits, 4);
    spec.positions = 3 * 256 + 5 * Options::kPage + options.recent;
    CachedLayer layer(spec, 11);
    layer.Fill();
    const KvCache cache = layer.Upload();
    const auto fresh = [&](int64_t n) {
      auto index = MakeIndex(layer, options);
      CHECK_OK(index->Append(cache, spec.sequence, n, stream));
      CHECK(index->size() == n, "%d", static_cast<int>(n));
      return Read(*index, stream);
    };
    const Stored once = fresh(spec.positions);
    auto steps = MakeIndex(layer, options);
    for (int64_t n = 0; n < spec.positions; n += 37)
      CHECK_OK(steps->Append(cache, spec.sequence, n, stream));
    CHECK_OK(steps->Append(cache, spec.sequence, spec.positions, stream));
    CheckSame(Read(*steps, stream), once, "in steps");
    auto twice = MakeIndex(layer, options);
    CHECK_OK(twice->Append(cache, spec.sequence, 300, stream));
    CHECK_OK(twice->Append(cache, spec.sequence, spec.positions, stream));
    CheckSame(Read(*twice, stream), once, "in two steps");

    // Into a closed segment, and back.
    CHECK_OK(twice->Truncate(2 * 256 + 10, stream));
    Stored cut = Read(*twice, stream);
    CHECK(cut.view.closed == 2 && cut.view.pages == 0, "%d+%d", cut.view.closed, cut.view.pages);
    CHECK_OK(twice->Append(cache, spec.sequence, spec.positions, stream));
    CheckSame(Read(*twice, stream), once, "after Truncate");
    // Into a page.
    const int64_t kept = 3 * 256 + 2 * Options::kPage + 9;
    CHECK_OK(twice->Truncate(kept, stream));
    cut = Read(*twice, stream);
    CHECK(cut.view.closed == 3 && cut.view.pages == (bits == 0 ? 0 : 2), "%d+%d", cut.view.closed,
          cut.view.pages);
    if (bits != 0) {
      const Stored less = fresh(kept + options.recent);
      for (int head = 0; head < spec.kv_heads; ++head) {
        const size_t slot = cut.At(head, 3, cut.view.slots + 1) + cut.view.slots;
        CHECK(std::memcmp(&cut.means[slot * spec.head_dim], &less.means[slot * spec.head_dim],
                          spec.head_dim) == 0 &&
                  cut.mean_scales[slot] == less.mean_scales[slot],
              "head %d", head);
      }
    }
    CHECK_OK(twice->Append(cache, spec.sequence, kept + 1, stream));
    CHECK(Read(*twice, stream).view.pages == cut.view.pages, "%d", cut.view.pages);
    CHECK_OK(twice->Append(cache, spec.sequence, spec.positions, stream));
    CheckSame(Read(*twice, stream), once, "after Truncate to a page");
    CHECK_OK(twice->Truncate(0, stream));
    CHECK_OK(twice->Append(cache, spec.sequence, spec.positions, stream));
    CheckSame(Read(*twice, stream), once, "after Truncate to nothing");
    std::printf("growing and shrinking, bits %d\n", bits);
  }
}

// A converged clustering: no key is nearer to another cluster than to its own.
void TestConverged(Stream stream) {
  LayerSpec spec;
  spec.type = Element::kF16;
  spec.kv_heads = 1;
  spec.positions = 2048 + 64;
  Options options = TestOptions(2048, 32, 2, 0);
  options.kmeans_iterations = 200;
  CachedLayer layer(spec, 13);
  layer.Fill();
  const KvCache cache = layer.Upload();
  auto index = MakeIndex(layer, options);
  CHECK_OK(index->Append(cache, 0, spec.positions, stream));
  const Stored stored = Read(*index, stream);
  const IndexJudge judge(stored, 1);
  const oracle::Rows keys = layer.Keys(0);
  oracle::Rows means;
  std::vector<size_t> own(2048);
  for (int c = 0; c < stored.view.slots; ++c) {
    const auto members = judge.Members(0, 0, c);
    if (members.empty()) continue;
    means.emplace_back(spec.head_dim, 0.0);
    for (int64_t p : members) {
      own[p] = means.size() - 1;
      for (int x = 0; x < spec.head_dim; ++x)
        means.back()[x] += keys[p][x] / static_cast<double>(members.size());
    }
  }
  const auto distance = [&](size_t p, size_t c) {
    double sum = 0;
    for (int x = 0; x < spec.head_dim; ++x)
      sum += (keys[p][x] - means[c][x]) * (keys[p][x] - means[c][x]);
    return sum;
  };
  double worst = 1;
  for (size_t p = 0; p < own.size(); ++p) {
    for (size_t c = 0; c < means.size(); ++c)
      worst = std::max(worst, distance(p, own[p]) / distance(p, c));
  }
  CHECK(worst < 1.01, "%g", worst);  // centroids are rounded to 11 bits
  std::printf("converged: no key is nearer to another cluster by more than %.5f\n", worst);
}

void TestErrors(Stream stream) {
  LayerSpec spec;
  spec.positions = 512;
  CachedLayer layer(spec, 17);
  const KvCache cache = layer.Upload();
  const Options options = TestOptions(256, 16, 2, 4);
  auto index = MakeIndex(layer, options);
  const auto code = [](const Status& status) { return status.code(); };
  CHECK(code(index->Append(cache, 0, 513, stream)) == StatusCode::kOutOfRange, "too long");
  CHECK_OK(index->Append(cache, 0, 400, stream));
  CHECK(code(index->Append(cache, 0, 399, stream)) == StatusCode::kOutOfRange, "shorter");
  CHECK(code(index->Truncate(401, stream)) == StatusCode::kOutOfRange, "longer");
  CHECK(code(index->Append(cache, -1, 401, stream)) == StatusCode::kInvalidArgument, "sequence");
  KvCache bad = cache;
  bad.row_stride = 100;
  CHECK(code(index->Append(bad, 0, 401, stream)) == StatusCode::kInvalidArgument, "row_stride");
  bad = cache;
  bad.type = Element::kF32;
  CHECK(code(index->Append(bad, 0, 401, stream)) == StatusCode::kInvalidArgument, "type");
  std::unique_ptr<Index> none;
  Options odd = options;
  odd.segment_size = 300;
  CHECK(!Index::Create({2, 2, 128, 128}, odd, 1000, &none).ok(), "segment_size");
  CHECK(!Index::Create({2, 2, 80, 80}, options, 1000, &none).ok(), "head_dim");
  CHECK(!Index::Create({2, 2, 128, 128}, options, 0, &none).ok(), "max_tokens");
  std::printf("errors\n");
}

// Clustering and coding, the whole of it; `positions` of bf16 in 8 heads of 128.
void Time(int64_t positions, Stream stream) {
  LayerSpec spec;
  spec.kv_heads = 8;
  spec.positions = positions;
  CachedLayer layer(spec, 19);
  layer.Fill();
  const KvCache cache = layer.Upload();
  const Options options = OptionsFor(Mode::kTactic);
  auto index = MakeIndex(layer, options);
  cudaEvent_t begin, end;
  CHECK_CUDA(cudaEventCreate(&begin));
  CHECK_CUDA(cudaEventCreate(&end));
  float best = 1e9;
  for (int i = 0; i < 6; ++i) {
    CHECK_OK(index->Truncate(0, stream));
    CHECK_CUDA(cudaEventRecord(begin, stream));
    CHECK_OK(index->Append(cache, 0, positions, stream));
    CHECK_CUDA(cudaEventRecord(end, stream));
    CHECK_CUDA(cudaEventSynchronize(end));
    float took;
    CHECK_CUDA(cudaEventElapsedTime(&took, begin, end));
    best = std::min(best, took);
  }
  CHECK_CUDA(cudaEventDestroy(begin));
  CHECK_CUDA(cudaEventDestroy(end));
  std::printf("%ld positions of 8 heads of 128: %.3f ms\n", static_cast<long>(positions), best);
}

}  // namespace
}  // namespace tactic::cuda

// With an argument, times building an index instead.
int main(int argc, char**) {
  using namespace tactic::cuda;
  const tactic::Status available = Available();
  if (!available.ok()) {
    std::printf("skipped: %s\n", available.message().c_str());
    return kSkipped;
  }
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  if (argc > 1) {
    Time(2048 + 64, stream);
    Time(16384 + 64, stream);
    Time(131072, stream);
    return 0;
  }
  TestShapes(stream);
  TestSegments(stream);
  TestAdversarial(stream);
  TestUnfit(stream);
  TestGrowth(stream);
  TestConverged(stream);
  TestErrors(stream);
  CHECK_CUDA(cudaDeviceSynchronize());
  return tactic::testing::Summary();
}
