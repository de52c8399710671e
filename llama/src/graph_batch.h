// AttentionBatch: the phases of our attention for one batch, called from ggml's threads, layer
// after layer.
//
// Every attention layer of a graph carries six custom operations (or one, for a prompt batch, whose
// attention stays stock):
//
//   kIndex    fill segments that became due; lay out the layer's decode step
//   kRank, kBudget, kSelect, kAttend, kCombine    the phases of DecodeStep
//
// ggml synchronises its threads between nodes, so the phases need no barrier of ours. One
// DecodeStep serves all layers in turn.
#ifndef TACTIC_LLAMA_SRC_GRAPH_BATCH_H_
#define TACTIC_LLAMA_SRC_GRAPH_BATCH_H_

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "ggml.h"
#include "llama/src/cell_tracker.h"
#include "tactic/decode.h"
#include "tactic/prompt.h"
#include "tactic_llama/hook.h"

namespace tactic::llama {

// The layer of a node that writes to, views, or is a key cache tensor; -1 for others.
int KeyCacheLayer(const ggml_tensor* node);

// Adds what one query head did to the totals.
void AddReport(const HeadReport& head, double target, HookStats* stats);

// An attention layer as the graph shows it.
struct LayerView {
  int layer = -1;
  const ggml_tensor* node =
      nullptr;  // the attention node: sources q, k, v, mask; data is the output
  LayerShape shape;
  RowsView keys;  // cells numbered over all streams
  RowsView values;
  int64_t tokens = 0;  // per stream
  int64_t streams = 0;
  float scale = 1;
  float softcap = 0;

  // Fills *this from a GGML_OP_FLASH_ATTN_EXT node. Unsupported, with the reason, when it is not
  // one we can compute: not host memory, ALiBi, attention sinks, an element type or size we have no
  // kernel for.
  Status Read(const ggml_tensor* attention);
  // First cell of every stream that the node covers.
  std::vector<int64_t> StreamBases() const;
  // Mean of |q * scale|^2 over the query heads of each KV head and the last (at most 64) tokens of
  // every stream; [kv_heads]. Queries that are not finite do not count. REQUIRES: the nodes before
  // the attention node ran.
  std::vector<float> QueryNorms() const;
};

class AttentionBatch {
 public:
  // Prepares the layer's phases, before the graph runs. `rows` must stay valid until it ran.
  // Returns whether there is anything to do for kIndex.
  struct Layer {
    LayerView view;
    CellTracker* tracker = nullptr;
    const std::vector<TrackedRow>* rows = nullptr;
    bool decode = false;  // all phases; otherwise kIndex only
    bool prompt = false;  // kIndex, then RunPrompt
    bool record_prints = false;
    struct Build {
      Track* track;
      SequenceIndex* index;
      int units;
    };
    std::vector<Build> builds;
    std::atomic<int> next_unit = 0;
    // What indexes are told of this layer's queries (SequenceIndex::SetQueryNorms): measured from
    // the first prompt batch, or the first batch that builds something if there was none, and never
    // again, so that an index that is rebuilt later equals the first one. Empty until then.
    std::vector<float> query_norms;
    std::mutex norms_mutex;
    bool norms_told = false;  // to the indexes of `builds`
  };

  explicit AttentionBatch(const HookOptions* options) : options_(options) {}

  // Brings the policy's index of every sequence of the layer's rows up to date on paper: what is to
  // be filled in kIndex.
  void PlanIndex(Layer* layer);

  void Index(Layer* layer, int thread, int threads);
  void Run(Layer* layer, Phase phase, int thread);
  // The layer's exact attention for a prompt batch.
  void RunPrompt(int thread);

  void set_measure(bool on) { measure_ = on; }
  // Adds the last layer's figures to the totals. Call between graphs.
  void Harvest();
  HookStats& stats() { return stats_; }

 private:
  // Before the first unit of a graph is built, whichever thread comes first.
  static void TellQueryNorms(Layer* layer);
  void PlanStep(Layer* layer, int threads);
  void PlanPrompt(const Layer& layer, int threads);

  const HookOptions* options_;
  bool measure_ = false;
  DecodeStep step_;
  bool step_done_ = false;  // figures of step_ wait to be harvested
  std::vector<DecodeRequest> requests_;
  PromptStep prompt_;
  std::atomic<int64_t> build_ns_ = 0;
  HookStats stats_;
};

}  // namespace tactic::llama

#endif  // TACTIC_LLAMA_SRC_GRAPH_BATCH_H_
