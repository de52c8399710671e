// Index: which segments and pages are due, and where they are kept.
//
// All decisions are made here, on the host, from lengths alone; the device is told what it may read
// by the last kernel of every call, so decode steps of a captured graph see an index grow.
#include <algorithm>
#include <string>

#include "src/cuda/build.h"
#include "src/cuda/carver.h"
#include "src/cuda/check.h"
#include "src/cuda/index_access.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/signs.h"

namespace tactic::cuda {
namespace {

BuildBook BookOf(int bits) {
  BuildBook book = {};
  if (bits == 0) return book;
  const CodeBook& from = kCodeBooks[bits];
  book.boundaries = from.magnitudes - 1;
  book.lowest = from.level[0] - kLevelZero;
  for (int b = 0; b < book.boundaries; ++b) {
    book.boundary[b] = from.boundary[b];
    book.rise[b] = static_cast<float>(from.level[b + 1] - from.level[b]);
  }
  return book;
}

Status CurrentDevice(int* device) { return FromCuda(cudaGetDevice(device), "the current device"); }

}  // namespace

struct Index::Impl {
  LayerShape shape;
  Options options;
  int64_t max_tokens = 0;
  int64_t size = 0;
  uint8_t* memory = nullptr;
  size_t bytes = 0;
  DeviceIndex* published = nullptr;
  Build build = {};  // what all launches have in common; build.index is the host's view

  ~Impl() {
    if (memory != nullptr) cudaFree(memory);
  }

  void Carve(Carver* carver) {
    DeviceIndex& index = build.index;
    const size_t segments = static_cast<size_t>(index.kv_heads) * index.segments;
    const size_t slots = segments * index.slots;
    const size_t keys = segments * index.segment_size;
    carver->Take(&published, 1);
    carver->Take(&index.centroids, slots * index.head_dim);
    carver->Take(&index.facts, slots);
    carver->Take(&index.starts, slots + segments);
    carver->Take(&index.members, keys);
    if (index.bits == 0) return;
    carver->Take(&index.key_scales, keys);
    carver->Take(&index.codes, keys / kCodeBlock * CodeBlockBytes(index.head_dim, index.bits));
    carver->Take(&index.means, (slots + segments) * index.head_dim);
    carver->Take(&index.mean_scales, slots + segments);
    carver->Take(&index.errors, segments);
  }

  // Whole segments and pages of the one after them among the first `end` positions.
  void Count(int64_t end, int* closed, int* pages) const {
    const int64_t length = options.segment_size;
    end = std::max<int64_t>(end, 0);
    *closed = static_cast<int>(end / length);
    *pages = options.mode == Mode::kTactic ? static_cast<int>(end % length / Options::kPage) : 0;
  }
};

Index::Index() : impl_(std::make_unique<Impl>()) {}
Index::~Index() = default;

Status Available() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    return Status::Unsupported(std::string("no CUDA device: ") +
                               (error != cudaSuccess ? cudaGetErrorString(error) : "none found"));
  }
  int device = 0;
  TACTIC_RETURN_IF_ERROR(CurrentDevice(&device));
  int major = 0;
  TACTIC_RETURN_IF_ERROR(FromCuda(
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "its capability"));
  constexpr int kOldestMajor = 8;
  if (major < kOldestMajor) {
    return Status::Unsupported("the CUDA device is of compute capability " + std::to_string(major) +
                               ".x; expected 8.0 or newer");
  }
  return Status::Ok();
}

Status Index::Create(const LayerShape& shape, const Options& options, int64_t max_tokens,
                     std::unique_ptr<Index>* index) {
  TACTIC_RETURN_IF_ERROR(Available());
  TACTIC_RETURN_IF_ERROR(CheckShape(shape));
  TACTIC_RETURN_IF_ERROR(CheckIndexOptions(options));
  if (options.mode == Mode::kDense)
    return Status::InvalidArgument("mode is dense; expected one that has an index");
  TACTIC_RETURN_IF_ERROR(CheckMaxTokens(max_tokens));
  std::unique_ptr<Index> made(new Index());
  Impl& impl = *made->impl_;
  impl.shape = shape;
  impl.options = options;
  impl.max_tokens = max_tokens;
  DeviceIndex& view = impl.build.index;
  view.kv_heads = shape.kv_heads;
  view.head_dim = shape.head_dim;
  view.segment_size = options.segment_size;
  view.slots = options.segment_size / options.cluster_size;
  view.segments = static_cast<int>((max_tokens + view.segment_size - 1) / view.segment_size);
  view.bits = CodeBits(options);
  view.sinks = options.sinks;
  impl.build.cluster_size = options.cluster_size;
  impl.build.kmeans_iterations = options.kmeans_iterations;
  impl.build.book = BookOf(view.bits);
  RotationSigns(shape.head_dim, impl.build.signs);

  int device = 0;
  int shared = 0;
  TACTIC_RETURN_IF_ERROR(CurrentDevice(&device));
  TACTIC_RETURN_IF_ERROR(
      FromCuda(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
               "its shared memory"));
  const size_t needed = KMeansSharedBytes(view.segment_size, view.slots, view.head_dim);
  if (needed > static_cast<size_t>(shared)) {
    return Status::Unsupported(
        "segment_size is " + std::to_string(view.segment_size) + " with " +
        std::to_string(view.slots) + " clusters, for which " + std::to_string(needed) +
        " bytes of shared memory are needed; this device has " + std::to_string(shared));
  }

  Carver counter(nullptr);
  impl.Carve(&counter);
  impl.bytes = counter.used();
  TACTIC_RETURN_IF_ERROR(FromCuda(cudaMalloc(&impl.memory, impl.bytes), "an index"));
  TACTIC_RETURN_IF_ERROR(FromCuda(cudaMemset(impl.memory, 0, impl.bytes), "an index"));
  Carver carver(impl.memory);
  impl.Carve(&carver);
  impl.build.published = impl.published;
  TACTIC_RETURN_IF_ERROR(FromCuda(
      cudaMemcpy(impl.published, &view, sizeof(view), cudaMemcpyHostToDevice), "an index"));
  // The caller's stream may be one that does not wait for the default one.
  TACTIC_RETURN_IF_ERROR(FromCuda(cudaStreamSynchronize(nullptr), "an index"));
  *index = std::move(made);
  return Status::Ok();
}

Status Index::Append(const KvCache& cache, int sequence, int64_t n, Stream stream) {
  Impl& impl = *impl_;
  if (n < impl.size || n > impl.max_tokens) {
    return Status::OutOfRange("n is " + std::to_string(n) +
                              "; expected a number of positions from " + std::to_string(impl.size) +
                              " to " + std::to_string(impl.max_tokens));
  }
  if (sequence < 0) {
    return Status::InvalidArgument("sequence is " + std::to_string(sequence) +
                                   "; expected 0 or more");
  }
  Build build = impl.build;
  TACTIC_RETURN_IF_ERROR(MakeCacheView(cache, impl.shape.head_dim, &build.cache));
  if (cache.block_table != nullptr && n > int64_t{cache.max_blocks} * cache.page_size) {
    return Status::InvalidArgument("n is " + std::to_string(n) + ", of which cache has only " +
                                   std::to_string(int64_t{cache.max_blocks} * cache.page_size) +
                                   " positions");
  }
  const bool fp8 = cache.type == Element::kE4M3;
  build.sequence = sequence;
  build.key_unit = fp8 ? cache.key_scale * kE4M3Unit : 1.0f;
  build.value_unit = fp8 ? cache.value_scale * kE4M3Unit : 1.0f;

  // What a Truncate left may be more than a fresh index of n positions would have.
  const DeviceIndex& view = impl.build.index;
  impl.Count(n - impl.options.recent, &build.closed, &build.pages);
  build.first_segment = view.closed;
  build.first_page = view.pages;
  if (build.closed > view.closed) {
    build.first_page = 0;
  } else {
    const bool same = build.closed == view.closed;
    build.closed = view.closed;
    build.pages = same ? std::max(view.pages, build.pages) : view.pages;
  }
  if (build.closed > build.first_segment)
    TACTIC_RETURN_IF_ERROR(LaunchKMeans(build, cache.type, stream));
  if (build.closed > build.first_segment || build.pages > build.first_page) {
    TACTIC_RETURN_IF_ERROR(LaunchEncode(build, cache.type, stream));
    TACTIC_RETURN_IF_ERROR(LaunchPublish(build, stream));
  }
  impl.build.index.closed = build.closed;
  impl.build.index.pages = build.pages;
  impl.size = n;
  return Status::Ok();
}

Status Index::Truncate(int64_t n, Stream stream) {
  Impl& impl = *impl_;
  if (n < 0 || n > impl.size) {
    return Status::OutOfRange("n is " + std::to_string(n) +
                              "; expected a number of positions from 0 to " +
                              std::to_string(impl.size));
  }
  Build build = impl.build;
  const DeviceIndex& view = impl.build.index;
  impl.Count(n, &build.closed, &build.pages);
  if (build.closed < view.closed) {
    build.pages = 0;  // the segment that is open now was a closed one, which has no pages
  } else {
    build.pages = build.closed == view.closed ? std::min(view.pages, build.pages) : view.pages;
    build.closed = view.closed;
  }
  build.first_segment = build.closed;
  if (build.closed != view.closed || build.pages != view.pages)
    TACTIC_RETURN_IF_ERROR(LaunchPublish(build, stream));
  impl.build.index.closed = build.closed;
  impl.build.index.pages = build.pages;
  impl.size = n;
  return Status::Ok();
}

int64_t Index::size() const { return impl_->size; }
size_t Index::MemoryBytes() const { return impl_->bytes; }
const void* Index::device_view() const { return impl_->published; }

const DeviceIndex& IndexAccess::host_view(const Index& index) { return index.impl_->build.index; }

}  // namespace tactic::cuda
