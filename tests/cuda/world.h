// Sequences with keys, values and queries made up for a test, on both sides: in device memory as an
// engine would keep them, and as rows of doubles for the oracle.
#ifndef TACTIC_TESTS_CUDA_WORLD_H_
#define TACTIC_TESTS_CUDA_WORLD_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "src/reference/oracle.h"
#include "tactic/cuda.h"

namespace tactic::cuda {

inline void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}
inline void Must(const Status& status, const char* what) {
  if (status.ok()) return;
  std::printf("%s: %s\n", what, status.message().c_str());
  std::exit(2);
}

template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(size_t n) : size_(n) {
    Must(cudaMalloc(&data_, std::max<size_t>(n, 1) * sizeof(T)), "cudaMalloc");
    // What is not written must show.
    Must(cudaMemset(data_, 0xff, std::max<size_t>(n, 1) * sizeof(T)), "cudaMemset");
  }
  explicit DeviceArray(const std::vector<T>& from) : DeviceArray(from.size()) { Write(from); }
  DeviceArray(DeviceArray&& other) noexcept { *this = std::move(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceArray() {
    if (data_ != nullptr) cudaFree(data_);
  }
  T* get() const { return data_; }
  void Write(const std::vector<T>& from) {
    Must(cudaMemcpy(data_, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
  }
  std::vector<T> Read() const { return ReadDevice(data_, size_); }
  static std::vector<T> ReadDevice(const T* from, size_t n) {
    std::vector<T> to(n);
    Must(cudaMemcpy(to.data(), from, n * sizeof(T), cudaMemcpyDeviceToHost), "copy");
    return to;
  }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

template <class T>
std::vector<T> FromDevice(const T* from, size_t n) {
  return DeviceArray<T>::ReadDevice(from, n);
}

// A number as `type` stores it: its bits, and what they mean.
inline uint16_t Encode(Element type, float x, double* value) {
  if (type == Element::kBF16) {
    const __nv_bfloat16 b = __float2bfloat16(x);
    *value = __bfloat162float(b);
    return *reinterpret_cast<const uint16_t*>(&b);
  }
  if (type == Element::kF16) {
    const __half h = __float2half(x);
    *value = __half2float(h);
    return *reinterpret_cast<const uint16_t*>(&h);
  }
  const __nv_fp8_e4m3 f(x);
  *value = static_cast<float>(f);
  return *reinterpret_cast<const uint8_t*>(&f);
}

struct WorldSpec {
  LayerShape shape;
  Element type = Element::kBF16;
  std::vector<int> lengths;  // one sequence each
  int page_size = 0;         // 0: contiguous
  float sharpness = 2.5f;    // of queries: how far logits spread
  float noise = 0.5f;        // of keys about their topic
  float key_scale = 1;       // of e4m3
  float value_scale = 1;
  uint64_t seed = 1;
};

class World {
 public:
  explicit World(const WorldSpec& spec)
      : spec(spec), batch(static_cast<int>(spec.lengths.size())), random_(spec.seed) {
    const LayerShape& shape = spec.shape;
    const int dim = shape.head_dim;
    const int longest = *std::max_element(spec.lengths.begin(), spec.lengths.end());
    const int page = spec.page_size > 0 ? spec.page_size : longest;
    blocks_ = (longest + page - 1) / page;
    const size_t all = static_cast<size_t>(batch) * blocks_ * page * shape.kv_heads * dim;
    const bool bytes = spec.type == Element::kE4M3;
    std::vector<int32_t> table(static_cast<size_t>(batch) * blocks_);
    std::iota(table.begin(), table.end(), 0);
    if (spec.page_size > 0) std::shuffle(table.begin(), table.end(), random_);
    std::vector<uint16_t> k16(bytes ? 0 : all, 0);
    std::vector<uint16_t> v16(bytes ? 0 : all, 0);
    std::vector<uint8_t> k8(bytes ? all : 0, 0);
    std::vector<uint8_t> v8(bytes ? all : 0, 0);
    const int64_t row = static_cast<int64_t>(shape.kv_heads) * dim;
    keys.resize(batch);
    values.resize(batch);
    queries.resize(batch);
    std::vector<uint16_t> q;
    for (int s = 0; s < batch; ++s) {
      for (int h = 0; h < shape.kv_heads; ++h) {
        MakeHead(spec.lengths[s], &keys[s].emplace_back(), &values[s].emplace_back());
        for (int p = 0; p < spec.lengths[s]; ++p) {
          const int64_t at =
              (int64_t{table[s * blocks_ + p / page]} * page + p % page) * row + int64_t{h} * dim;
          for (int x = 0; x < dim; ++x) {
            Store(&keys[s][h][p][x], spec.key_scale, bytes, at + x, &k16, &k8);
            Store(&values[s][h][p][x], spec.value_scale, bytes, at + x, &v16, &v8);
          }
        }
        for (int g = 0; g < shape.group(); ++g) {
          oracle::Row query = MakeQuery();
          for (double& x : query) q.push_back(Encode(Element::kBF16, static_cast<float>(x), &x));
          queries[s].push_back(query);
        }
      }
    }
    k16_ = DeviceArray<uint16_t>(k16);
    v16_ = DeviceArray<uint16_t>(v16);
    k8_ = DeviceArray<uint8_t>(k8);
    v8_ = DeviceArray<uint8_t>(v8);
    table_ = DeviceArray<int32_t>(table);
    q_ = DeviceArray<uint16_t>(q);
    lengths_ = DeviceArray<int32_t>(std::vector<int32_t>(spec.lengths.begin(), spec.lengths.end()));
    out_ = DeviceArray<float>(static_cast<size_t>(batch) * shape.q_heads * dim);
    cache.keys = bytes ? static_cast<void*>(k8_.get()) : k16_.get();
    cache.values = bytes ? static_cast<void*>(v8_.get()) : v16_.get();
    cache.type = spec.type;
    cache.key_scale = spec.key_scale;
    cache.value_scale = spec.value_scale;
    cache.row_stride = row;
    cache.head_stride = dim;
    cache.block_stride = row * page;
    if (spec.page_size > 0) {
      cache.block_table = table_.get();
      cache.max_blocks = blocks_;
      cache.page_size = page;
    }
    request.batch = batch;
    request.q = q_.get();
    request.q_type = Element::kBF16;
    request.out = out_.get();
    request.out_type = Element::kF32;
    request.cache = cache;
    request.lengths = lengths_.get();
    request.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim)));
    request.max_length = longest;
  }

  // An index of every sequence, of as many positions as told or of all, for request.indexes.
  void MakeIndexes(const Options& options, std::vector<int> lengths = {}) {
    if (lengths.empty()) lengths = spec.lengths;
    request.dense_below = options.dense_below;
    std::vector<const void*> views;
    for (int s = 0; s < batch; ++s) {
      std::unique_ptr<Index> index;
      Must(Index::Create(spec.shape, options, spec.lengths[s], &index), "Index::Create");
      Must(index->Append(cache, s, lengths[s], nullptr), "Index::Append");
      views.push_back(index->device_view());
      indexes.push_back(std::move(index));
    }
    views_ = DeviceArray<const void*>(views);
    request.indexes = views_.get();
  }

  void SetLengths(const std::vector<int32_t>& lengths) { lengths_.Write(lengths); }
  std::vector<float> Out() const { return out_.Read(); }
  const oracle::Row& Query(int s, int q_head) const { return queries[s][q_head]; }

  WorldSpec spec;
  int batch;
  std::vector<std::vector<oracle::Rows>> keys;  // [sequence][kv_head][position]
  std::vector<std::vector<oracle::Rows>> values;
  std::vector<std::vector<oracle::Row>> queries;  // [sequence][q_head]
  KvCache cache;
  DecodeRequest request;
  std::vector<std::unique_ptr<Index>> indexes;

 private:
  void Store(double* x, float scale, bool bytes, int64_t at, std::vector<uint16_t>* wide,
             std::vector<uint8_t>* narrow) {
    const uint16_t bits = Encode(spec.type, static_cast<float>(*x) / scale, x);
    *x *= scale;
    if (bytes)
      (*narrow)[at] = static_cast<uint8_t>(bits);
    else
      (*wide)[at] = bits;
  }

  float Normal() { return normal_(random_); }

  // Passages of 16 to 128 positions, each on one of a few topics.
  void MakeHead(int tokens, oracle::Rows* k, oracle::Rows* v) {
    const int dim = spec.shape.head_dim;
    constexpr int kTopics = 24;
    topics_.assign(kTopics, oracle::Row(dim));
    for (oracle::Row& topic : topics_) {
      for (double& x : topic) x = Normal();
    }
    int left = 0;
    size_t topic = 0;
    for (int p = 0; p < tokens; ++p) {
      if (left-- == 0) {
        left = 16 + static_cast<int>(random_() % 112);
        topic = random_() % kTopics;
      }
      oracle::Row key(dim);
      oracle::Row value(dim);
      for (int x = 0; x < dim; ++x) {
        key[x] = topics_[topic][x] + spec.noise * Normal();
        value[x] = Normal();
      }
      k->push_back(key);
      v->push_back(value);
    }
  }

  oracle::Row MakeQuery() {
    const oracle::Row& topic = topics_[random_() % topics_.size()];
    oracle::Row q(topic.size());
    for (size_t x = 0; x < q.size(); ++x) q[x] = spec.sharpness * (0.5f * topic[x] + Normal()) / 2;
    return q;
  }

  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
  oracle::Rows topics_;
  int blocks_ = 0;
  DeviceArray<uint16_t> k16_, v16_, q_;
  DeviceArray<uint8_t> k8_, v8_;
  DeviceArray<int32_t> table_, lengths_;
  DeviceArray<float> out_;
  DeviceArray<const void*> views_;
};

}  // namespace tactic::cuda

#endif  // TACTIC_TESTS_CUDA_WORLD_H_
