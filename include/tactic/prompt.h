// PromptStep: one layer's exact attention for the tokens of a prompt batch.
//
//   step.Plan(shape, params, requests, threads)   one thread, per layer and batch
//   every thread: step.Run(thread)                in any order; done when all have returned
//
// Nothing is selected: every token attends to all it may see. Tiles of tokens share each key and
// value that is loaded, over the query heads of a group as well, which is what a prompt needs, as
// its attention is bound by arithmetic. Results do not depend on the number of threads.
#ifndef TACTIC_PROMPT_H_
#define TACTIC_PROMPT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "tactic/decode.h"
#include "tactic/rows_view.h"
#include "tactic/shape.h"
#include "tactic/status.h"

namespace tactic {

// Tokens that attend to the same cells.
struct PromptRequest {
  int64_t tokens = 0;
  // Of token t and head h at q + t * q_token_stride + h * q_head_stride; likewise `out`. In floats.
  const float* q = nullptr;
  size_t q_token_stride = 0;
  size_t q_head_stride = 0;
  float* out = nullptr;
  size_t out_token_stride = 0;
  size_t out_head_stride = 0;
  // Cells [0, num_cells) of these, in which cells that nobody sees may hold anything but are read.
  RowsView keys;
  RowsView values;
  int64_t num_cells = 0;
  // f16 bits, [tokens][num_cells], mask_stride elements from token to token; added to logits after
  // the softcap. -inf: the token does not see the cell. Causal order and sliding windows are the
  // caller's to put here; blocks of cells that no token of a tile sees cost nothing.
  const uint16_t* mask = nullptr;
  size_t mask_stride = 0;
};

class PromptStep {
 public:
  PromptStep();
  ~PromptStep();
  PromptStep(PromptStep&&) noexcept;
  PromptStep& operator=(PromptStep&&) noexcept;

  // Uses scale and softcap of `params`. Fails with InvalidArgument, naming what was wrong, when a
  // size, stride or pointer cannot be. Keeps the requests' pointers until Run has returned.
  Status Plan(const LayerShape& shape, const DecodeParams& params,
              std::span<const PromptRequest> requests, int threads);
  // Thread `thread` of the `threads` given to Plan; no two calls at a time with the same number.
  void Run(int thread);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tactic

#endif  // TACTIC_PROMPT_H_
