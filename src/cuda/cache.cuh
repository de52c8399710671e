// A KvCache as kernels read it.
#ifndef TACTIC_SRC_CUDA_CACHE_CUH_
#define TACTIC_SRC_CUDA_CACHE_CUH_

#include <cuda_runtime.h>

#include <bit>
#include <cstdint>
#include <string>

#include "tactic/cuda.h"
#include "tactic/status.h"

namespace tactic::cuda {

// Where the rows of one KV head of a sequence are. Offsets are in elements.
struct HeadRows {
  int64_t first;          // of position 0, or of the head's row in a block
  const int32_t* blocks;  // or null: contiguous
};

// Plain data that a kernel takes by value. Steps are products of 32 bits: offsets of rows are a
// good part of what the kernels compute.
struct CacheView {
  const void* keys;
  const void* values;
  int64_t sequence_stride;  // contiguous
  int64_t head_stride;
  uint32_t block_stride;  // paged
  uint32_t row_stride;
  const int32_t* block_table;  // or null: contiguous
  int32_t max_blocks;
  int32_t page_shift;  // of positions, to their page
  int32_t page_mask;   // of positions, to the place in it

  __device__ __forceinline__ HeadRows Rows(int sequence, int head) const {
    const int64_t first = head * head_stride;
    if (block_table == nullptr) return {sequence * sequence_stride + first, nullptr};
    return {first, block_table + int64_t{sequence} * max_blocks};
  }
  // Element at which the row of a position starts, in `keys` and in `values`.
  __device__ __forceinline__ int64_t Offset(const HeadRows& rows, int position) const {
    const auto step = [](int of, uint32_t stride) {
      return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(of)) * stride);
    };
    if (rows.blocks == nullptr) return rows.first + step(position, row_stride);
    const int32_t block = __ldg(rows.blocks + (position >> page_shift));
    return rows.first + step(position & page_mask, row_stride) + step(block, block_stride);
  }
};

// OK and *view, or what is wrong with `cache`.
inline Status MakeCacheView(const KvCache& cache, int head_dim, CacheView* view) {
  const auto bad = [](const char* name, int64_t value, const char* expected) {
    return Status::InvalidArgument(std::string("cache.") + name + " is " + std::to_string(value) +
                                   "; expected " + expected);
  };
  if (cache.keys == nullptr) return Status::InvalidArgument("cache.keys is null");
  if (cache.values == nullptr) return Status::InvalidArgument("cache.values is null");
  if (cache.type != Element::kF16 && cache.type != Element::kBF16 && cache.type != Element::kE4M3)
    return bad("type", static_cast<int>(cache.type), "kF16, kBF16 or kE4M3");
  // Rows are read in pieces of 16 bytes.
  constexpr int64_t kRowAlign = 16;
  const int64_t element = cache.type == Element::kE4M3 ? 1 : 2;
  const auto aligned = [&](int64_t stride) { return stride * element % kRowAlign == 0; };
  if (!aligned(cache.block_stride))
    return bad("block_stride", cache.block_stride, "a multiple of 16 bytes");
  if (!aligned(cache.row_stride))
    return bad("row_stride", cache.row_stride, "a multiple of 16 bytes");
  if (!aligned(cache.head_stride))
    return bad("head_stride", cache.head_stride, "a multiple of 16 bytes");
  constexpr int64_t kLargestStep = UINT32_MAX;
  if (cache.row_stride < head_dim || cache.row_stride > kLargestStep)
    return bad("row_stride", cache.row_stride, "head_dim or more, in 32 bits");
  const bool paged = cache.block_table != nullptr;
  if (paged && (cache.block_stride < 0 || cache.block_stride > kLargestStep))
    return bad("block_stride", cache.block_stride, "a number of 32 bits");
  for (const void* rows : {cache.keys, cache.values}) {
    if (reinterpret_cast<uintptr_t>(rows) % kRowAlign != 0)
      return Status::InvalidArgument("cache.keys or cache.values is not aligned to 16 bytes");
  }
  const bool fp8 = cache.type == Element::kE4M3;
  if (fp8 && !(cache.key_scale > 0)) return Status::InvalidArgument("cache.key_scale is not > 0");
  if (fp8 && !(cache.value_scale > 0))
    return Status::InvalidArgument("cache.value_scale is not > 0");
  *view = {cache.keys,
           cache.values,
           cache.block_stride,
           cache.head_stride,
           static_cast<uint32_t>(cache.block_stride),
           static_cast<uint32_t>(cache.row_stride),
           cache.block_table,
           cache.max_blocks,
           0,
           0};
  if (!paged) return Status::Ok();
  if (cache.page_size < 1 || !std::has_single_bit(static_cast<uint32_t>(cache.page_size)))
    return bad("page_size", cache.page_size, "a power of two");
  if (cache.max_blocks < 1) return bad("max_blocks", cache.max_blocks, "1 or more");
  view->page_shift = std::countr_zero(static_cast<uint32_t>(cache.page_size));
  view->page_mask = cache.page_size - 1;
  return Status::Ok();
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_CACHE_CUH_
