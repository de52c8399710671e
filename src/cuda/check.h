// What an index and a decoder ask of their shape and options alike.
#ifndef TACTIC_SRC_CUDA_CHECK_H_
#define TACTIC_SRC_CUDA_CHECK_H_

#include <cstdint>
#include <string>

#include "src/cuda/layout.h"
#include "tactic/options.h"
#include "tactic/shape.h"
#include "tactic/status.h"

namespace tactic::cuda {

inline Status CheckShape(const LayerShape& shape) {
  TACTIC_RETURN_IF_ERROR(shape.Validate());
  const auto bad = [](const char* name, int value, const char* expected) {
    return Status::Unsupported(std::string(name) + " is " + std::to_string(value) +
                               "; on a GPU it is to be " + expected);
  };
  if (shape.head_dim != 64 && shape.head_dim != 96 && shape.head_dim != 128 &&
      shape.head_dim != 256)
    return bad("head_dim", shape.head_dim, "64, 96, 128 or 256");
  if (shape.value_dim != shape.head_dim)
    return bad("value_dim", shape.value_dim, "equal to head_dim");
  if (shape.group() > kMaxGroup) return bad("q_heads / kv_heads", shape.group(), "at most 16");
  if (shape.kv_heads > kMaxKvHeads) return bad("kv_heads", shape.kv_heads, "at most 64");
  return Status::Ok();
}

inline Status CheckIndexOptions(const Options& options) {
  TACTIC_RETURN_IF_ERROR(options.Validate());
  const auto bad = [](const char* name, int value, const char* expected) {
    return Status::Unsupported(std::string(name) + " is " + std::to_string(value) +
                               "; on a GPU it is to be " + expected);
  };
  if (options.index != IndexKind::kClusters)
    return Status::Unsupported("index is pages; on a GPU it is to be clusters");
  constexpr int kLeastSegment = 256;
  constexpr int kLargestSegment = 8192;
  if (options.segment_size < kLeastSegment || options.segment_size > kLargestSegment)
    return bad("segment_size", options.segment_size, "a number from 256 to 8192");
  // Pages are clusters of the open segment, which must have room for them.
  if (options.cluster_size > Options::kPage)
    return bad("cluster_size", options.cluster_size, "at most 32");
  // Spans are of whole segments (step.h).
  constexpr int kLeastSlots = 8;
  const int slots = options.segment_size / options.cluster_size;
  if (options.segment_size % options.cluster_size != 0 || slots < kLeastSlots ||
      (slots & (slots - 1)) != 0)
    return bad("segment_size", options.segment_size, "8, 16, 32, ... times cluster_size");
  if (slots > kMaxSlots)
    return bad("cluster_size", options.cluster_size, "at least segment_size / 256");
  if (options.sinks > options.segment_size)
    return bad("sinks", options.sinks, "at most segment_size");
  return Status::Ok();
}

inline Status CheckMaxTokens(int64_t max_tokens) {
  constexpr int64_t kMost = int64_t{1} << 26;
  if (max_tokens >= 1 && max_tokens <= kMost) return Status::Ok();
  return Status::InvalidArgument("max_tokens is " + std::to_string(max_tokens) +
                                 "; expected a number from 1 to 2^26");
}

// Bits of a code's elements; 0: there are none.
inline int CodeBits(const Options& options) {
  constexpr int kUnlessToldOtherwise = 3;
  if (options.mode != Mode::kTactic) return 0;
  return options.bits == 0 ? kUnlessToldOtherwise : options.bits;
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_CHECK_H_
