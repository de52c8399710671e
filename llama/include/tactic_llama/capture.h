// Capture: the queries, keys and values that llama.cpp's own attention really works on.
//
// Observes one llama_context through its evaluation callback and changes nothing: attention stays
// stock. For every captured step it copies the queries as they enter the attention node (after
// RoPE); keys and values are not copied but shown where the KV cache holds them.
//
//   Capture::Create(options, &capture);        // once
//   capture->Install(&params);                 // before llama_init_from_model
//   ... llama_decode of a prompt ...           // not observed
//   capture->Start(depth);                     // tokens that the sequence has now
//   for every step:
//     capture->BeginStep();
//     llama_decode(ctx, one token)
//   capture->Stop();
//   capture->layers()
//
// For a single sequence whose position i lies in cell i, as in a freshly filled context; the mask
// of every step is held against that. The Capture must outlive its llama_context. Calls must not
// overlap with llama_decode on that context.
#ifndef TACTIC_LLAMA_CAPTURE_H_
#define TACTIC_LLAMA_CAPTURE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "llama.h"
#include "tactic/rows_view.h"
#include "tactic/shape.h"
#include "tactic/status.h"

namespace tactic::llama {

struct CaptureOptions {
  std::vector<int> layers;  // to capture, in any order; empty: all
};

struct CapturedLayer {
  int layer = 0;
  LayerShape shape;
  float scale = 1;
  float softcap = 0;  // 0: none
  // Where the context holds the rows; position i is cell i. f16 or bf16: of an f32 cache attention
  // reads a converted copy. Valid until the context is freed, and with these contents until its
  // cache changes.
  RowsView keys;
  RowsView values;
  // A step saw fewer cells than the sequence has, as in a layer with a sliding window. Such a
  // layer is of no further interest: its other fields are those of the steps before.
  bool slides = false;
  std::vector<float> q;  // [steps][q_heads][head_dim]
};

class Capture {
 public:
  // REQUIRES: `capture` is not null. InvalidArgument when a layer is negative.
  static Status Create(const CaptureOptions& options, std::unique_ptr<Capture>* capture);
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  // Sets cb_eval, cb_eval_user_data and flash_attn_type (ENABLED) of `params`. REQUIRES: cb_eval is
  // not set yet.
  Status Install(llama_context_params* params);

  // Forgets what was captured. The sequence has `tokens` tokens, which were not captured.
  void Start(int64_t tokens);
  // The next llama_decode is a step: one token. Each of its layers counts once; a layer that
  // attends to another one's keys is left out. REQUIRES: Start.
  void BeginStep();
  // Observes nothing from now on; what was captured stays.
  void Stop();

  // Steps begun since Start.
  int steps() const;
  // In ascending order of the layer; those not asked for are left out.
  const std::vector<CapturedLayer>& layers() const;

  // OK, or why what was captured since Start is not all of what was asked for: a layer that cannot
  // be understood (Unsupported), a wanted layer that the model's graph does not show (NotFound).
  // REQUIRES: at least one step was decoded.
  Status Problem() const;

 private:
  class Impl;
  explicit Capture(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tactic::llama

#endif  // TACTIC_LLAMA_CAPTURE_H_
