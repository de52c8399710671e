// Hook: Tactic attention inside an unmodified llama.cpp.
//
// A Hook belongs to one llama_context. It is installed through the public evaluation callback
// (llama_context_params.cb_eval), rewrites the attention nodes of decode batches into custom
// operations that run on ggml's own threads, follows every change of the KV cache from what the
// graph shows (rows written, visible cells, key fingerprints), and leaves everything it does not
// understand to stock attention.
//
//   Hook::Create(options, &hook);              // once
//   llama_context_params p = ...;
//   hook->Install(&p);                         // before llama_init_from_model
//   ... llama_decode(ctx, batch) ...           // as ever
//   HookStats s = hook->TakeStats();           // what it cost since the last call
//
// The Hook must outlive its llama_context. Calls must not overlap with llama_decode on that
// context.
#ifndef TACTIC_LLAMA_HOOK_H_
#define TACTIC_LLAMA_HOOK_H_

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "llama.h"
#include "tactic/options.h"
#include "tactic/status.h"
#include "tactic_llama/stages.h"

namespace tactic::llama {

// Who computes attention.
enum class Policy : uint8_t {
  kStock,   // llama.cpp itself
  kDense,   // our exact kernel over every visible token
  kPaper,   // the published algorithm
  kTactic,  // verified selection
};

// "stock", "dense", "paper", "tactic".
const char* PolicyName(Policy policy);
Status ParsePolicy(std::string_view name, Policy* policy);

struct HookOptions {
  // `policy` with the defaults of its mode.
  static HookOptions For(Policy policy);

  Policy policy = Policy::kTactic;
  // Parameters of the algorithm. Their `mode` is ignored: the policy decides it. The defaults are
  // those of policy tactic; For() gives those of another one.
  Options tactic;
  // Batches with at most this many tokens per sequence are decode batches and go through us; larger
  // ones are prompt: we index their keys, and attention stays exact. Range [1, 64].
  int max_decode_tokens = 8;
  // Prompt batches attend through our exact kernel (tactic/prompt.h) instead of stock attention,
  // under every policy but stock. Faster (bench/results/prompt_*.json), and it does not sum in half
  // precision. False: what is in the cache is what llama.cpp would have put there.
  bool prompt_attention = true;
};

// Totals since the last TakeStats. A selection is what one query head chose for one token in one
// layer, a case a selection whose exact mass was measured.
struct HookStats {
  int64_t tokens = 0;       // tokens decoded through us
  int64_t nodes_ours = 0;   // attention nodes we computed
  int64_t nodes_stock = 0;  // attention nodes left to llama.cpp (prompt, sliding windows, unknown
                            // shapes, policy stock)
  int64_t fallbacks =
      0;  // decode rows read densely because their visible cells were not those of a known sequence
  int64_t edits = 0;  // times a sequence lost, regained or rewrote rows that had been seen before
  int64_t rows_read =
      0;  // K/V rows attended, summed over layers and KV heads (union of a group counted once)
  int64_t rows_dense = 0;      // the same for dense attention
  int64_t bytes_read = 0;      // all that was read of the cache and the index; the sum of
  int64_t bytes_clusters = 0;  // - what is stored per cluster or segment,
  int64_t bytes_codes = 0;     // - codes of keys,
  int64_t bytes_rows = 0;      // - K and V rows attended, and keys sampled for the fit
  int64_t bytes_dense = 0;     // K and V rows that dense attention would attend
  int64_t index_bytes = 0;     // memory the policy's index holds now (not a total)
  int64_t index_build_ns = 0;  // clustering and coding, wall time summed over threads
  int64_t cases = 0;
  double own_mass_sum = 0;  // sum over cases of the mass of the head's own selection
  double own_mass_min = 1;
  int64_t own_reached = 0;    // cases whose own selection has mass >= target - 0.001
  double union_mass_sum = 0;  // sum over cases of the mass of what its group read
  double union_mass_min = 1;
  int64_t union_reached = 0;

  // Policy tactic, measured or not: what selections know of themselves.
  int64_t selections = 0;  // those with a p_hat
  double p_hat_sum = 0;    // of the mass that a selection is believed to have
  double p_hat_min = 1;
  int64_t extended = 0;       // selections that fell short of the target at first
  int64_t overclaims = 0;     // cases with p_hat >= target and mass < target - 0.05
  int64_t coded = 0;          // selections that used codes
  double code_error_sum = 0;  // over these, of the predicted error of a code's logit
  double code_error_max = 0;

  double RowsFraction() const { return rows_dense ? double(rows_read) / double(rows_dense) : 0; }
  double BytesFraction() const {
    return bytes_dense ? double(bytes_read) / double(bytes_dense) : 0;
  }
};

class Hook {
 public:
  // REQUIRES: `hook` is not null. Fails with InvalidArgument when an option is out of its range.
  static Status Create(const HookOptions& options, std::unique_ptr<Hook>* hook);
  ~Hook();
  Hook(const Hook&) = delete;
  Hook& operator=(const Hook&) = delete;

  // Sets cb_eval, cb_eval_user_data and flash_attn_type (ENABLED) of `params`. REQUIRES: cb_eval is
  // not set yet.
  Status Install(llama_context_params* params);

  // Changes policy and parameters between llama_decode calls. Policies paper and tactic have an
  // index each, which is kept, also under another policy, until DropIndex or until its own policy
  // is given other parameters that shape it (clusters, segments, codes, sinks, recent, seed); what
  // it lacks is built at the policy's next step.
  Status SetOptions(const HookOptions& options);
  const HookOptions& options() const;

  // Forgets every index; the next step rebuilds what it needs, equal bit for bit, from the cache
  // itself.
  void DropIndex();

  // While on, every decode step also computes the exact attention mass of what it selected (slow:
  // reads every key).
  void MeasureMass(bool on);

  // While on, every stage of every layer that we compute is timed.
  void MeasureStages(bool on);

  // Totals since the last call; resets them.
  HookStats TakeStats();

  // Times of stages since the last call, by ascending layer; resets them. All zeros unless
  // MeasureStages was on.
  std::vector<LayerTimes> TakeStageTimes();

  // OK, or why an attention node of the last llama_decode could not be taken over although the
  // policy asked for it, e.g. a model whose graph has no flash-attention nodes. Decoding went on
  // with stock attention.
  Status LastProblem() const;

 private:
  class Impl;
  explicit Hook(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tactic::llama

#endif  // TACTIC_LLAMA_HOOK_H_
