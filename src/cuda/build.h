// Building an index: what its kernels are told, and their launches, in this order.
//
//   K-means    starts and members of segments that are complete
//   encode     centroids, facts, codes and means of their clusters, and of new pages
//   publish    means of whole segments; then what decode steps may read
//
// Closed segments are never written again. The open one changes when pages come or it is closed:
// what decode steps see of it is ordered by the stream.
#ifndef TACTIC_SRC_CUDA_BUILD_H_
#define TACTIC_SRC_CUDA_BUILD_H_

#include <cstddef>
#include <cstdint>

#include "src/cuda/cache.cuh"
#include "src/cuda/layout.h"
#include "tactic/cuda.h"
#include "tactic/status.h"

namespace tactic::cuda {

// A code book (codes.h): an element's level rises by `rise[b]` at boundary b.
struct BuildBook {
  int boundaries;
  float boundary[7];
  float rise[7];
  float lowest;
};

struct Build {
  DeviceIndex index;  // its pointers and sizes; what is published is in device memory alone
  DeviceIndex* published;
  CacheView cache;
  int sequence;
  float key_unit;  // a key is stored numbers * key_unit
  float value_unit;
  uint32_t signs[8];  // of the rotation: bit x % 32 of word x / 32 flips element x
  BuildBook book;
  int kmeans_iterations;
  int cluster_size;

  // Segments [first_segment, closed) are to be clustered and coded; of the open one, number
  // `closed`, pages [first_page, pages) are to be coded.
  int first_segment;
  int closed;
  int first_page;
  int pages;

  // Positions of a segment that are sinks, which no cluster has.
  __host__ __device__ int Lead(int segment) const {
    const int left = index.sinks - segment * index.segment_size;
    return left < 0 ? 0 : left < index.segment_size ? left : index.segment_size;
  }
  // First place of a segment in arrays over [kv_head][segment][per_segment].
  __device__ int64_t Slot(int head, int segment, int per_segment) const {
    return (int64_t{head} * index.segments + segment) * per_segment;
  }
};

// Dynamic shared memory that K-means takes.
size_t KMeansSharedBytes(int segment_size, int slots, int head_dim);

Status LaunchKMeans(const Build& build, Element type, Stream stream);
Status LaunchEncode(const Build& build, Element type, Stream stream);
Status LaunchPublish(const Build& build, Stream stream);

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_BUILD_H_
