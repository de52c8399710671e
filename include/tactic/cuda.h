// Tactic on NVIDIA GPUs: one layer's attention for one new token of every sequence of a batch.
//
// Everything is device memory of the caller's or of an object here, and work is enqueued on the
// caller's stream: no call waits for the device, and no decode step allocates, so a step can be
// captured into a CUDA graph and replayed while lengths grow.
//
//   Index    what is indexed of one sequence in one layer: clusters, codes, means of values
//   Decoder  the buffers of a step, shared by all layers and steps of one stream
//
// Compute capability 8.0 or newer. Where the library was built without CUDA or no such device is
// there, every fallible function returns Unsupported.
//
// Thread safety: objects of their own may be used concurrently; an Index is written by Append and
// read by Decode, ordered as their streams are.
#ifndef TACTIC_CUDA_H_
#define TACTIC_CUDA_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "tactic/options.h"
#include "tactic/shape.h"
#include "tactic/status.h"

struct CUstream_st;  // cudaStream_t is a pointer to one

namespace tactic::cuda {

using Stream = CUstream_st*;

// OK when the current device can run this library; else why it cannot.
Status Available();

// The defaults of a mode on a GPU: those of Options::For but for segments of 2048 positions with 64
// clusters, and codes of 2 bits, which a GPU reads fastest.
Options OptionsFor(Mode mode);

// Element types of keys and values (e4m3: 8-bit floats, times a scale per tensor) and of queries
// and outputs (not e4m3).
enum class Element : uint8_t { kF32 = 0, kF16 = 1, kBF16 = 2, kE4M3 = 3 };

// Where an engine keeps the keys and values of one layer, in device memory. The row of position p
// of sequence s and KV head h starts at element
//
//   paged       block_table[s * max_blocks + p / page_size] * block_stride
//                 + (p % page_size) * row_stride + h * head_stride
//   contiguous  s * block_stride + p * row_stride + h * head_stride       (block_table is null)
//
// of `keys` and of `values`. Rows are contiguous and start at multiples of 16 bytes.
struct KvCache {
  const void* keys = nullptr;
  const void* values = nullptr;
  Element type = Element::kBF16;  // kF16, kBF16 or kE4M3
  float key_scale = 1;            // kE4M3: what stored numbers are to be multiplied by
  float value_scale = 1;
  int64_t block_stride = 0;  // elements
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  const int32_t* block_table = nullptr;  // [batch][max_blocks], device
  int32_t max_blocks = 0;
  int32_t page_size = 0;  // a power of two; ignored when contiguous
};

// What is indexed of one sequence in one layer. Append builds it; memory is taken for `max_tokens`
// when it is made.
class Index {
 public:
  // REQUIRES of shape: head_dim == value_dim, one of 64, 96, 128, 256; group at most 16. Of
  // options: cluster_size <= 32; segment_size in [256, 8192] and 8, 16, ... or 256 times as large;
  // kClusters. InvalidArgument or Unsupported names what is wrong.
  static Status Create(const LayerShape& shape, const Options& options, int64_t max_tokens,
                       std::unique_ptr<Index>* index);
  ~Index();

  // Indexes what positions [0, n) allow, from where the last call ended: whole segments and, in
  // mode tactic, whole pages of the open one. `sequence` is the row of the cache's block table.
  // OutOfRange when n is less than before or more than max_tokens.
  Status Append(const KvCache& cache, int sequence, int64_t n, Stream stream);

  // Keeps the first n positions; the cache's rows of what is kept must not have changed. OutOfRange
  // unless 0 <= n <= size().
  Status Truncate(int64_t n, Stream stream);

  int64_t size() const;
  size_t MemoryBytes() const;
  // The device's view of it, for the array that Decode takes. It does not change while the object
  // lives.
  const void* device_view() const;

 private:
  Index();
  friend class Decoder;
  friend struct IndexAccess;  // src/cuda: tests read and write what is stored
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What a decode step is to do, besides the layer's shape and options. All pointers are the
// device's.
struct DecodeRequest {
  int batch = 0;
  const void* q = nullptr;  // [batch][q_heads][head_dim], at a multiple of 16 bytes
  Element q_type = Element::kBF16;
  void* out = nullptr;  // [batch][q_heads][head_dim]
  Element out_type = Element::kBF16;
  KvCache cache;
  // [batch]: visible positions of each sequence, the new one's too. One of 0 leaves its output, and
  // what reports() and SelectedRows() say of it, as they are.
  const int32_t* lengths = nullptr;
  // [batch]: Index::device_view() of each sequence; a null entry, or no array, is read densely.
  const void* const* indexes = nullptr;
  float scale = 1;    // logits are q . k * scale
  float softcap = 0;  // > 0: logits become softcap * tanh(logit / softcap)
  // The lengths that this launch (and every replay of a graph it is captured in) may see are at
  // most this. Below `dense_below` one kernel does the step.
  int64_t max_length = 0;
  // Sequences with fewer visible positions are read densely, each by itself. -1:
  // Options::dense_below, or more, where a selection was measured to be no faster for a batch and a
  // shape like this.
  int64_t dense_below = -1;
};

// What one query head did in the last step; [batch][q_head] in device memory.
struct DeviceReport {
  int32_t own_rows = 0;    // rows of its own selection, always-attended ones included
  int32_t union_rows = 0;  // rows its group read
  float own_lse = 0;       // log of the sum of exp(logit) over its own selection
  float union_lse = 0;     // the same over what its group read
  float p_hat = 0;         // mode tactic: the mass that its own selection is believed to hold
  int32_t rounds = 0;      // mode tactic: times the selection was extended
};

class Decoder {
 public:
  // Buffers for steps of up to max_batch sequences of up to max_tokens positions each.
  // InvalidArgument names what is wrong. All positions of all KV heads, max_tokens rounded up to
  // whole segments, are fewer than 2^32, unless the mode is dense.
  static Status Create(const LayerShape& shape, const Options& options, int max_batch,
                       int64_t max_tokens, std::unique_ptr<Decoder>* decoder);
  ~Decoder();

  // Enqueues one step. InvalidArgument names what is wrong with the request.
  Status Decode(const DecodeRequest& request, Stream stream);

  // [max_batch][q_heads], device memory; of the last step.
  const DeviceReport* reports() const;
  size_t WorkspaceBytes() const;

  // Positions that KV head `kv_head` of sequence `sequence` read in the last step, ascending; waits
  // for the device. For tests and tools.
  Status SelectedRows(int sequence, int kv_head, std::vector<int32_t>* rows) const;

 private:
  Decoder();
  friend struct DecoderAccess;  // src/cuda: tests look at what the stages left
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tactic::cuda

#endif  // TACTIC_CUDA_H_
