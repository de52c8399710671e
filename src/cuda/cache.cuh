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

// Plain data that a kernel takes by value. Offsets are in elements.
struct CacheView {
  const void* keys;
  const void* values;
  int64_t block_stride;
  int64_t row_stride;
  int64_t head_stride;
  const int32_t* block_table;  // or null: contiguous
  int32_t max_blocks;
  int32_t page_shift;  // of positions, to their page
  int32_t page_mask;   // of positions, to the place in it

  // Element at which the row of a position starts, in `keys` and in `values`.
  __device__ __forceinline__ int64_t Offset(int sequence, int position, int head) const {
    if (block_table == nullptr) {
      return sequence * block_stride + position * row_stride + head * head_stride;
    }
    const int32_t block =
        __ldg(block_table + int64_t{sequence} * max_blocks + (position >> page_shift));
    return block * block_stride + (position & page_mask) * row_stride + head * head_stride;
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
  if (cache.row_stride < head_dim) return bad("row_stride", cache.row_stride, "head_dim or more");
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
           cache.row_stride,
           cache.head_stride,
           cache.block_table,
           cache.max_blocks,
           0,
           0};
  if (cache.block_table == nullptr) return Status::Ok();
  if (cache.page_size < 1 || !std::has_single_bit(static_cast<uint32_t>(cache.page_size)))
    return bad("page_size", cache.page_size, "a power of two");
  if (cache.max_blocks < 1) return bad("max_blocks", cache.max_blocks, "1 or more");
  view->page_shift = std::countr_zero(static_cast<uint32_t>(cache.page_size));
  view->page_mask = cache.page_size - 1;
  return Status::Ok();
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_CACHE_CUH_
