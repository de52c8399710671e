// The C interface: handles, errors, and no exception gets out.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "src/c_convert.h"
#include "src/check_request.h"
#include "src/segment.h"
#include "tactic/decode.h"
#include "tactic/isa.h"
#include "tactic/options.h"
#include "tactic/sequence_index.h"
#include "tactic/tactic.h"
#include "tactic/thread_team.h"

struct tactic_index {
  tactic::SequenceIndex index;
};

struct tactic_decoder {
  std::unique_ptr<tactic::ThreadTeam> team;
  tactic::DecodeStep step;
  std::vector<tactic::DecodeRequest> requests;
  // Of the last step. Copied: its requests and indexes may be gone when somebody asks.
  bool decoded = false;
  int q_heads = 0;
  tactic::DecodeStats stats;
};

namespace {

using tactic::CheckStructSize;
using tactic::CopyDefaults;
using tactic::CopyOut;
using tactic::FromC;
using tactic::NotNull;
using tactic::Status;
using tactic::StatusCode;

// A buffer, not a string: saying that memory ran out must not need any.
thread_local char last_error[1024] = "";

tactic_code Failed(StatusCode code, const char* message) {
  std::snprintf(last_error, sizeof(last_error), "%s", message);
  return static_cast<tactic_code>(code);
}

// Runs f, which returns a Status.
template <class F>
tactic_code Guarded(const F& f) noexcept {
  try {
    const Status status = f();
    return status.ok() ? TACTIC_OK : Failed(status.code(), status.message().c_str());
  } catch (const std::bad_alloc&) {
    return Failed(StatusCode::kResourceExhausted, "out of memory");
  } catch (const std::exception& error) {
    return Failed(StatusCode::kInternal, error.what());
  }
}

// Plans and runs a build. False when memory ran out.
bool Build(tactic::SequenceIndex* index, const tactic::RowsView& keys,
           const tactic::RowsView& values, std::span<const uint32_t> cells,
           tactic::ThreadTeam* team) {
  std::atomic<int> next = 0;
  std::atomic<bool> complete = true;
  try {
    const int units = index->PlanBuild();
    const auto work = [&](int /*thread*/) {
      try {
        for (int unit = next++; unit < units; unit = next++)
          index->BuildUnit(unit, keys, values, cells);
      } catch (const std::bad_alloc&) {
        complete = false;
      }
    };
    if (team == nullptr) {
      work(0);
    } else {
      team->Run(work);
    }
  } catch (const std::bad_alloc&) {
    complete = false;
  }
  return complete;
}

// A segment that a failed build left unfilled must not be read.
Status DropUnfilled(tactic::SequenceIndex* index) {
  for (const auto& segment : index->segments()) {
    if (!segment || segment->Filled()) continue;
    TACTIC_RETURN_IF_ERROR(index->Invalidate(segment->first(), segment->end()));
  }
  return Status::Ok();
}

}  // namespace

extern "C" {

#define TACTIC_STRING_OF(x) #x
#define TACTIC_STRING(x) TACTIC_STRING_OF(x)
const char* tactic_version(void) {
  return TACTIC_STRING(TACTIC_VERSION_MAJOR) "." TACTIC_STRING(
      TACTIC_VERSION_MINOR) "." TACTIC_STRING(TACTIC_VERSION_PATCH);
}

const char* tactic_last_error(void) { return last_error; }

const char* tactic_isa_name(void) { return tactic::IsaName(); }

const char* tactic_supported_isas(void) {
  static const std::string names = [] {
    std::string joined;
    for (const std::string& name : tactic::SupportedIsas())
      joined += (joined.empty() ? "" : ",") + name;
    return joined;
  }();
  return names.c_str();
}

tactic_code tactic_set_isa(const char* name) {
  return Guarded([&] {
    TACTIC_RETURN_IF_ERROR(NotNull("name", name));
    return tactic::SetIsa(name);
  });
}

size_t tactic_row_bytes(int32_t type, size_t n) {
  if (type < TACTIC_F32 || type > TACTIC_Q4_0) return 0;
  if (type >= TACTIC_Q8_0 && n % tactic::kQuantBlock != 0) return 0;
  return tactic::RowBytes(static_cast<tactic::ElementType>(type), n);
}

tactic_code tactic_options_init(tactic_options* options, int32_t mode, size_t struct_size) {
  return Guarded([&] {
    tactic::Mode parsed{};
    TACTIC_RETURN_IF_ERROR(FromC(mode, &parsed));
    return CopyDefaults("options", tactic::ToC(tactic::Options::For(parsed)), options, struct_size);
  });
}

tactic_code tactic_options_validate(const tactic_options* options) {
  return Guarded([&] {
    tactic::Options ignored;
    return FromC(options, &ignored);
  });
}

tactic_code tactic_index_create(const tactic_shape* shape, const tactic_options* options,
                                tactic_index** index) {
  return Guarded([&] {
    TACTIC_RETURN_IF_ERROR(NotNull("shape", shape));
    TACTIC_RETURN_IF_ERROR(NotNull("index", index));
    tactic::Options parsed;
    TACTIC_RETURN_IF_ERROR(FromC(options, &parsed));
    TACTIC_RETURN_IF_ERROR(FromC(*shape).Validate());
    *index = new tactic_index{tactic::SequenceIndex(FromC(*shape), parsed)};
    return Status::Ok();
  });
}

void tactic_index_destroy(tactic_index* index) { delete index; }

tactic_code tactic_index_fork(const tactic_index* index, tactic_index** fork) {
  return Guarded([&] {
    TACTIC_RETURN_IF_ERROR(NotNull("index", index));
    TACTIC_RETURN_IF_ERROR(NotNull("fork", fork));
    *fork = new tactic_index{index->index.Fork()};
    return Status::Ok();
  });
}

int64_t tactic_index_size(const tactic_index* index) {
  return index == nullptr ? 0 : index->index.size();
}

size_t tactic_index_memory_bytes(const tactic_index* index) {
  return index == nullptr ? 0 : index->index.MemoryBytes();
}

tactic_code tactic_index_append(tactic_index* index, int64_t n) {
  return Guarded([&] {
    TACTIC_RETURN_IF_ERROR(NotNull("index", index));
    const int64_t room = std::numeric_limits<int64_t>::max() - index->index.size();
    if (n < 0 || n > room) {
      return Status::InvalidArgument("n is " + std::to_string(n) +
                                     "; expected a number from 0 to " + std::to_string(room));
    }
    index->index.Append(n);
    return Status::Ok();
  });
}

tactic_code tactic_index_truncate(tactic_index* index, int64_t n) {
  return Guarded([&] {
    TACTIC_RETURN_IF_ERROR(NotNull("index", index));
    return index->index.Truncate(n);
  });
}

tactic_code tactic_index_remove_range(tactic_index* index, int64_t begin, int64_t end) {
  return Guarded([&] {
    TACTIC_RETURN_IF_ERROR(NotNull("index", index));
    return index->index.RemoveRange(begin, end);
  });
}

tactic_code tactic_index_invalidate(tactic_index* index, int64_t begin, int64_t end) {
  return Guarded([&] {
    TACTIC_RETURN_IF_ERROR(NotNull("index", index));
    return index->index.Invalidate(begin, end);
  });
}

tactic_code tactic_index_set_query_norms(tactic_index* index, const float* mean_squares,
                                         size_t kv_heads) {
  return Guarded([&] {
    TACTIC_RETURN_IF_ERROR(NotNull("index", index));
    TACTIC_RETURN_IF_ERROR(NotNull("mean_squares", mean_squares));
    const auto expected = static_cast<size_t>(index->index.shape().kv_heads);
    if (kv_heads != expected) {
      return Status::InvalidArgument("kv_heads is " + std::to_string(kv_heads) +
                                     "; expected the index's " + std::to_string(expected));
    }
    for (size_t h = 0; h < kv_heads; ++h) {
      if (std::isfinite(mean_squares[h]) && mean_squares[h] >= 0) continue;
      return Status::InvalidArgument("mean_squares[" + std::to_string(h) + "] is " +
                                     std::to_string(mean_squares[h]) +
                                     "; expected a finite number that is not negative");
    }
    index->index.SetQueryNorms({mean_squares, kv_heads});
    return Status::Ok();
  });
}

tactic_code tactic_index_build(tactic_index* index, const tactic_rows* keys,
                               const tactic_rows* values, const uint32_t* cells, size_t num_cells,
                               tactic_decoder* threads) {
  return Guarded([&] {
    TACTIC_RETURN_IF_ERROR(NotNull("index", index));
    TACTIC_RETURN_IF_ERROR(NotNull("keys", keys));
    TACTIC_RETURN_IF_ERROR(tactic::IsaStatus());
    tactic::RowsView view;
    TACTIC_RETURN_IF_ERROR(FromC("keys", *keys, &view));
    TACTIC_RETURN_IF_ERROR(tactic::CheckRows("keys", view, index->index.shape().head_dim));
    tactic::RowsView value_view;
    if (index->index.options().mode == tactic::Mode::kTactic) {
      TACTIC_RETURN_IF_ERROR(NotNull("values", values));
      TACTIC_RETURN_IF_ERROR(FromC("values", *values, &value_view));
      TACTIC_RETURN_IF_ERROR(
          tactic::CheckRows("values", value_view, index->index.shape().value_dim));
    }
    if (cells == nullptr && num_cells > 0) return NotNull("cells", cells);
    if (num_cells < static_cast<size_t>(index->index.size())) {
      return Status::InvalidArgument("num_cells is " + std::to_string(num_cells) +
                                     "; expected at least the index's " +
                                     std::to_string(index->index.size()));
    }
    tactic::ThreadTeam* team = threads == nullptr ? nullptr : threads->team.get();
    if (Build(&index->index, view, value_view, {cells, num_cells}, team)) return Status::Ok();
    TACTIC_RETURN_IF_ERROR(DropUnfilled(&index->index));
    return Status::ResourceExhausted("out of memory while clustering keys");
  });
}

tactic_code tactic_params_init(tactic_params* params, size_t struct_size) {
  return Guarded([&] {
    const tactic::DecodeParams defaults;
    return CopyDefaults(
        "params",
        tactic_params{struct_size, defaults.scale, defaults.softcap, defaults.measure_mass}, params,
        struct_size);
  });
}

tactic_code tactic_decoder_create(int32_t threads, tactic_decoder** decoder) {
  return Guarded([&] {
    TACTIC_RETURN_IF_ERROR(NotNull("decoder", decoder));
    auto created = std::make_unique<tactic_decoder>();
    TACTIC_RETURN_IF_ERROR(tactic::ThreadTeam::Create(threads, &created->team));
    *decoder = created.release();
    return Status::Ok();
  });
}

void tactic_decoder_destroy(tactic_decoder* decoder) { delete decoder; }

tactic_code tactic_decode(tactic_decoder* decoder, const tactic_shape* shape,
                          const tactic_options* options, const tactic_params* params,
                          const tactic_request* requests, size_t num_requests) {
  return Guarded([&] {
    TACTIC_RETURN_IF_ERROR(NotNull("decoder", decoder));
    decoder->decoded = false;  // a failure leaves nothing to report on
    TACTIC_RETURN_IF_ERROR(NotNull("shape", shape));
    TACTIC_RETURN_IF_ERROR(NotNull("params", params));
    if (num_requests > 0) TACTIC_RETURN_IF_ERROR(NotNull("requests", requests));
    TACTIC_RETURN_IF_ERROR(CheckStructSize("params", params->struct_size, sizeof(tactic_params)));
    tactic::Options parsed;
    TACTIC_RETURN_IF_ERROR(FromC(options, &parsed));
    decoder->requests.resize(num_requests);
    for (size_t i = 0; i < num_requests; ++i) {
      const Status status =
          FromC(requests[i], requests[i].index == nullptr ? nullptr : &requests[i].index->index,
                &decoder->requests[i]);
      if (!status.ok())
        return Status(status.code(), "request " + std::to_string(i) + ": " + status.message());
    }
    TACTIC_RETURN_IF_ERROR(decoder->step.Plan(
        FromC(*shape), parsed, {params->scale, params->softcap, params->measure_mass != 0},
        decoder->requests, decoder->team->size()));
    tactic::RunStep(&decoder->step, decoder->team.get());
    decoder->stats = decoder->step.stats();
    decoder->q_heads = shape->q_heads;
    decoder->decoded = true;
    return Status::Ok();
  });
}

tactic_code tactic_decoder_stats(const tactic_decoder* decoder, tactic_stats* stats) {
  return Guarded([&] {
    TACTIC_RETURN_IF_ERROR(NotNull("decoder", decoder));
    TACTIC_RETURN_IF_ERROR(NotNull("stats", stats));
    if (!decoder->decoded) return Status::InvalidArgument("decoder has not decoded a step yet");
    const tactic::DecodeStats& s = decoder->stats;
    return CopyOut("stats",
                   tactic_stats{0, s.rows_read, s.rows_dense, s.bytes_read, s.bytes_dense,
                                s.bytes_clusters, s.bytes_codes, s.bytes_rows},
                   stats);
  });
}

tactic_code tactic_decoder_head_report(const tactic_decoder* decoder, size_t request,
                                       int32_t q_head, tactic_head_report* report) {
  return Guarded([&] {
    TACTIC_RETURN_IF_ERROR(NotNull("decoder", decoder));
    TACTIC_RETURN_IF_ERROR(NotNull("report", report));
    if (!decoder->decoded) return Status::InvalidArgument("decoder has not decoded a step yet");
    if (request >= decoder->requests.size() || q_head < 0 || q_head >= decoder->q_heads) {
      return Status::OutOfRange("request is " + std::to_string(request) + " and q_head " +
                                std::to_string(q_head) + "; the last step had " +
                                std::to_string(decoder->requests.size()) + " requests of " +
                                std::to_string(decoder->q_heads) + " query heads");
    }
    const tactic::HeadReport& h = decoder->step.head_reports()[request * decoder->q_heads + q_head];
    return CopyOut("report",
                   tactic_head_report{0, h.own_rows, h.union_rows, h.own_mass, h.union_mass,
                                      h.p_hat, h.code_error, h.rounds},
                   report);
  });
}

}  // extern "C"
