// The structs of the C interface to and from those of C++, checked on the way in.
#ifndef TACTIC_SRC_C_CONVERT_H_
#define TACTIC_SRC_C_CONVERT_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "tactic/decode.h"
#include "tactic/options.h"
#include "tactic/rows_view.h"
#include "tactic/shape.h"
#include "tactic/status.h"
#include "tactic/tactic.h"

namespace tactic {

static_assert(TACTIC_OK == static_cast<int>(StatusCode::kOk));
static_assert(TACTIC_INVALID_ARGUMENT == static_cast<int>(StatusCode::kInvalidArgument));
static_assert(TACTIC_OUT_OF_RANGE == static_cast<int>(StatusCode::kOutOfRange));
static_assert(TACTIC_UNSUPPORTED == static_cast<int>(StatusCode::kUnsupported));
static_assert(TACTIC_NOT_FOUND == static_cast<int>(StatusCode::kNotFound));
static_assert(TACTIC_RESOURCE_EXHAUSTED == static_cast<int>(StatusCode::kResourceExhausted));
static_assert(TACTIC_INTERNAL == static_cast<int>(StatusCode::kInternal));
static_assert(TACTIC_F32 == static_cast<int>(ElementType::kF32));
static_assert(TACTIC_F16 == static_cast<int>(ElementType::kF16));
static_assert(TACTIC_BF16 == static_cast<int>(ElementType::kBF16));
static_assert(TACTIC_Q8_0 == static_cast<int>(ElementType::kQ8_0));
static_assert(TACTIC_Q4_0 == static_cast<int>(ElementType::kQ4_0));
static_assert(TACTIC_DENSE == static_cast<int>(Mode::kDense));
static_assert(TACTIC_PAPER == static_cast<int>(Mode::kPaper));

inline Status NotNull(const char* name, const void* pointer) {
  if (pointer != nullptr) return Status::Ok();
  return Status::InvalidArgument(std::string(name) + " is null");
}

// There is one version of each struct so far.
inline Status CheckStructSize(const char* name, size_t struct_size, size_t expected) {
  if (struct_size == expected) return Status::Ok();
  return Status::InvalidArgument(std::string(name) + ".struct_size is " +
                                 std::to_string(struct_size) + "; expected " +
                                 std::to_string(expected) + ", the size in this library's header");
}

inline LayerShape FromC(const tactic_shape& shape) {
  return {shape.q_heads, shape.kv_heads, shape.head_dim, shape.value_dim};
}

inline Status FromC(const char* name, const tactic_rows& in, RowsView* out) {
  if (in.type < TACTIC_F32 || in.type > TACTIC_Q4_0) {
    return Status::InvalidArgument(std::string(name) + ".type is " + std::to_string(in.type) +
                                   "; expected a number from 0 (TACTIC_F32) to 4 (TACTIC_Q4_0)");
  }
  *out = {static_cast<const uint8_t*>(in.data), static_cast<ElementType>(in.type), in.row_stride,
          in.head_stride};
  return Status::Ok();
}

inline tactic_options ToC(const Options& o) {
  return {
      .struct_size = sizeof(tactic_options),
      .mode = static_cast<int32_t>(o.mode),
      .target = o.target,
      .cluster_size = o.cluster_size,
      .kmeans_iterations = o.kmeans_iterations,
      .segment_size = o.segment_size,
      .update_interval = o.update_interval,
      .seed = o.seed,
      .sinks = o.sinks,
      .recent = o.recent,
      .index = static_cast<int32_t>(o.index),
      .bits = o.bits,
      .bits_error = o.bits_error,
      .skip_share = o.skip_share,
      .skip_token = o.skip_token,
      .unread_margin = o.unread_margin,
      .skipped_margin = o.skipped_margin,
      .rounds = o.rounds,
      .tail = o.tail ? 1 : 0,
      .dense_share = o.dense_share,
      .head_share = o.head_share,
      .near_window = o.near_window,
      .far_window = o.far_window,
      .window_share = o.window_share,
      .dense_below = o.dense_below,
  };
}

inline Status FromC(int32_t in, Mode* out) {
  if (in < TACTIC_DENSE || in > TACTIC_TACTIC) {
    return Status::InvalidArgument(
        "mode is " + std::to_string(in) +
        "; expected 0 (TACTIC_DENSE), 1 (TACTIC_PAPER) or 2 (TACTIC_TACTIC)");
  }
  *out = static_cast<Mode>(in);
  return Status::Ok();
}

inline Status FromC(const tactic_options* in, Options* out) {
  TACTIC_RETURN_IF_ERROR(NotNull("options", in));
  TACTIC_RETURN_IF_ERROR(CheckStructSize("options", in->struct_size, sizeof(tactic_options)));
  TACTIC_RETURN_IF_ERROR(FromC(in->mode, &out->mode));
  if (in->index != TACTIC_CLUSTERS && in->index != TACTIC_PAGES) {
    return Status::InvalidArgument("index is " + std::to_string(in->index) +
                                   "; expected 0 (TACTIC_CLUSTERS) or 1 (TACTIC_PAGES)");
  }
  if (in->tail != 0 && in->tail != 1) {
    return Status::InvalidArgument("tail is " + std::to_string(in->tail) + "; expected 0 or 1");
  }
  out->target = in->target;
  out->cluster_size = in->cluster_size;
  out->kmeans_iterations = in->kmeans_iterations;
  out->segment_size = in->segment_size;
  out->update_interval = in->update_interval;
  out->seed = in->seed;
  out->sinks = in->sinks;
  out->recent = in->recent;
  out->index = static_cast<IndexKind>(in->index);
  out->bits = in->bits;
  out->bits_error = in->bits_error;
  out->skip_share = in->skip_share;
  out->skip_token = in->skip_token;
  out->unread_margin = in->unread_margin;
  out->skipped_margin = in->skipped_margin;
  out->rounds = in->rounds;
  out->tail = in->tail != 0;
  out->dense_share = in->dense_share;
  out->head_share = in->head_share;
  out->near_window = in->near_window;
  out->far_window = in->far_window;
  out->window_share = in->window_share;
  out->dense_below = in->dense_below;
  return out->Validate();
}

// `index` is what in.index holds.
inline Status FromC(const tactic_request& in, const SequenceIndex* index, DecodeRequest* out) {
  if (in.cells == nullptr && in.num_cells > 0) {
    return Status::InvalidArgument("cells is null and num_cells " + std::to_string(in.num_cells));
  }
  out->q = in.q;
  out->q_stride = in.q_stride;
  TACTIC_RETURN_IF_ERROR(FromC("keys", in.keys, &out->keys));
  TACTIC_RETURN_IF_ERROR(FromC("values", in.values, &out->values));
  out->cells = {in.cells, in.num_cells};
  out->index = index;
  out->out = in.out;
  out->out_stride = in.out_stride;
  return Status::Ok();
}

// To a struct whose struct_size the caller has set.
template <class T>
Status CopyOut(const char* name, T from, T* to) {
  TACTIC_RETURN_IF_ERROR(CheckStructSize(name, to->struct_size, sizeof(T)));
  from.struct_size = to->struct_size;
  *to = from;
  return Status::Ok();
}

// To a struct that the caller says has `struct_size` bytes.
template <class T>
Status CopyDefaults(const char* name, T from, T* to, size_t struct_size) {
  TACTIC_RETURN_IF_ERROR(NotNull(name, to));
  TACTIC_RETURN_IF_ERROR(CheckStructSize(name, struct_size, sizeof(T)));
  from.struct_size = struct_size;
  *to = from;
  return Status::Ok();
}

}  // namespace tactic

#endif  // TACTIC_SRC_C_CONVERT_H_
