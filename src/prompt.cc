// Cuts a prompt batch into tiles, which threads claim.
#include "tactic/prompt.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "src/check_request.h"
#include "src/cpu/kernels.h"
#include "tactic/isa.h"

namespace tactic {
namespace {

// Rows of a tile: widening a block of keys and values is then a fiftieth of the work on it, and the
// tile's queries, weights and outputs (150 KB for 64 elements) stay in L2.
constexpr int64_t kRowsPerTile = 384;

int64_t TokensPerTile(const LayerShape& shape) {
  return std::max<int64_t>(1, kRowsPerTile / shape.group());
}

Status CheckRequest(const LayerShape& shape, const PromptRequest& request) {
  if (request.tokens < 0 || request.num_cells < 0) {
    return Status::InvalidArgument("tokens is " + std::to_string(request.tokens) +
                                   " and num_cells " + std::to_string(request.num_cells) +
                                   "; expected 0 or more");
  }
  if (request.tokens == 0) return Status::Ok();
  if (request.q == nullptr || request.out == nullptr || request.mask == nullptr) {
    return Status::InvalidArgument("q, out or mask is null; expected [tokens] rows each");
  }
  const auto dim = static_cast<size_t>(shape.head_dim);
  const auto value_dim = static_cast<size_t>(shape.value_dim);
  TACTIC_RETURN_IF_ERROR(CheckStride("q_head_stride", request.q_head_stride, dim));
  TACTIC_RETURN_IF_ERROR(CheckStride("q_token_stride", request.q_token_stride, dim));
  TACTIC_RETURN_IF_ERROR(CheckStride("out_head_stride", request.out_head_stride, value_dim));
  TACTIC_RETURN_IF_ERROR(CheckStride("out_token_stride", request.out_token_stride, value_dim));
  TACTIC_RETURN_IF_ERROR(
      CheckStride("mask_stride", request.mask_stride, static_cast<size_t>(request.num_cells)));
  TACTIC_RETURN_IF_ERROR(CheckRows("keys", request.keys, shape.head_dim));
  return CheckRows("values", request.values, shape.value_dim);
}

}  // namespace

struct PromptStep::Impl {
  LayerShape shape;
  DecodeParams params;
  std::vector<PromptRequest> requests;
  std::atomic<int64_t> next = 0;            // tiles claimed
  std::vector<std::vector<float>> scratch;  // by thread
};

PromptStep::PromptStep() : impl_(std::make_unique<Impl>()) {}
PromptStep::~PromptStep() = default;
PromptStep::PromptStep(PromptStep&&) noexcept = default;
PromptStep& PromptStep::operator=(PromptStep&&) noexcept = default;

Status PromptStep::Plan(const LayerShape& shape, const DecodeParams& params,
                        std::span<const PromptRequest> requests, int threads) {
  TACTIC_RETURN_IF_ERROR(IsaStatus());
  TACTIC_RETURN_IF_ERROR(shape.Validate());
  TACTIC_RETURN_IF_ERROR(CheckThreads(threads));
  TACTIC_RETURN_IF_ERROR(CheckParams(params));
  for (size_t i = 0; i < requests.size(); ++i) {
    const Status status = CheckRequest(shape, requests[i]);
    if (!status.ok())
      return Status(status.code(), "request " + std::to_string(i) + ": " + status.message());
  }
  Impl& impl = *impl_;
  impl.shape = shape;
  impl.params = params;
  impl.requests.assign(requests.begin(), requests.end());
  impl.next = 0;
  if (std::ssize(impl.scratch) < threads) impl.scratch.resize(static_cast<size_t>(threads));
  const cpu::PromptBuffers buffers(
      shape.head_dim, shape.value_dim,
      cpu::PromptRows(static_cast<size_t>(TokensPerTile(shape)), shape.group()));
  for (std::vector<float>& scratch : impl.scratch)
    scratch.resize(std::max(scratch.size(), buffers.size));
  return Status::Ok();
}

void PromptStep::Run(int thread) {
  Impl& impl = *impl_;
  const LayerShape& shape = impl.shape;
  const int group = shape.group();
  const int64_t per_tile = TokensPerTile(shape);
  int64_t unit = impl.next.fetch_add(1, std::memory_order_relaxed);
  int64_t first = 0;  // number of the request's first tile
  for (const PromptRequest& r : impl.requests) {
    const int64_t tiles = (r.tokens + per_tile - 1) / per_tile;
    for (; unit < first + tiles * shape.kv_heads;
         unit = impl.next.fetch_add(1, std::memory_order_relaxed)) {
      // The last tokens, which see most, come first: what is left at the end is short.
      const int64_t token = (tiles - 1 - (unit - first) / shape.kv_heads) * per_tile;
      const auto kv_head = static_cast<int>((unit - first) % shape.kv_heads);
      const auto at = static_cast<size_t>(token);
      const auto head = static_cast<size_t>(kv_head) * static_cast<size_t>(group);
      cpu::AttendPrompt(
          {r.q + at * r.q_token_stride + head * r.q_head_stride,
           r.q_token_stride,
           r.q_head_stride,
           r.out + at * r.out_token_stride + head * r.out_head_stride,
           r.out_token_stride,
           r.out_head_stride,
           {r.keys.Head(kv_head), r.keys.row_stride, r.keys.type, shape.head_dim},
           {r.values.Head(kv_head), r.values.row_stride, r.values.type, shape.value_dim},
           r.mask + at * r.mask_stride,
           r.mask_stride,
           static_cast<size_t>(std::min(per_tile, r.tokens - token)),
           static_cast<size_t>(r.num_cells),
           group,
           impl.params.scale,
           impl.params.softcap},
          impl.scratch[static_cast<size_t>(thread)].data());
    }
    first += tiles * shape.kv_heads;
  }
}

}  // namespace tactic
