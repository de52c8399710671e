#include "bench/roofline/data.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "src/encode.h"
#include "tactic/options.h"

namespace tactic::bench {
namespace {

HugeHalves RandomHalves(size_t count, uint32_t seed) {
  constexpr size_t kDistinct = size_t{1} << 20;  // then again from the start, a little shifted
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  HugeHalves halves(count);
  uint16_t* out = halves.data();
  const size_t distinct = std::min(count, kDistinct - 61);
  for (size_t i = 0; i < distinct; ++i) out[i] = FloatToHalf(normal(random));
  for (size_t i = distinct; i < count; ++i) out[i] = out[i - distinct];
  return halves;
}

}  // namespace

Cache::Cache(const LayerShape& shape, size_t bytes)
    : shape_(shape),
      cells_(bytes / (2 * Stride())),
      keys_(RandomHalves(cells_ * Stride() / sizeof(uint16_t), 1)),
      values_(RandomHalves(cells_ * Stride() / sizeof(uint16_t), 2)),
      all_(cells_) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  query_.resize(static_cast<size_t>(shape.group()) * static_cast<size_t>(shape.head_dim));
  for (float& q : query_) q = normal(random);
  std::iota(all_.begin(), all_.end(), 0U);
  for (const uint32_t cell : all_) sparse_[random() % kSparsity].push_back(cell);
}

cpu::QueryHeads Cache::Query() const {
  const auto dim = static_cast<size_t>(shape_.head_dim);
  return {query_.data(), dim, shape_.group(), 1 / std::sqrt(static_cast<float>(dim)), 0};
}

Cache CodedCache::Keys(const LayerShape& shape) {
  const int elements = kKeys * shape.kv_heads * (shape.head_dim + shape.value_dim);
  return {shape, sizeof(uint16_t) * static_cast<size_t>(elements)};
}

CodedCache::CodedCache(const Cache& cache, int bits, size_t bytes) {
  Options options = Options::For(Mode::kTactic);
  options.bits = bits;
  const LayerShape& shape = cache.shape();
  const cpu::HeadRows keys = cache.Keys(0);
  const cpu::HeadRows values = cache.Values(0);
  const RowsView key_view = {keys.data, keys.type, keys.stride, cache.RowBytes()};
  const RowsView value_view = {values.data, values.type, values.stride, cache.RowBytes()};
  std::vector<uint32_t> cells(kKeys);
  for (size_t i = 0; i < cells.size(); ++i) cells[i] = static_cast<uint32_t>(i);
  constexpr int kSlots = kKeys / Options::kPage;
  MakePages(kKeys, kSlots, &clusters);
  EncodeClusters({key_view, value_view, 0, cells}, shape, options, -1, kSlots, false, nullptr,
                 &clusters);
  const size_t of_planes = clusters.codes.planes.size();
  segments = std::max<size_t>(1, bytes / (of_planes + kKeys));
  for (size_t s = 0; s < segments; ++s) {
    planes.insert(planes.end(), clusters.codes.planes.begin(), clusters.codes.planes.end());
    scales.insert(scales.end(), clusters.codes.scales.begin(),
                  clusters.codes.scales.begin() + kKeys);
  }
}

}  // namespace tactic::bench
