// Keys and values of one layer, on the host as numbers and on the device as an engine keeps them;
// and what is stored in an index, copied to the host.
#ifndef TACTIC_TESTS_CUDA_INDEX_WORLD_H_
#define TACTIC_TESTS_CUDA_INDEX_WORLD_H_

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "src/cuda/index_access.h"
#include "src/half.h"
#include "src/random.h"
#include "src/reference/oracle.h"
#include "tactic/cuda.h"
#include "tests/cuda/check.h"

namespace tactic::cuda {

inline float FromE4M3(uint8_t byte) {
  const int exponent = byte >> 3 & 15;
  const int mantissa = byte & 7;
  if ((byte & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (byte & 0x80) != 0 ? -magnitude : magnitude;
}
// The nearest, within its range.
inline uint8_t ToE4M3(float x) {
  constexpr uint8_t kNaN = 0x7f;
  if (std::isnan(x)) return kNaN;
  uint8_t low = 0;
  uint8_t high = kNaN - 1;
  while (high - low > 1) {
    const auto middle = static_cast<uint8_t>((low + high) / 2);
    (FromE4M3(middle) <= std::fabs(x) ? low : high) = middle;
  }
  const bool up = FromE4M3(high) - std::fabs(x) < std::fabs(x) - FromE4M3(low);
  return static_cast<uint8_t>((up ? high : low) | (x < 0 ? 0x80 : 0));
}

struct LayerSpec {
  Element type = Element::kBF16;
  int head_dim = 128;
  int kv_heads = 2;
  int64_t positions = 0;
  int page_size = 0;         // 0: contiguous
  bool heads_first = false;  // whether a head's rows, not a row's heads, are neighbours
  int sequence = 0;          // which of three
};

class CachedLayer {
 public:
  CachedLayer(const LayerSpec& spec, uint64_t seed) : spec_(spec), random_(seed) {
    const size_t count = static_cast<size_t>(spec.kv_heads) * spec.positions;
    keys_.assign(count * spec.head_dim, 0);
    values_ = keys_;
    if (spec.type == Element::kE4M3) {
      key_scale_ = 0.5f;
      value_scale_ = 0.25f;
    }
  }
  ~CachedLayer() {
    cudaFree(device_keys_);
    cudaFree(device_values_);
    cudaFree(table_);
  }
  CachedLayer(const CachedLayer&) = delete;
  CachedLayer& operator=(const CachedLayer&) = delete;

  const LayerSpec& spec() const { return spec_; }
  float* Key(int head, int64_t position) { return keys_.data() + At(head, position); }
  float* Value(int head, int64_t position) { return values_.data() + At(head, position); }

  float Gauss() {  // a sum of uniform numbers does
    float sum = 0;
    for (int i = 0; i < 6; ++i) sum += static_cast<float>(random_.Next() >> 40) * 0x1p-24f - 0.5f;
    return sum * std::sqrt(2.0f);
  }

  // Keys in loose groups that come and go, with a few large channels, as keys of models have.
  void Fill() {
    constexpr int kGroups = 60;
    const int dim = spec_.head_dim;
    std::vector<float> centers(static_cast<size_t>(kGroups) * dim);
    for (float& x : centers) x = Gauss();
    for (int head = 0; head < spec_.kv_heads; ++head) {
      for (int64_t p = 0; p < spec_.positions; ++p) {
        const float* center = centers.data() + static_cast<size_t>(random_.Below(kGroups)) * dim;
        for (int x = 0; x < dim; ++x) {
          Key(head, p)[x] = center[x] + 0.6f * Gauss() + (x % 37 == 5 ? 6.0f : 0.0f);
          Value(head, p)[x] = center[(x + head) % dim] + Gauss();
        }
      }
    }
  }

  // Rounds the numbers to what the type holds, and copies them to the device.
  KvCache Upload() {
    const int64_t positions = spec_.positions;
    const int dim = spec_.head_dim;
    const int heads = spec_.kv_heads;
    const bool paged = spec_.page_size != 0;
    const int64_t page = paged ? spec_.page_size : positions;
    const int64_t blocks_each = (positions + page - 1) / page;
    const int64_t blocks = kSequences * blocks_each;
    KvCache cache;
    cache.type = spec_.type;
    cache.key_scale = key_scale_;
    cache.value_scale = value_scale_;
    cache.block_stride = page * heads * dim;
    cache.row_stride = spec_.heads_first ? dim : heads * dim;
    cache.head_stride = spec_.heads_first ? page * dim : dim;
    std::vector<int32_t> table(blocks);
    std::iota(table.begin(), table.end(), 0);
    if (paged) {
      for (int64_t i = blocks - 1; i > 0; --i)
        std::swap(table[i], table[random_.Below(static_cast<uint32_t>(i + 1))]);
      CHECK_CUDA(cudaMalloc(&table_, blocks * sizeof(int32_t)));
      CHECK_CUDA(
          cudaMemcpy(table_, table.data(), blocks * sizeof(int32_t), cudaMemcpyHostToDevice));
      cache.block_table = table_;
      cache.max_blocks = static_cast<int32_t>(blocks_each);
      cache.page_size = spec_.page_size;
    }
    const int64_t bytes = spec_.type == Element::kE4M3 ? 1 : 2;
    // Rows that are no one's are NaN in every type.
    std::vector<uint8_t> keys(blocks * cache.block_stride * bytes, 0x7f);
    if (spec_.type != Element::kE4M3) std::fill(keys.begin(), keys.end(), 0xff);
    std::vector<uint8_t> values = keys;
    for (int head = 0; head < heads; ++head) {
      for (int64_t p = 0; p < positions; ++p) {
        const int64_t block = table[spec_.sequence * blocks_each + p / page];
        const int64_t at =
            block * cache.block_stride + p % page * cache.row_stride + head * cache.head_stride;
        for (int x = 0; x < dim; ++x) {
          Store(Key(head, p)[x], key_scale_, keys.data() + (at + x) * bytes);
          Store(Value(head, p)[x], value_scale_, values.data() + (at + x) * bytes);
        }
      }
    }
    CHECK_CUDA(cudaMalloc(&device_keys_, keys.size()));
    CHECK_CUDA(cudaMalloc(&device_values_, values.size()));
    CHECK_CUDA(cudaMemcpy(device_keys_, keys.data(), keys.size(), cudaMemcpyHostToDevice));
    CHECK_CUDA(cudaMemcpy(device_values_, values.data(), values.size(), cudaMemcpyHostToDevice));
    cache.keys = device_keys_;
    cache.values = device_values_;
    return cache;
  }

  oracle::Rows Keys(int head) const { return RowsOf(keys_, head); }
  oracle::Rows Values(int head) const { return RowsOf(values_, head); }

 private:
  static constexpr int64_t kSequences = 3;
  size_t At(int head, int64_t position) const {
    return (static_cast<size_t>(head) * spec_.positions + position) * spec_.head_dim;
  }
  oracle::Rows RowsOf(const std::vector<float>& all, int head) const {
    oracle::Rows rows;
    for (int64_t p = 0; p < spec_.positions; ++p) {
      const auto begin = all.begin() + static_cast<ptrdiff_t>(At(head, p));
      rows.emplace_back(begin, begin + spec_.head_dim);
    }
    return rows;
  }
  void Store(float& x, float scale, uint8_t* to) const {
    if (spec_.type == Element::kE4M3) {
      *to = ToE4M3(x / scale);
      x = FromE4M3(*to) * scale;
      return;
    }
    const bool half = spec_.type == Element::kF16;
    const uint16_t bits = half ? FloatToHalf(x) : FloatToBf16(x);
    std::memcpy(to, &bits, sizeof(bits));
    const bool finite = std::isfinite(x);
    if (finite) x = half ? HalfToFloat(bits) : Bf16ToFloat(bits);
  }

  LayerSpec spec_;
  Random random_;
  std::vector<float> keys_;  // [head][position][dim]
  std::vector<float> values_;
  float key_scale_ = 1;
  float value_scale_ = 1;
  void* device_keys_ = nullptr;
  void* device_values_ = nullptr;
  int32_t* table_ = nullptr;
};

// All that an index stores.
struct Stored {
  DeviceIndex view;  // as published; its pointers are of no use here
  std::vector<int8_t> centroids;
  std::vector<ClusterFacts> facts;
  std::vector<uint16_t> starts;
  std::vector<uint16_t> members;
  std::vector<uint8_t> key_scales;
  std::vector<uint8_t> codes;
  std::vector<int8_t> means;
  std::vector<uint16_t> mean_scales;
  std::vector<float> errors;

  // First place of a segment in an array of [kv_head][segment][per].
  size_t At(int head, int segment, size_t per) const {
    return (static_cast<size_t>(head) * view.segments + segment) * per;
  }
};

inline Stored Read(const Index& index, Stream stream) {
  CHECK_CUDA(cudaStreamSynchronize(stream));
  Stored stored;
  CHECK_CUDA(
      cudaMemcpy(&stored.view, index.device_view(), sizeof(stored.view), cudaMemcpyDeviceToHost));
  const DeviceIndex& view = stored.view;
  const auto copy = [](auto* to, const auto* from, size_t count) {
    to->resize(count);
    CHECK_CUDA(cudaMemcpy(to->data(), from, count * sizeof(*from), cudaMemcpyDeviceToHost));
  };
  const size_t segments = static_cast<size_t>(view.kv_heads) * view.segments;
  const size_t keys = segments * view.segment_size;
  const size_t slots = segments * view.slots;
  copy(&stored.centroids, view.centroids, slots * view.head_dim);
  copy(&stored.facts, view.facts, slots);
  copy(&stored.starts, view.starts, slots + segments);
  copy(&stored.members, view.members, keys);
  if (view.bits == 0) return stored;
  copy(&stored.key_scales, view.key_scales, keys);
  copy(&stored.codes, view.codes, keys / kCodeBlock * CodeBlockBytes(view.head_dim, view.bits));
  copy(&stored.means, view.means, (slots + segments) * view.head_dim);
  copy(&stored.mean_scales, view.mean_scales, slots + segments);
  copy(&stored.errors, view.errors, segments);
  return stored;
}

}  // namespace tactic::cuda

#endif  // TACTIC_TESTS_CUDA_INDEX_WORLD_H_
