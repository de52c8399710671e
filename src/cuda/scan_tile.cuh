// Tiles of keys whose codes are scanned (mode tactic). Scan lists them, verify looks at them again.
#ifndef TACTIC_SRC_CUDA_SCAN_TILE_CUH_
#define TACTIC_SRC_CUDA_SCAN_TILE_CUH_

#include "src/cuda/step.cuh"

namespace tactic::cuda {

// Up to 16 members of one cluster, in 32 bits: the first's number in the span, how many, and the
// cluster's number. Those of a cluster are neighbours in a list.
struct ScanTile {
  uint32_t word;

  __device__ __forceinline__ static ScanTile Of(int cluster, int first, int count) {
    return {static_cast<uint32_t>(cluster << 24 | (count - 1) << 20 | first)};
  }
  __device__ __forceinline__ int Cluster() const { return static_cast<int>(word >> 24); }
  __device__ __forceinline__ int First() const { return static_cast<int>(word & 0xfffffu); }
  __device__ __forceinline__ int Count() const { return static_cast<int>(word >> 20 & 15) + 1; }
  // The number of key `key` of 16, or of the last there is.
  __device__ __forceinline__ int Key(int key) const { return First() + min(key, Count() - 1); }
};
static_assert(kMaxSlots == 256);

// How many a span may have.
__host__ __device__ __forceinline__ int TilesOfSpan(const Step& step) {
  return step.span_keys / kTileRows + step.span_slots;
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_SCAN_TILE_CUH_
