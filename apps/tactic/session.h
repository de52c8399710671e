// Session: one sequence of tokens in one llama.cpp context, with or without Tactic's hook.
//
// The sequence grows by Read (a prompt, in batches) and Step (one token), and shrinks by RollBack.
// Everything that takes long stops soon after Ctrl-C and then returns InterruptedStatus.
// Not thread-safe. The Model must outlive its sessions.
#ifndef TACTIC_APPS_SESSION_H_
#define TACTIC_APPS_SESSION_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model.h"
#include "progress.h"
#include "tactic/status.h"
#include "tactic_llama/capture.h"
#include "tactic_llama/hook.h"

namespace tactic::app {

struct SessionOptions {
  int context = 0;  // tokens; rounded up to what llama.cpp allocates
  int threads = 1;
  int batch = 512;  // tokens of a prompt that are computed at once
  ggml_type type_k = GGML_TYPE_F16;
  ggml_type type_v = GGML_TYPE_F16;
  float rope_freq_base = 0;     // 0: the model's own
  bool flash_attention = true;  // false: V is stored transposed, and there can be no hook
  // Keep the whole sequence in sliding-window layers too, so that RollBack may go back any
  // distance.
  bool keep_window = false;
  // Observes the context, in steps of policy `stock` where there is a hook; null: none. Must
  // outlive the session.
  llama::Capture* capture = nullptr;

  // Transposed, quantised blocks of V cannot be stored.
  bool CanDoWithoutFlash() const { return ggml_blck_size(type_v) == 1; }
};

// Two evaluation callbacks as one. The second may stop after a node, the first must not.
struct CallbackPair {
  struct Callback {
    ggml_backend_sched_eval_callback function = nullptr;
    void* data = nullptr;
  };
  Callback first, second;

  static bool Call(ggml_tensor* node, bool ask, void* pair);
};

// Tokens that a context for at least `tokens` tokens really has.
int RoundUpContext(int64_t tokens);

class Session {
 public:
  // Creates the context, with a hook when `hook_options` is not null, after checking that the KV
  // cache fits into memory. Decodes one token to find out at once whether the policy can be served:
  // Unsupported when the model's attention cannot be taken over.
  static Status Open(const Model& model, const SessionOptions& options,
                     const llama::HookOptions* hook_options, std::unique_ptr<Session>* session);

  llama_context* get() const { return context_.get(); }
  const Model& model() const { return *model_; }
  const SessionOptions& options() const { return options_; }
  // Null without a hook.
  llama::Hook* hook() const { return hook_.get(); }
  // Tokens in the sequence.
  int depth() const { return depth_; }
  int capacity() const { return static_cast<int>(llama_n_ctx(context_.get())); }

  // Appends tokens in batches that are large enough to count as a prompt: stock attention computes
  // them. OutOfRange when they do not fit. `progress` may be null.
  Status Read(std::span<const llama_token> tokens, Progress* progress = nullptr);

  // Appends one token through the current policy. `milliseconds` (may be null) gets the wall time.
  Status Step(llama_token token, double* milliseconds = nullptr);

  // Cuts the sequence to its first `depth` tokens. REQUIRES: depth <= depth().
  Status RollBack(int depth);

  // Empties the sequence.
  void Clear();

  // To be called after the cache was filled by other means (a restored state).
  void SetDepth(int depth);

  // Changes who computes the attention, and with which parameters. REQUIRES: hook() != null.
  Status UsePolicy(const llama::HookOptions& options);

 private:
  Session() = default;
  // Lets the hook and the capture have llama.cpp's one callback.
  Status InstallCallbacks(const llama::HookOptions* hook_options, llama_context_params* params);
  Status Decode(std::span<const llama_token> tokens);
  // Finds out whether the hook can serve its policy, with one token that is removed again.
  Status CheckTakeover();

  const Model* model_ = nullptr;
  SessionOptions options_;
  // Before context_: must outlive it.
  std::unique_ptr<llama::Hook> hook_;
  CallbackPair callbacks_;
  llama_context_ptr context_;
  int depth_ = 0;
};

}  // namespace tactic::app

#endif  // TACTIC_APPS_SESSION_H_
