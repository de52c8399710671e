// What is stored of a cluster and of its keys beside who they are; codes.h has the format, and
// encode.cc does the same on a CPU.
//
// One block describes one cluster, or one page of the open segment: its warps take turns with the
// members. First the means of keys and values, then, with the centroid as it is stored, the
// residuals: their spreads, and the code of each. All is f32, added in a fixed order.
//
// Pages of segment 0 begin at multiples of kPage without the sinks, so the codes of two pages may
// share a block of kCodeBlock keys. A key's codes are words of its own, of which each is written
// once.
#include <algorithm>

#include "src/cuda/build.h"
#include "src/cuda/dispatch.h"
#include "src/cuda/encode_key.cuh"
#include "src/cuda/launch.cuh"
#include "src/cuda/quads.cuh"

namespace tactic::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;

// Members [begin, end) of a segment, `page`: in their own order, else in that of index.members.
template <class Row>
struct Members {
  const Build& build;
  int head;
  int segment;
  int begin;
  int end;
  bool page;
  const uint16_t* list;

  __device__ __forceinline__ int64_t Offset(int i) const {
    const int from_start = page ? i + build.Lead(segment) : list[i];
    return build.cache.Offset(build.cache.Rows(build.sequence, head),
                              segment * build.index.segment_size + from_start);
  }
  // Calls f(offsets in bytes, numbers of the members, how many) for this warp's members, kAtOnce at
  // a time; what is beyond `how many` repeats the last.
  template <int kAtOnce, class F>
  __device__ __forceinline__ void ForEach(const F& f) const {
    const int lane = threadIdx.x & 31;
    for (int first = begin + static_cast<int>(threadIdx.x >> 5); first < end; first += kThreads) {
      const int count = min(32, (end - first + kWarps - 1) / kWarps);
      const long long mine = Offset(first + kWarps * min(lane, count - 1)) * Row::kBytes;
#pragma unroll 1
      for (int k = 0; k < count; k += kAtOnce) {
        int64_t at[kAtOnce];
        int member[kAtOnce];
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          const int from = min(k + u, count - 1);
          at[u] = __shfl_sync(kAllLanes, mine, from);
          member[u] = first + kWarps * from;
        }
        f(at, member, min(kAtOnce, count - k));
      }
    }
  }
};

template <int kDim>
struct EncodeShared {
  float sums[kWarps][2][kDim];  // of keys and values; later, of squares of residuals, the first
  float stored[kDim];           // the centroid
  float longest[kWarps];
  float all[kWarps];
  uint16_t scale;
};

// Mean of a cluster's keys (or values) from the warps' sums, in bytes. One warp.
template <int kDim>
__device__ uint16_t StoreMean(const EncodeShared<kDim>& shared, int which, float unit, int size,
                              int8_t* to, float* stored, int* unfit) {
  using Shape = QuadShape<kDim>;
  float mean[Shape::kPerLane][4] = {};
  float most = 0;
  bool finite = true;
#pragma unroll
  for (int i = 0; i < Shape::kPerLane; ++i) {
    if (!Shape::Has(i)) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int x = Shape::Quad(i) * 4 + j;
      const float sum = (shared.sums[0][which][x] + shared.sums[1][which][x]) +
                        (shared.sums[2][which][x] + shared.sums[3][which][x]);
      mean[i][j] = sum / static_cast<float>(size) * unit;
      finite = finite && IsFinite(mean[i][j]);
      most = fmaxf(most, fabsf(mean[i][j]));
    }
  }
  const __half half = StepFor(WarpMax(most));
  const float step = __half2float(half);
  if (!finite || !IsFinite(step)) *unfit = 1;
#pragma unroll
  for (int i = 0; i < Shape::kPerLane; ++i) {
    if (!Shape::Has(i)) continue;
    char4 bytes;
    bytes.x = static_cast<signed char>(ByteOf(mean[i][0], step));
    bytes.y = static_cast<signed char>(ByteOf(mean[i][1], step));
    bytes.z = static_cast<signed char>(ByteOf(mean[i][2], step));
    bytes.w = static_cast<signed char>(ByteOf(mean[i][3], step));
    const int at = Shape::Quad(i) * 4;
    *reinterpret_cast<char4*>(to + at) = bytes;
    if (stored != nullptr) {
      *reinterpret_cast<float4*>(stored + at) = {
          step * static_cast<float>(bytes.x), step * static_cast<float>(bytes.y),
          step * static_cast<float>(bytes.z), step * static_cast<float>(bytes.w)};
    }
  }
  return __half_as_ushort(half);
}

// Sums of the keys and values that fall to this warp.
template <class Row, int kDim>
__device__ void SumMembers(const Members<Row>& members, EncodeShared<kDim>& shared) {
  using Shape = QuadShape<kDim>;
  constexpr int kAtOnce = kDim <= 128 ? 8 : 4;
  const auto* keys = static_cast<const uint8_t*>(members.build.cache.keys);
  const auto* values = static_cast<const uint8_t*>(members.build.cache.values);
  const bool both = members.build.index.bits != 0;
  float sums[2][Shape::kPerLane][4] = {};
  members.template ForEach<kAtOnce>(
      [&](const int64_t (&at)[kAtOnce], const int (&)[kAtOnce], int count) {
        QuadRow<Row, kDim> rows[2][kAtOnce];
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          rows[0][u].Load(keys + at[u]);
          if (both)
            rows[1][u].Load(values + at[u]);
          else
            rows[1][u] = {};
        }
#pragma unroll
        for (int which = 0; which < 2; ++which) {
#pragma unroll
          for (int i = 0; i < Shape::kPerLane; ++i) {
            // Few are added at a time: sums of thousands of terms would show their rounding.
            float part[4] = {};
#pragma unroll
            for (int u = 0; u < kAtOnce; ++u) {
              if (u >= count) break;
              float x[4];
              rows[which][u].Get(i, x);
#pragma unroll
              for (int j = 0; j < 4; ++j) part[j] += x[j];
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) sums[which][i][j] += part[j];
          }
        }
      });
#pragma unroll
  for (int which = 0; which < 2; ++which) {
#pragma unroll
    for (int i = 0; i < Shape::kPerLane; ++i) {
      if (!Shape::Has(i)) continue;
      const float (&s)[4] = sums[which][i];
      *reinterpret_cast<float4*>(&shared.sums[threadIdx.x >> 5][which][Shape::Quad(i) * 4]) = {
          s[0], s[1], s[2], s[3]};
    }
  }
}

// Codes of the keys that fall to this warp; squares of residuals for the cluster's facts.
template <class Row, int kDim>
__device__ void CodeMembers(const Members<Row>& members, EncodeShared<kDim>& shared, int* unfit) {
  using Shape = QuadShape<kDim>;
  constexpr int kAtOnce = kDim <= 128 ? 4 : 2;  // that hide each other's latencies
  const Build& build = members.build;
  const DeviceIndex& index = build.index;
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const auto* keys = static_cast<const uint8_t*>(build.cache.keys);
  const int64_t first = build.Slot(members.head, members.segment, index.segment_size);
  const int64_t block_bytes = static_cast<int64_t>(CodeBlockBytes(kDim, index.bits));
  uint8_t* codes = index.codes + first / kCodeBlock * block_bytes;
  const Rotation<kDim> rotation(build.signs);
  float stored[Shape::kPerLane][4] = {};
#pragma unroll
  for (int i = 0; i < Shape::kPerLane; ++i) {
    if (!Shape::Has(i)) continue;
    const float4 four = *reinterpret_cast<const float4*>(&shared.stored[Shape::Quad(i) * 4]);
    stored[i][0] = four.x, stored[i][1] = four.y, stored[i][2] = four.z, stored[i][3] = four.w;
  }
  float squares[Shape::kPerLane][4] = {};
  float longest = 0;
  float all = 0;
  bool fits = true;
  members.template ForEach<kAtOnce>([&](const int64_t (&at)[kAtOnce], const int (&member)[kAtOnce],
                                        int count) {
    QuadRow<Row, kDim> rows[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) rows[u].Load(keys + at[u]);
    float y[kAtOnce][Shape::kPerLane][4];
    float square[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      square[u] = 0;
#pragma unroll
      for (int i = 0; i < Shape::kPerLane; ++i) {
        rows[u].Get(i, y[u][i]);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float residual =
              Shape::Has(i) ? fmaf(y[u][i][j], build.key_unit, -stored[i][j]) : 0.0f;
          y[u][i][j] = residual;
          square[u] += residual * residual;
          if (u < count) squares[i][j] += residual * residual;
        }
      }
    }
    float along[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      square[u] = WarpSum(square[u]);
      rotation.Apply(y[u]);
      along[u] = Code<kDim>(build.book, index.bits, y[u], square[u], u < count,
                            codes + member[u] / kCodeBlock * block_bytes, member[u] % kCodeBlock);
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      along[u] = WarpSum(along[u]);
      if (u >= count) break;
      longest = fmaxf(longest, square[u]);
      all += square[u];
      const float scale = along[u] > 0 ? square[u] / along[u] : 0;
      // Not so, too, where a key is NaN.
      fits = fits && IsFinite(square[u]) && scale <= kLargestByteFloat;
      if (lane == 0) index.key_scales[first + member[u]] = ToByteFloat(scale);
    }
  });
  if (!fits && lane == 0) *unfit = 1;
  if (lane == 0) {
    shared.longest[warp] = longest;
    shared.all[warp] = all;
  }
#pragma unroll
  for (int i = 0; i < Shape::kPerLane; ++i) {
    if (!Shape::Has(i)) continue;
    const float (&s)[4] = squares[i];
    *reinterpret_cast<float4*>(&shared.sums[warp][0][Shape::Quad(i) * 4]) = {s[0], s[1], s[2],
                                                                             s[3]};
  }
}

template <int kDim>
__device__ void WriteFacts(const EncodeShared<kDim>& shared, int size, bool coded,
                           ClusterFacts* facts) {
  const int thread = threadIdx.x;
  if (thread < kRuns) {
    constexpr int kRun = kDim / kRuns;
    float sum = 0;
    if (coded) {
      for (int x = thread * kRun; x < (thread + 1) * kRun; ++x) {
        for (int w = 0; w < kWarps; ++w) sum += shared.sums[w][0][x];
      }
    }
    facts->spreads[thread] = ToByteFloat(sqrtf(sum / static_cast<float>(size * kRun)));
  } else if (thread == kRuns) {
    float longest = 0;
    float all = 0;
    if (coded) {
      for (int w = 0; w < kWarps; ++w) {
        longest = fmaxf(longest, shared.longest[w]);
        all += shared.all[w];
      }
    }
    const float ratio = all > 0 ? sqrtf(longest / (all / static_cast<float>(size))) : 1.0f;
    facts->longest = coded ? ToByteFloat(ratio) : 0;
    facts->unused = 0;
    facts->scale = shared.scale;
  }
}

// Zeros for a slot without members.
template <int kDim>
__device__ void ClearSlot(const Build& build, int64_t slot, int64_t mean_slot) {
  const DeviceIndex& index = build.index;
  for (int x = threadIdx.x; x < kDim; x += kThreads) {
    index.centroids[slot * kDim + x] = 0;
    if (index.bits != 0) index.means[mean_slot * kDim + x] = 0;
  }
  if (threadIdx.x == 0) {
    index.facts[slot] = {};
    if (index.bits != 0) index.mean_scales[mean_slot] = 0;
  }
}

// Who a page's members are. The last page's block also says that later slots have none.
__device__ void WritePage(const Build& build, int head, int page, int begin, int end) {
  const DeviceIndex& index = build.index;
  uint16_t* starts = index.starts + build.Slot(head, build.closed, index.slots + 1);
  uint16_t* members = index.members + build.Slot(head, build.closed, index.segment_size);
  const int lead = build.Lead(build.closed);
  if (threadIdx.x == 0) starts[page] = static_cast<uint16_t>(begin);
  if (page == build.pages - 1) {
    for (int c = page + 1 + threadIdx.x; c <= index.slots; c += kThreads)
      starts[c] = static_cast<uint16_t>(end);
  }
  for (int i = begin + threadIdx.x; i < end; i += kThreads)
    members[i] = static_cast<uint16_t>(lead + i);
}

// Zeros behind the last key, up to the end of its block.
template <int kDim>
__device__ void PadCodes(const Build& build, int head, int segment, int end) {
  const DeviceIndex& index = build.index;
  const int64_t first = build.Slot(head, segment, index.segment_size);
  const int key = end % kCodeBlock + threadIdx.x;
  if (end % kCodeBlock == 0 || key >= kCodeBlock) return;
  const int64_t block = (first + end) / kCodeBlock;
  const int rows = static_cast<int>(CodeRows(kDim, index.bits));
  uint8_t* codes = index.codes + block * rows * static_cast<int64_t>(kCodeRow);
  for (int row = 0; row < rows; ++row)
    *reinterpret_cast<uint32_t*>(codes + row * kCodeRow + 4 * key) = 0;
  index.key_scales[block * kCodeBlock + key] = 0;
}

template <class Row, int kDim>
__global__ void __launch_bounds__(kThreads)
    EncodeKernel(const __grid_constant__ Build build, int first_cluster) {
  __shared__ __align__(16) EncodeShared<kDim> shared;
  const DeviceIndex& index = build.index;
  const int cluster = first_cluster + blockIdx.x;
  const int head = blockIdx.y;
  const int segment = build.first_segment + blockIdx.z;
  const bool page = segment == build.closed;
  if (page && (cluster < build.first_page || cluster >= build.pages)) return;
  const int lead = build.Lead(segment);
  const int64_t slot = build.Slot(head, segment, index.slots) + cluster;
  const int64_t mean_slot = build.Slot(head, segment, index.slots + 1) + cluster;
  Members<Row> members = {build,
                          head,
                          segment,
                          0,
                          0,
                          page,
                          index.members + build.Slot(head, segment, index.segment_size)};
  int last;  // where the segment's members end
  if (page) {
    members.begin = max(0, cluster * Options::kPage - lead);
    members.end = max(0, (cluster + 1) * Options::kPage - lead);
    last = build.pages * Options::kPage - lead;
    WritePage(build, head, cluster, members.begin, members.end);
  } else {
    members.begin = index.starts[mean_slot];
    members.end = index.starts[mean_slot + 1];
    last = index.segment_size - lead;
  }
  const int size = members.end - members.begin;
  if (size == 0) return ClearSlot<kDim>(build, slot, mean_slot);

  int* unfit = build.published->unfit + head;
  const bool coded = index.bits != 0;
  SumMembers<Row, kDim>(members, shared);
  __syncthreads();
  if (threadIdx.x < 32) {
    const uint16_t scale = StoreMean<kDim>(shared, 0, build.key_unit, size,
                                           index.centroids + slot * kDim, shared.stored, unfit);
    if (threadIdx.x == 0) shared.scale = scale;
  } else if (threadIdx.x < 64 && coded) {
    const uint16_t scale = StoreMean<kDim>(shared, 1, build.value_unit, size,
                                           index.means + mean_slot * kDim, nullptr, unfit);
    if (threadIdx.x == 32) index.mean_scales[mean_slot] = scale;
  }
  __syncthreads();
  if (coded) CodeMembers<Row, kDim>(members, shared, unfit);
  __syncthreads();
  WriteFacts<kDim>(shared, size, coded, index.facts + slot);
  if (coded && members.end == last) PadCodes<kDim>(build, head, segment, last);
}

// Of whole segments (of the open one: of its pages), means of their values, from those of their
// clusters as they are stored, and the mean error of their codes; one thread for each element. The
// first block also publishes what is built: later kernels of the stream see it. `element_error`:
// CodeBook::error.
__global__ void PublishKernel(const __grid_constant__ Build build, float element_error) {
  constexpr int kMostWarps = 8;
  __shared__ float most_of[kMostWarps];
  __shared__ float squares_of[kMostWarps];
  const DeviceIndex& index = build.index;
  const int head = blockIdx.x;
  const int x = threadIdx.x;
  if (head == 0 && blockIdx.y == 0) {
    const bool nothing = build.closed == 0 && build.pages == 0;
    if (x == 0) {
      build.published->closed = build.closed;
      build.published->pages = build.pages;
    }
    if (nothing && x < kMaxKvHeads) build.published->unfit[x] = 0;
  }
  const int segment = build.first_segment + blockIdx.y;
  const int clusters = segment == build.closed ? build.pages : index.slots;
  if (index.bits == 0 || clusters == 0) return;
  const int64_t slot = build.Slot(head, segment, index.slots + 1);
  const uint16_t* starts = index.starts + slot;
  const int dim = blockDim.x;
  float sum = 0;
  for (int c = 0; c < clusters; ++c) {
    const float weight = __half2float(__ushort_as_half(index.mean_scales[slot + c])) *
                         static_cast<float>(starts[c + 1] - starts[c]);
    sum += weight * static_cast<float>(index.means[(slot + c) * dim + x]);
  }
  const int keys = starts[clusters];
  const float mean = sum / static_cast<float>(max(1, keys));
  float most = WarpMax(fabsf(mean));
  const uint8_t* scales = index.key_scales + build.Slot(head, segment, index.segment_size);
  float squares = 0;
  for (int i = x; i < keys; i += dim) {
    const float scale = FromByteFloat(scales[i]);
    squares += scale * scale;
  }
  squares = WarpSum(squares);
  if ((x & 31) == 0) {
    most_of[x >> 5] = most;
    squares_of[x >> 5] = squares;
  }
  __syncthreads();
  for (int w = 0; w < dim / 32; ++w) most = fmaxf(most, most_of[w]);
  if (x == 0) {
    for (int w = 1; w < dim / 32; ++w) squares += squares_of[w];
    index.errors[build.Slot(head, segment, 1)] =
        element_error * squares / static_cast<float>(max(1, keys));
  }
  const __half half = StepFor(most);
  index.means[(slot + index.slots) * dim + x] =
      static_cast<int8_t>(ByteOf(mean, __half2float(half)));
  if (x == 0) index.mean_scales[slot + index.slots] = __half_as_ushort(half);
}

}  // namespace

Status LaunchEncode(const Build& build, Element type, Stream stream) {
  const DeviceIndex& index = build.index;
  const int segments = build.closed - build.first_segment;
  const bool pages = build.pages > build.first_page;
  // A grid has a block for every slot of every segment, or for the new pages alone.
  const int first = segments > 0 ? 0 : build.first_page;
  const int count = segments > 0 ? index.slots : build.pages - build.first_page;
  return DispatchRows(type, index.head_dim, [&]<class Row, int kDim>() -> Status {
    EncodeKernel<Row, kDim>
        <<<dim3(count, index.kv_heads, segments + (pages ? 1 : 0)), kThreads, 0, stream>>>(build,
                                                                                           first);
    return FromCuda(cudaGetLastError(), "launching the encoder");
  });
}

Status LaunchPublish(const Build& build, Stream stream) {
  const DeviceIndex& index = build.index;
  const int segments = build.closed - build.first_segment + (build.pages > 0 ? 1 : 0);
  PublishKernel<<<dim3(index.kv_heads, std::max(1, segments)), index.head_dim, 0, stream>>>(
      build, kCodeBooks[index.bits].error);
  return FromCuda(cudaGetLastError(), "publishing an index");
}

}  // namespace tactic::cuda
