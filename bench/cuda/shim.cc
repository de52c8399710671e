// tactic/cuda.h as C functions on plain pointers, for bench/cuda/library.py.
//
// Every function that can fail returns the number of a StatusCode, 0 when all is well, and leaves a
// sentence that tactic_bench_error() returns to the same thread. Streams and device memory are the
// caller's, passed as pointers. Compiled as CUDA it also says what a step sampled and kept, which
// the public header does not.
#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tactic/cuda.h"

#ifdef __CUDACC__
#include "src/cuda/decoder_access.h"
#endif

#define TACTIC_BENCH_API extern "C" __attribute__((visibility("default")))

// Mirrored by library.py: order and types of fields are part of the interface.
struct tactic_bench_cache {
  const void* keys;
  const void* values;
  int64_t block_stride;  // elements, as in KvCache
  int64_t row_stride;
  int64_t head_stride;
  const int32_t* block_table;
  int32_t max_blocks;
  int32_t page_size;
  int32_t type;  // of tactic::cuda::Element
  float key_scale;
  float value_scale;
};

struct tactic_bench_request {
  const void* q;
  void* out;
  const int32_t* lengths;
  const void* const* indexes;
  int64_t max_length;
  int32_t batch;
  int32_t q_type;
  int32_t out_type;
  float scale;
};

// What of a policy decides how many bytes its index and its steps read.
struct tactic_bench_facts {
  int32_t mode;
  int32_t segment_size;
  int32_t cluster_size;
  int32_t bits;
  int32_t sinks;
  int32_t recent;
  int32_t dense_below;
  int32_t tail;
  double target;
};

namespace {

using tactic::LayerShape;
using tactic::Mode;
using tactic::Options;
using tactic::Status;
using tactic::StatusCode;
using tactic::cuda::Decoder;
using tactic::cuda::Element;
using tactic::cuda::Index;
using tactic::cuda::KvCache;
using tactic::cuda::Stream;

thread_local std::string last_error;

int Return(const Status& status) {
  if (!status.ok()) last_error = status.message();
  return static_cast<int>(status.code());
}

// Exceptions (of allocations, of std::stod) must not reach C.
template <class F>
int Guard(F call) {
  try {
    return Return(call());
  } catch (const std::exception& error) {
    return Return(Status::Internal(error.what()));
  }
}

Status Set(std::string_view name, double value, Options* options) {
  const auto whole = [&] { return static_cast<int>(value); };
  if (name == "target") {
    options->target = value;
  } else if (name == "cluster_size") {
    options->cluster_size = whole();
  } else if (name == "kmeans_iterations") {
    options->kmeans_iterations = whole();
  } else if (name == "segment_size") {
    options->segment_size = whole();
  } else if (name == "sinks") {
    options->sinks = whole();
  } else if (name == "recent") {
    options->recent = whole();
  } else if (name == "bits") {
    options->bits = whole();
  } else if (name == "skip_share") {
    options->skip_share = value;
  } else if (name == "skip_token") {
    options->skip_token = value;
  } else if (name == "unread_margin") {
    options->unread_margin = value;
  } else if (name == "skipped_margin") {
    options->skipped_margin = value;
  } else if (name == "rounds") {
    options->rounds = whole();
  } else if (name == "tail") {
    options->tail = value != 0;
  } else if (name == "dense_share") {
    options->dense_share = value;
  } else if (name == "head_share") {
    options->head_share = value;
  } else if (name == "near_window") {
    options->near_window = value;
  } else if (name == "far_window") {
    options->far_window = value;
  } else if (name == "window_share") {
    options->window_share = value;
  } else if (name == "dense_below") {
    options->dense_below = whole();
  } else {
    return Status::InvalidArgument("'" + std::string(name) + "' is no field of Options");
  }
  return Status::Ok();
}

// "mode:field=value:field=value", on top of the mode's defaults on a GPU.
Status ParsePolicy(std::string_view text, Options* options) {
  const auto next = [&] {
    const size_t colon = std::min(text.find(':'), text.size());
    const std::string_view part = text.substr(0, colon);
    text.remove_prefix(std::min(colon + 1, text.size()));
    return part;
  };
  Mode mode = Mode::kDense;
  TACTIC_RETURN_IF_ERROR(tactic::ParseMode(next(), &mode));
  *options = tactic::cuda::OptionsFor(mode);
  while (!text.empty()) {
    const std::string_view part = next();
    const size_t equals = part.find('=');
    if (equals == std::string_view::npos)
      return Status::InvalidArgument("'" + std::string(part) + "' is not field=value");
    const double value = std::stod(std::string(part.substr(equals + 1)));
    TACTIC_RETURN_IF_ERROR(Set(part.substr(0, equals), value, options));
  }
  return options->Validate();
}

KvCache CacheOf(const tactic_bench_cache& from) {
  KvCache cache;
  cache.keys = from.keys;
  cache.values = from.values;
  cache.type = static_cast<Element>(from.type);
  cache.key_scale = from.key_scale;
  cache.value_scale = from.value_scale;
  cache.block_stride = from.block_stride;
  cache.row_stride = from.row_stride;
  cache.head_stride = from.head_stride;
  cache.block_table = from.block_table;
  cache.max_blocks = from.max_blocks;
  cache.page_size = from.page_size;
  return cache;
}

LayerShape ShapeOf(int q_heads, int kv_heads, int head_dim) {
  return {q_heads, kv_heads, head_dim, head_dim};
}

}  // namespace

// Of the last call of this thread that failed.
TACTIC_BENCH_API const char* tactic_bench_error() { return last_error.c_str(); }

TACTIC_BENCH_API int tactic_bench_available() {
  return Guard([] { return tactic::cuda::Available(); });
}

TACTIC_BENCH_API int tactic_bench_policy(const char* policy, tactic_bench_facts* facts) {
  return Guard([&] {
    Options options;
    TACTIC_RETURN_IF_ERROR(ParsePolicy(policy, &options));
    *facts = {static_cast<int32_t>(options.mode),
              options.segment_size,
              options.cluster_size,
              options.mode == Mode::kTactic ? options.bits : 0,
              options.sinks,
              options.recent,
              options.dense_below,
              options.tail ? 1 : 0,
              options.target};
    return Status::Ok();
  });
}

TACTIC_BENCH_API int tactic_bench_index_create(int q_heads, int kv_heads, int head_dim,
                                               const char* policy, int64_t max_tokens,
                                               Index** index) {
  return Guard([&] {
    Options options;
    TACTIC_RETURN_IF_ERROR(ParsePolicy(policy, &options));
    std::unique_ptr<Index> made;
    TACTIC_RETURN_IF_ERROR(
        Index::Create(ShapeOf(q_heads, kv_heads, head_dim), options, max_tokens, &made));
    *index = made.release();
    return Status::Ok();
  });
}

TACTIC_BENCH_API void tactic_bench_index_destroy(Index* index) { delete index; }

TACTIC_BENCH_API int tactic_bench_index_append(Index* index, const tactic_bench_cache* cache,
                                               int sequence, int64_t n, Stream stream) {
  return Guard([&] { return index->Append(CacheOf(*cache), sequence, n, stream); });
}

TACTIC_BENCH_API int tactic_bench_index_truncate(Index* index, int64_t n, Stream stream) {
  return Guard([&] { return index->Truncate(n, stream); });
}

TACTIC_BENCH_API int64_t tactic_bench_index_size(const Index* index) { return index->size(); }

TACTIC_BENCH_API int64_t tactic_bench_index_bytes(const Index* index) {
  return static_cast<int64_t>(index->MemoryBytes());
}

TACTIC_BENCH_API const void* tactic_bench_index_view(const Index* index) {
  return index->device_view();
}

TACTIC_BENCH_API int tactic_bench_decoder_create(int q_heads, int kv_heads, int head_dim,
                                                 const char* policy, int max_batch,
                                                 int64_t max_tokens, Decoder** decoder) {
  return Guard([&] {
    Options options;
    TACTIC_RETURN_IF_ERROR(ParsePolicy(policy, &options));
    std::unique_ptr<Decoder> made;
    TACTIC_RETURN_IF_ERROR(Decoder::Create(ShapeOf(q_heads, kv_heads, head_dim), options, max_batch,
                                           max_tokens, &made));
    *decoder = made.release();
    return Status::Ok();
  });
}

TACTIC_BENCH_API void tactic_bench_decoder_destroy(Decoder* decoder) { delete decoder; }

TACTIC_BENCH_API int tactic_bench_decode(Decoder* decoder, const tactic_bench_cache* cache,
                                         const tactic_bench_request* request, Stream stream) {
  return Guard([&] {
    tactic::cuda::DecodeRequest of;
    of.batch = request->batch;
    of.q = request->q;
    of.q_type = static_cast<Element>(request->q_type);
    of.out = request->out;
    of.out_type = static_cast<Element>(request->out_type);
    of.cache = CacheOf(*cache);
    of.lengths = request->lengths;
    of.indexes = request->indexes;
    of.scale = request->scale;
    of.max_length = request->max_length;
    of.dense_below = 0;  // a selection is timed where it loses, too
    return decoder->Decode(of, stream);
  });
}

// [max_batch][q_heads] of six 32-bit words, device memory: DeviceReport.
TACTIC_BENCH_API const void* tactic_bench_reports(const Decoder* decoder) {
  static_assert(sizeof(tactic::cuda::DeviceReport) == 6 * sizeof(int32_t));
  return decoder->reports();
}

TACTIC_BENCH_API int64_t tactic_bench_decoder_bytes(const Decoder* decoder) {
  return static_cast<int64_t>(decoder->WorkspaceBytes());
}

// Copies at most `room` positions to `rows` (host memory) and sets *count to how many there are.
TACTIC_BENCH_API int tactic_bench_selected_rows(const Decoder* decoder, int sequence, int kv_head,
                                                int32_t* rows, int64_t room, int64_t* count) {
  return Guard([&] {
    std::vector<int32_t> selected;
    TACTIC_RETURN_IF_ERROR(decoder->SelectedRows(sequence, kv_head, &selected));
    *count = static_cast<int64_t>(selected.size());
    std::copy_n(selected.begin(), std::min(*count, room), rows);
    return Status::Ok();
  });
}

// [max_batch][kv_heads][3] numbers in device memory, the first of each the rows that the last step
// of mode paper sampled (ListSize). Null when this was not compiled as CUDA, or in other modes.
TACTIC_BENCH_API const int32_t* tactic_bench_sampled([[maybe_unused]] const Decoder* decoder) {
#ifdef __CUDACC__
  const tactic::cuda::Step& step = tactic::cuda::DecoderAccess::LastStep(*decoder);
  if (step.mode == Mode::kPaper) return &step.sampled->rows;
#endif
  return nullptr;
}

// [max_batch][kv_heads][spans] numbers in device memory: of how many clusters of a span the last
// step of mode tactic read the codes. Null when this was not compiled as CUDA, or in other modes.
TACTIC_BENCH_API const int32_t* tactic_bench_kept([[maybe_unused]] const Decoder* decoder,
                                                  int32_t* spans) {
  *spans = 0;
#ifdef __CUDACC__
  const tactic::cuda::Step& step = tactic::cuda::DecoderAccess::LastStep(*decoder);
  if (step.mode == Mode::kTactic) {
    *spans = step.spans;
    return step.kept_counts;
  }
#endif
  return nullptr;
}
