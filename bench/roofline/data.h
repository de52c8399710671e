// What the kernels are measured on: random keys and values, laid out as an engine's cache, and
// codes of such keys.
#ifndef TACTIC_BENCH_ROOFLINE_DATA_H_
#define TACTIC_BENCH_ROOFLINE_DATA_H_

#include <cstdint>
#include <span>
#include <vector>

#include "bench/huge_halves.h"
#include "src/cpu/kernels.h"
#include "src/half.h"
#include "src/segment.h"
#include "tactic/shape.h"

namespace tactic::bench {

// Of one KV head's keys, every kSparsity-th is read, at random places; as many disjoint sets are
// read in turn, so that all of the cache counts as data.
inline constexpr int kSparsity = 10;

class Cache {
 public:
  // Keys and values together take at most `bytes`.
  Cache(const LayerShape& shape, size_t bytes);

  const LayerShape& shape() const { return shape_; }
  size_t cells() const { return cells_; }
  size_t RowBytes() const { return sizeof(uint16_t) * static_cast<size_t>(shape_.head_dim); }
  size_t Stride() const { return RowBytes() * static_cast<size_t>(shape_.kv_heads); }
  cpu::HeadRows Keys(int kv_head) const { return Rows(keys_, kv_head); }
  cpu::HeadRows Values(int kv_head) const { return Rows(values_, kv_head); }
  // Set `turn` of cells, ascending.
  std::span<const uint32_t> Sparse(size_t turn) const { return sparse_[turn % kSparsity]; }
  std::span<const uint32_t> All() const { return all_; }
  cpu::QueryHeads Query() const;
  double Key(int kv_head, size_t cell, int x) const { return At(keys_, kv_head, cell, x); }
  double Value(int kv_head, size_t cell, int x) const { return At(values_, kv_head, cell, x); }

 private:
  cpu::HeadRows Rows(const HugeHalves& of, int kv_head) const {
    const size_t first = static_cast<size_t>(kv_head) * static_cast<size_t>(shape_.head_dim);
    return {reinterpret_cast<const uint8_t*>(of.data() + first), Stride(), ElementType::kF16,
            shape_.head_dim};
  }
  double At(const HugeHalves& of, int kv_head, size_t cell, int x) const {
    const auto dim = static_cast<size_t>(shape_.head_dim);
    const size_t heads = static_cast<size_t>(shape_.kv_heads);
    return HalfToFloat(
        of.data()[(cell * heads + static_cast<size_t>(kv_head)) * dim + static_cast<size_t>(x)]);
  }

  LayerShape shape_;
  size_t cells_;
  HugeHalves keys_;
  HugeHalves values_;
  std::vector<float> query_;
  std::vector<uint32_t> all_;
  std::vector<uint32_t> sparse_[kSparsity];
};

// Codes of one KV head's keys: a segment's, over and over.
struct CodedCache {
  static constexpr int kKeys = 2048;  // of a segment
  // What such a segment is made of.
  static Cache Keys(const LayerShape& shape);
  CodedCache(const Cache& cache, int bits, size_t bytes);

  Clusters clusters;            // of the segment; member i of all clusters is key i
  std::vector<uint8_t> planes;  // [segments][of a segment]
  std::vector<uint8_t> scales;
  size_t segments;
};

}  // namespace tactic::bench

#endif  // TACTIC_BENCH_ROOFLINE_DATA_H_
