// Turning graph nodes of ggml into calls of ours, and back.
//
// A rewritten node keeps its tensor, sources and data; only `op` and `op_params` change to those of
// a custom operation made by ggml_custom_4d. What was there is kept in the unused end of op_params,
// so that a graph that llama.cpp uses again can be put back without any memory of our own. Public
// ggml headers only.
#ifndef TACTIC_LLAMA_SRC_NODE_REWRITE_H_
#define TACTIC_LLAMA_SRC_NODE_REWRITE_H_

#include <array>
#include <cstdint>

#include "ggml.h"
#include "tactic/status.h"

namespace tactic::llama {

// The operator parameters of a custom operation with one function and one user pointer.
class CustomOp {
 public:
  // Unsupported when this ggml lays out custom operations in a way that leaves no room for what was
  // there.
  static Status Make(ggml_custom_op_t function, void* user_data, CustomOp* op);

  // REQUIRES: `node` is not rewritten.
  void Rewrite(ggml_tensor* node) const;

 private:
  std::array<int32_t, GGML_MAX_OP_PARAMS / sizeof(int32_t)> params_{};
};

// Whether `node` was rewritten to call `function`.
bool IsRewritten(const ggml_tensor* node, ggml_custom_op_t function);
// Puts back what Rewrite replaced. REQUIRES: IsRewritten.
void Restore(ggml_tensor* node);

// Whether a node computes nothing: such nodes before attention are where our first phases run.
inline bool IsEmptyOp(const ggml_tensor* node) {
  return node->op == GGML_OP_VIEW || node->op == GGML_OP_PERMUTE || node->op == GGML_OP_RESHAPE ||
         node->op == GGML_OP_TRANSPOSE;
}

}  // namespace tactic::llama

#endif  // TACTIC_LLAMA_SRC_NODE_REWRITE_H_
