#include "llama/src/node_rewrite.h"

#include <cstring>

namespace tactic::llama {
namespace {

// Layout of op_params of a rewritten node: ggml's {function, n_tasks, user data}, then ours.
constexpr size_t kCustomBytes = 24;
struct Saved {
  int32_t op;
  uint8_t params[GGML_MAX_OP_PARAMS - kCustomBytes -
                 sizeof(int32_t)];  // 36: views use 8, permutations 16, attention 16
};
static_assert(kCustomBytes + sizeof(Saved) == GGML_MAX_OP_PARAMS);

uint8_t* Bytes(ggml_tensor* node) { return reinterpret_cast<uint8_t*>(node->op_params); }

}  // namespace

Status CustomOp::Make(ggml_custom_op_t function, void* user_data, CustomOp* op) {
  // A scratch context of no data: big enough for two tensor headers.
  ggml_context* context = ggml_init({4 * ggml_tensor_overhead(), nullptr, /*no_alloc=*/true});
  if (context == nullptr)
    return Status::ResourceExhausted("ggml_init failed for a scratch context");
  ggml_tensor* source = ggml_new_tensor_1d(context, GGML_TYPE_F32, 1);
  const ggml_tensor* made = ggml_custom_4d(context, GGML_TYPE_F32, 1, 1, 1, 1, &source, 1, function,
                                           GGML_N_TASKS_MAX, user_data);
  std::memcpy(op->params_.data(), made->op_params, GGML_MAX_OP_PARAMS);
  ggml_free(context);
  const auto* bytes = reinterpret_cast<const uint8_t*>(op->params_.data());
  bool fits = std::memcmp(bytes, &function, sizeof(function)) == 0;
  for (size_t i = kCustomBytes; i < GGML_MAX_OP_PARAMS; ++i) fits = fits && bytes[i] == 0;
  if (!fits) return Status::Unsupported("this ggml stores custom operations in an unknown way");
  return Status::Ok();
}

void CustomOp::Rewrite(ggml_tensor* node) const {
  Saved saved;
  saved.op = static_cast<int32_t>(node->op);
  std::memcpy(saved.params, node->op_params, sizeof(saved.params));
  std::memcpy(node->op_params, params_.data(), GGML_MAX_OP_PARAMS);
  std::memcpy(Bytes(node) + kCustomBytes, &saved, sizeof(saved));
  node->op = GGML_OP_CUSTOM;
}

bool IsRewritten(const ggml_tensor* node, ggml_custom_op_t function) {
  return node->op == GGML_OP_CUSTOM &&
         std::memcmp(node->op_params, &function, sizeof(function)) == 0;
}

void Restore(ggml_tensor* node) {
  Saved saved;
  std::memcpy(&saved, Bytes(node) + kCustomBytes, sizeof(saved));
  std::memset(node->op_params, 0, GGML_MAX_OP_PARAMS);
  std::memcpy(node->op_params, saved.params, sizeof(saved.params));
  node->op = static_cast<ggml_op>(saved.op);
}

}  // namespace tactic::llama
