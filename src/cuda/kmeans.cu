// K-means of the keys of a segment, for each KV head: one block does all iterations of one segment
// and head, with the centroids and every key's label in shared memory. Keys are read where they
// are, twice an iteration; a segment's stay in L2.
//
//   assign   tensor cores: keys, in registers, times centroids, in shared memory; the nearest is
//            that of the largest <x, c> - |c|^2 / 2
//   sort     a stable counting sort of the members by label
//   update   every warp sums an even share of the sorted members; a cluster that goes on in the
//            next warps' shares is put together in their order
//
// Everything is added in an order that depends on the keys alone, so equal keys give equal
// clusters.
//
// The update gathers rows by cluster instead of multiplying with a one-hot matrix: that product
// costs as much as the assignment and wants the sums of all clusters in registers, whereas the
// sorted members are the result that is asked for anyway.
#include "src/cuda/build.h"
#include "src/cuda/dispatch.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/quads.cuh"

namespace tactic::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kNoLabel = kMaxSlots;

// Bytes of a centroid in shared memory: an odd multiple of 64, so that the eight lanes of a phase,
// which read 64 bytes of two centroids, meet no bank twice.
constexpr int CentroidStride(int dim) { return dim * 2 % 128 == 64 ? dim * 2 : dim * 2 + 64; }

constexpr size_t Align(size_t bytes) { return (bytes + 15) / 16 * 16; }

// Views of the dynamic shared memory; with a null base only the size is of use.
struct Shared {
  uint8_t* centroids;  // [slots][CentroidStride], in the 16-bit type of the keys' products
  float* offsets;      // [slots]: -|c|^2 / 2
  int* starts;         // [slots + 1], of members in `order`
  uint8_t* labels;     // [members]
  uint16_t* order;     // [members], by label, then ascending
  uint16_t* counts;    // [warp][slots]; while members are sorted
  float* heads;        // [warp][dim]: the sum of a share's first cluster when that began before
                       // it; while centroids are updated, in the place of `counts`
  size_t bytes;

  __host__ __device__ Shared(uint8_t* base, int segment_size, int slots, int dim) {
    size_t used = 0;
    const auto take = [&](size_t size) {
      uint8_t* at = base + used;
      used += Align(size);
      return at;
    };
    centroids = take(static_cast<size_t>(slots) * CentroidStride(dim));
    offsets = reinterpret_cast<float*>(take(slots * sizeof(float)));
    starts = reinterpret_cast<int*>(take((slots + 1) * sizeof(int)));
    labels = take(segment_size);
    order = reinterpret_cast<uint16_t*>(take(segment_size * sizeof(uint16_t)));
    const size_t count_bytes = static_cast<size_t>(kWarps) * slots * sizeof(uint16_t);
    const size_t head_bytes = static_cast<size_t>(kWarps) * dim * sizeof(float);
    uint8_t* either = take(count_bytes > head_bytes ? count_bytes : head_bytes);
    counts = reinterpret_cast<uint16_t*>(either);
    heads = reinterpret_cast<float*>(either);
    bytes = used;
  }
};

// The keys of one segment and head. Members are numbered from `first`.
template <class Row>
struct Keys {
  const CacheView& cache;
  int sequence;
  int head;
  int first;  // position
  int count;
  __device__ __forceinline__ const uint8_t* At(int member) const {
    return static_cast<const uint8_t*>(cache.keys) +
           cache.Offset(cache.Rows(sequence, head), first + member) * Row::kBytes;
  }
};

// Rounds a centroid to 16 bits. `x` is what the lanes hold of it.
template <class Row, int kDim>
__device__ __forceinline__ void StoreCentroid(const Shared& shared, int c,
                                              const float (&x)[QuadShape<kDim>::kPerLane][4]) {
  using Shape = QuadShape<kDim>;
  float norm = 0;
#pragma unroll
  for (int i = 0; i < Shape::kPerLane; ++i) {
    if (!Shape::Has(i)) continue;
    const uint2 rounded = {Pack<Row::kIsBF16>(x[i][0], x[i][1]),
                           Pack<Row::kIsBF16>(x[i][2], x[i][3])};
    *reinterpret_cast<uint2*>(shared.centroids + c * CentroidStride(kDim) + Shape::Quad(i) * 8) =
        rounded;
    // The norm of the centroid as it is rounded: then the nearest of these is found exactly.
    using Back = std::conditional_t<Row::kIsBF16, RowBF16, RowF16>;
    QuadRow<Back, kDim> row;
    row.raw[i] = rounded;
    float y[4];
    row.Get(i, y);
#pragma unroll
    for (int j = 0; j < 4; ++j) norm += y[j] * y[j];
  }
  norm = WarpSum(norm);
  if ((threadIdx.x & 31) == 0) shared.offsets[c] = -norm / 2;
}

// The middles of `clusters` even shares of the keys; other slots are never the nearest.
template <class Row, int kDim>
__device__ void Begin(const Keys<Row>& keys, int clusters, int slots, const Shared& shared) {
  using Shape = QuadShape<kDim>;
  for (int c = threadIdx.x >> 5; c < slots; c += kWarps) {
    float x[Shape::kPerLane][4] = {};
    if (c < clusters) {
      QuadRow<Row, kDim> row;
      row.Load(keys.At((2 * c + 1) * keys.count / (2 * clusters)));
#pragma unroll
      for (int i = 0; i < Shape::kPerLane; ++i) row.Get(i, x[i]);
    }
    StoreCentroid<Row, kDim>(shared, c, x);
    __syncwarp();
    if (c >= clusters && (threadIdx.x & 31) == 0) shared.offsets[c] = -INFINITY;
  }
  __syncthreads();
}

// Labels of all keys. Whether one of this thread's changed.
template <class Row, int kDim>
__device__ bool Assign(const Keys<Row>& keys, int slots, const Shared& shared) {
  // Keys that share what is read of the centroids: as many as registers allow.
  constexpr int kTiles = kDim <= 128 ? 2 : 1;
  constexpr int kPieces = kDim / 32;
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  const int t = lane & 3;
  bool changed = false;
  for (int begin = (threadIdx.x >> 5) * kTiles * kTileRows; begin < keys.count;
       begin += kWarps * kTiles * kTileRows) {
    KeyTile<Row, kDim> tiles[kTiles];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const int low = begin + m * kTileRows + r;
      tiles[m].Load(keys.At(min(low, keys.count - 1)), keys.At(min(low + 8, keys.count - 1)), lane);
    }
    uint4 a[kTiles][2 * kPieces];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int j = 0; j < 2 * kPieces; ++j) a[m][j] = Piece<Row>::Open(tiles[m].raw[j]);
    }
    float best[kTiles][2];
    int at[kTiles][2];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      best[m][0] = best[m][1] = -INFINITY;
      at[m][0] = at[m][1] = 0;
    }
    const uint8_t* centroid = shared.centroids + r * CentroidStride(kDim) + 16 * t;
#pragma unroll 1
    for (int c = 0; c < slots; c += 8, centroid += 8 * CentroidStride(kDim)) {
      const float2 offset = *reinterpret_cast<const float2*>(shared.offsets + c + 2 * t);
      float s[kTiles][4];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        s[m][0] = s[m][2] = offset.x;
        s[m][1] = s[m][3] = offset.y;
      }
#pragma unroll
      for (int j = 0; j < kPieces; ++j) {
        const uint4 b = *reinterpret_cast<const uint4*>(centroid + 64 * j);
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          const uint4& low = a[m][2 * j];
          const uint4& high = a[m][2 * j + 1];
          Multiply<Row::kIsBF16>(s[m], low.x, high.x, low.y, high.y, b.x, b.y);
          Multiply<Row::kIsBF16>(s[m], low.z, high.z, low.w, high.w, b.z, b.w);
        }
      }
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (s[m][k] > best[m][k >> 1]) {
            best[m][k >> 1] = s[m][k];
            at[m][k >> 1] = c + 2 * t + (k & 1);
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int k = 1; k < 4; k <<= 1) {
          const float other = __shfl_xor_sync(kAllLanes, best[m][h], k);
          const int there = __shfl_xor_sync(kAllLanes, at[m][h], k);
          if (other > best[m][h] || (other == best[m][h] && there < at[m][h])) {
            best[m][h] = other;
            at[m][h] = there;
          }
        }
        const int member = begin + m * kTileRows + r + 8 * h;
        if (t != 0 || member >= keys.count) continue;
        changed = changed || shared.labels[member] != at[m][h];
        shared.labels[member] = static_cast<uint8_t>(at[m][h]);
      }
    }
  }
  return changed;
}

// Calls f(member, label, lanes of the same label) for this warp's share of the members, 32 at a
// time; f runs in all lanes, with kNoLabel where there is no member.
template <class F>
__device__ __forceinline__ void ForLabels(const Shared& shared, int count, const F& f) {
  const int lane = threadIdx.x & 31;
  const int share = (count + kThreads - 1) / kThreads * 32;
  const int begin = (threadIdx.x >> 5) * share;
  for (int i = begin; i < min(begin + share, count); i += 32) {
    const int member = i + lane;
    const int label = member < count ? shared.labels[member] : kNoLabel;
    f(member, label, __match_any_sync(kAllLanes, label));
    __syncwarp();
  }
}

// Sets `starts` and `order` from `labels`.
__device__ void Sort(const Shared& shared, int count, int slots) {
  const int lane = threadIdx.x & 31;
  uint16_t* counts = shared.counts + (threadIdx.x >> 5) * slots;
  for (int c = lane; c < slots; c += 32) counts[c] = 0;
  __syncwarp();
  ForLabels(shared, count, [&](int, int label, uint32_t same) {
    if (label != kNoLabel && lane == __ffs(same) - 1) counts[label] += __popc(same);
  });
  __syncthreads();
  if (threadIdx.x < slots) {  // counts of earlier warps; then of all
    int sum = 0;
    for (int w = 0; w < kWarps; ++w) {
      uint16_t* of = shared.counts + w * slots + threadIdx.x;
      const int own = *of;
      *of = static_cast<uint16_t>(sum);
      sum += own;
    }
    shared.starts[threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    int before = 0;
    for (int c = lane; c - lane < slots; c += 32) {
      const int own = c < slots ? shared.starts[c] : 0;
      const int through = before + WarpScan(own, lane);
      if (c < slots) shared.starts[c] = through - own;
      before = __shfl_sync(kAllLanes, through, 31);
    }
    if (lane == 0) shared.starts[slots] = count;
  }
  __syncthreads();
  ForLabels(shared, count, [&](int member, int label, uint32_t same) {
    const int place = __popc(same & ((1u << lane) - 1));
    int at = 0;
    if (label != kNoLabel) {
      at = shared.starts[label] + counts[label] + place;
      shared.order[at] = static_cast<uint16_t>(member);
    }
    __syncwarp();
    if (label != kNoLabel && place == 0) counts[label] += __popc(same);
  });
  __syncthreads();
}

// Centroids to the means of their members; those without any stay.
template <class Row, int kDim>
__device__ void Update(const Keys<Row>& keys, const Shared& shared) {
  using Shape = QuadShape<kDim>;
  constexpr int kAtOnce = 8;  // rows that are being loaded
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int share = (keys.count + kWarps - 1) / kWarps;
  const int begin = warp * share;
  const int end = min(keys.count, begin + share);
  float* head = shared.heads + warp * kDim;
  float sum[Shape::kPerLane][4] = {};
  int cluster = -1;

  const auto finish = [&]() {
    const float size = static_cast<float>(shared.starts[cluster + 1] - shared.starts[cluster]);
#pragma unroll
    for (int i = 0; i < Shape::kPerLane; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] /= size;
    }
    StoreCentroid<Row, kDim>(shared, cluster, sum);
  };
  const auto store_head = [&]() {
#pragma unroll
    for (int i = 0; i < Shape::kPerLane; ++i) {
      if (!Shape::Has(i)) continue;
      *reinterpret_cast<float4*>(head + Shape::Quad(i) * 4) = {sum[i][0], sum[i][1], sum[i][2],
                                                               sum[i][3]};
    }
  };

  for (int i = begin; i < end; i += 32) {
    const int count = min(32, end - i);
    const int member = shared.order[i + min(lane, count - 1)];
    const int label = shared.labels[member];
    const uint64_t address = reinterpret_cast<uint64_t>(keys.At(member));
#pragma unroll 1
    for (int k = 0; k < count; k += kAtOnce) {
      QuadRow<Row, kDim> rows[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        rows[u].Load(reinterpret_cast<const uint8_t*>(
            __shfl_sync(kAllLanes, static_cast<unsigned long long>(address), k + u)));
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        if (k + u >= count) break;
        const int next = __shfl_sync(kAllLanes, label, k + u);
        if (next != cluster) {
          if (cluster >= 0) {
            if (shared.starts[cluster] >= begin)
              finish();
            else
              store_head();
          }
          cluster = next;
#pragma unroll
          for (int q = 0; q < Shape::kPerLane; ++q)
            sum[q][0] = sum[q][1] = sum[q][2] = sum[q][3] = 0;
        }
#pragma unroll
        for (int q = 0; q < Shape::kPerLane; ++q) {
          float x[4];
          rows[u].Get(q, x);
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[q][j] += x[j];
        }
      }
    }
  }
  const bool own = cluster >= 0 && shared.starts[cluster] >= begin;
  if (cluster >= 0 && !own) store_head();
  __syncthreads();
  if (own) {
    for (int w = warp + 1; w < kWarps && w * share < shared.starts[cluster + 1]; ++w) {
#pragma unroll
      for (int q = 0; q < Shape::kPerLane; ++q) {
        if (!Shape::Has(q)) continue;
        const float4 more =
            *reinterpret_cast<const float4*>(shared.heads + w * kDim + Shape::Quad(q) * 4);
        sum[q][0] += more.x, sum[q][1] += more.y, sum[q][2] += more.z, sum[q][3] += more.w;
      }
    }
    finish();
  }
  __syncthreads();
}

// Clusters that have members, in their order, and the members.
__device__ void Write(const Build& build, int head, int segment, int count, const Shared& shared) {
  const DeviceIndex& index = build.index;
  const int lane = threadIdx.x & 31;
  uint16_t* starts = index.starts + build.Slot(head, segment, index.slots + 1);
  uint16_t* members = index.members + build.Slot(head, segment, index.segment_size);
  const int lead = build.Lead(segment);
  for (int i = threadIdx.x; i < count; i += kThreads)
    members[i] = static_cast<uint16_t>(lead + shared.order[i]);
  if (threadIdx.x >= 32) return;
  int used = 0;
  for (int c = lane; c - lane < index.slots; c += 32) {
    const bool has = count > 0 && c < index.slots && shared.starts[c + 1] > shared.starts[c];
    const uint32_t all = __ballot_sync(kAllLanes, has);
    if (has) {
      starts[used + __popc(all & ((1u << lane) - 1))] = static_cast<uint16_t>(shared.starts[c]);
    }
    used += __popc(all);
  }
  for (int c = used + lane; c <= index.slots; c += 32) starts[c] = static_cast<uint16_t>(count);
}

template <class Row, int kDim>
__global__ void __launch_bounds__(kThreads, 1) KMeansKernel(const __grid_constant__ Build build) {
  extern __shared__ __align__(16) uint8_t dynamic[];
  const DeviceIndex& index = build.index;
  const Shared shared(dynamic, index.segment_size, index.slots, kDim);
  const int head = blockIdx.x;
  const int segment = build.first_segment + blockIdx.y;
  const int lead = build.Lead(segment);
  const Keys<Row> keys = {build.cache, build.sequence, head, segment * index.segment_size + lead,
                          index.segment_size - lead};
  if (keys.count > 0) {
    const int clusters = max(1, (keys.count + build.cluster_size / 2) / build.cluster_size);
    Begin<Row, kDim>(keys, clusters, index.slots, shared);
    for (int i = 0; i < build.kmeans_iterations; ++i) {
      const bool changed = Assign<Row, kDim>(keys, index.slots, shared);
      if (__syncthreads_or(changed || i == 0) == 0) break;
      Sort(shared, keys.count, index.slots);
      if (i + 1 < build.kmeans_iterations) Update<Row, kDim>(keys, shared);
    }
  }
  Write(build, head, segment, keys.count, shared);
}

}  // namespace

size_t KMeansSharedBytes(int segment_size, int slots, int head_dim) {
  return Shared(nullptr, segment_size, slots, head_dim).bytes;
}

Status LaunchKMeans(const Build& build, Element type, Stream stream) {
  const DeviceIndex& index = build.index;
  const size_t bytes = KMeansSharedBytes(index.segment_size, index.slots, index.head_dim);
  return DispatchRows(type, index.head_dim, [&]<class Row, int kDim>() -> Status {
    const auto kernel = KMeansKernel<Row, kDim>;
    TACTIC_RETURN_IF_ERROR(FromCuda(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory of K-means"));
    kernel<<<dim3(index.kv_heads, build.closed - build.first_segment), kThreads, bytes, stream>>>(
        build);
    return FromCuda(cudaGetLastError(), "launching K-means");
  });
}

}  // namespace tactic::cuda
