#include "tactic_llama/hook.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama/src/cell_tracker.h"
#include "llama/src/graph_batch.h"
#include "llama/src/huge_pages.h"
#include "llama/src/node_rewrite.h"
#include "llama/src/policy.h"
#include "llama/src/stage_clock.h"
#include "src/check.h"
#include "tactic/isa.h"

namespace tactic::llama {
namespace {

// The nodes before attention that our first phases take: they compute nothing, and everything they
// need has been computed.
constexpr int kPhasesBefore = 4;  // index, rank, budget, select

}  // namespace

class Hook::Impl {
 public:
  explicit Impl(const HookOptions& options) : batch_(&options_) { Apply(options); }

  static bool Callback(ggml_tensor* node, bool ask, void* self) {
    if (ask) static_cast<Impl*>(self)->Visit(node);
    return false;  // never stop after a node: the whole graph runs in one go
  }

  // Called for every node in order, before any of them runs.
  void Visit(ggml_tensor* node) {
    if (IsRewritten(node, PhaseFunction)) Restore(node);
    any_node_ = true;
    const bool empty = IsEmptyOp(node);
    if (!empty && node->op != GGML_OP_SET_ROWS && node->op != GGML_OP_NONE &&
        KeyCacheLayer(node) >= 0) {
      // A key cache rewritten other than row by row: a context shift.
      for (auto& [first_layer, group] : groups_) group.tracker.InvalidateAll();
    }
    if (options_.policy == Policy::kStock) {
      if (node->op == GGML_OP_FLASH_ATTN_EXT) ++batch_.stats().nodes_stock;
      return;
    }
    if (pending_ != nullptr) Settle(node);
    if (node->op == GGML_OP_SET_ROWS) VisitWrite(node);
    if (node->op == GGML_OP_FLASH_ATTN_EXT) VisitAttention(node);
    if (empty) {
      empty_.push_back(node);
    } else {
      empty_.clear();
    }
  }

  Status SetOptions(const HookOptions& options) {
    TACTIC_RETURN_IF_ERROR(Check(options));
    batch_.Harvest();
    Apply(options);
    return Status::Ok();
  }

  static Status Check(const HookOptions& options) {
    TACTIC_RETURN_IF_ERROR(IsaStatus());
    TACTIC_RETURN_IF_ERROR(options.tactic.Validate());
    CustomOp probe;
    TACTIC_RETURN_IF_ERROR(CustomOp::Make(PhaseFunction, nullptr, &probe));
    if (options.max_decode_tokens < 1 || options.max_decode_tokens > 64) {
      return Status::InvalidArgument("max_decode_tokens is " +
                                     std::to_string(options.max_decode_tokens) +
                                     "; expected a number from 1 to 64");
    }
    return Status::Ok();
  }

  void DropIndex() {
    for (Mode mode : {Mode::kPaper, Mode::kTactic}) DropIndex(mode);
  }

  void MeasureMass(bool on) { batch_.set_measure(on); }

  void MeasureStages(bool on) { time_stages_ = on; }

  std::vector<LayerTimes> TakeStageTimes() {
    std::vector<LayerTimes> times;
    for (auto& [layer, calls] : layers_) times.push_back(calls->clock.Take(layer));
    return times;
  }

  HookStats TakeStats() {
    batch_.Harvest();
    HookStats stats = batch_.stats();
    for (auto& [first_layer, group] : groups_) {
      stats.edits += group.tracker.edits() - group.edits_taken;
      group.edits_taken = group.tracker.edits();
      if (!HasIndex(options_.tactic.mode)) continue;
      stats.index_bytes += static_cast<int64_t>(group.tracker.IndexBytes(options_.tactic.mode));
    }
    batch_.stats() = HookStats();
    return stats;
  }

  const HookOptions& options() const { return options_; }
  Status Problem() const {
    if (any_node_ && !any_attention_ && options_.policy != Policy::kStock) {
      return Status::Unsupported(
          "the model's graph has no flash-attention nodes, so its attention cannot be taken over");
    }
    return problem_;
  }

 private:
  // Before the phases of DecodeStep; in the order of Stage.
  enum { kIndexPhase = -2, kPromptPhase = -1, kFirstPhase = kIndexPhase };
  // What a rewritten node calls: one phase of one layer.
  struct PhaseCall {
    Impl* hook;
    AttentionBatch::Layer* layer;
    StageClock* clock;
    int phase;
    CustomOp op;
  };
  struct LayerCalls {
    AttentionBatch::Layer layer;
    StageClock clock;
    std::vector<PhaseCall> calls;  // from kFirstPhase on

    const CustomOp& op(int phase) const { return calls[phase - kFirstPhase].op; }
    uint64_t graph = 0;  // the graph it serves
  };
  // Layers that share a mask, and so a cache and its cell numbers.
  struct Group {
    CellTracker tracker;
    std::vector<TrackedRow> rows;  // of the current batch
    uint64_t graph = 0;            // which it belongs to
    bool understood = false;       // the batch is one we can follow
    bool decode = false;
    bool slides = false;
    int print_layer = -1;
    int64_t visible = 0;  // most cells a row of the current batch sees
    int64_t edits_taken = 0;
  };

  void Apply(const HookOptions& options) {
    options_ = options;
    options_.tactic.mode = ModeOf(options.policy);
    if (!HasIndex(options_.tactic.mode)) return;
    const auto [last, first] = index_options_.try_emplace(options_.tactic.mode, options_.tactic);
    if (!first && !SameIndex(last->second, options_.tactic)) DropIndex(last->first);
    last->second = options_.tactic;
  }

  void DropIndex(Mode mode) {
    for (auto& [first_layer, group] : groups_) group.tracker.DropIndexes(mode);
  }

  static void PhaseFunction(ggml_tensor*, int thread, int threads, void* user_data) {
    const auto* call = static_cast<const PhaseCall*>(user_data);
    const StageTimer timer(call->hook->time_stages_ ? call->clock : nullptr,
                           static_cast<Stage>(call->phase - kFirstPhase));
    if (call->phase == kPromptPhase) {
      call->hook->batch_.RunPrompt(thread);
    } else if (call->phase == kIndexPhase) {
      call->hook->batch_.Index(call->layer, thread, threads);
    } else {
      call->hook->batch_.Run(call->layer, static_cast<Phase>(call->phase), thread);
    }
  }

  // The calls of layer `layer`, made once.
  LayerCalls* Calls(int layer) {
    auto& calls = layers_[layer];
    if (calls == nullptr) {
      calls = std::make_unique<LayerCalls>();
      for (int phase = kFirstPhase; phase < kPhases; ++phase) {
        calls->calls.push_back({this, &calls->layer, &calls->clock, phase, {}});
      }
      for (PhaseCall& call : calls->calls) {
        const Status status = CustomOp::Make(PhaseFunction, &call, &call.op);
        TACTIC_CHECK(status.ok());  // it was when the hook was made
      }
    }
    return calls.get();
  }

  // Rows of a key cache are being written: the cells of the batch, and the sign that a new graph
  // begins.
  void VisitWrite(ggml_tensor* node) {
    const int layer = KeyCacheLayer(node);
    if (layer < 0) return;
    if (layer <= last_layer_) BeginGraph();
    last_layer_ = layer;
    const ggml_tensor* cells = node->src[1];
    written_.clear();
    if (cells == nullptr || cells->buffer == nullptr || !ggml_backend_buffer_is_host(cells->buffer))
      return;
    for (int64_t i = 0; i < cells->ne[0]; ++i) {
      written_.push_back(cells->type == GGML_TYPE_I64
                             ? static_cast<const int64_t*>(cells->data)[i]
                             : static_cast<const int32_t*>(cells->data)[i]);
    }
  }

  void BeginGraph() {
    ++graph_;
    batch_.Harvest();
    last_layer_ = -1;
    problem_ = Status::Ok();
    // With several caches, one whose rows see fewer cells than another's is a sliding window: too
    // short for us to help.
    int64_t most = 0;
    for (auto& [first_layer, group] : groups_) most = std::max(most, group.visible);
    for (auto& [first_layer, group] : groups_) group.slides = group.visible < most;
  }

  void VisitAttention(ggml_tensor* node) {
    any_attention_ = true;
    if (!Prepare(node)) ++batch_.stats().nodes_stock;
  }

  // Makes ready to take over an attention node, or at least to index the keys of a prompt batch.
  // False: it stays stock.
  bool Prepare(ggml_tensor* node) {
    LayerView view;
    const Status status = view.Read(node);
    if (!status.ok()) {
      problem_ = status;
      return false;
    }
    if (std::ssize(empty_) < kPhasesBefore) {
      problem_ = Status::Unsupported("too few empty nodes before attention; expected at least 4");
      return false;
    }
    Group& group = BeginGroup(view);
    LayerCalls* calls = Calls(view.layer);
    // Layers that share another layer's keys stay stock: their index is already being built in this
    // graph.
    if (!group.understood || group.slides || calls->graph == graph_) return false;
    calls->graph = graph_;
    for (const ggml_tensor* cache : {node->src[1]->view_src, node->src[2]->view_src}) {
      if (!large_pages_.insert(cache->buffer).second) continue;
      PreferHugePages(ggml_backend_buffer_get_base(cache->buffer),
                      ggml_backend_buffer_get_size(cache->buffer));
    }
    AttentionBatch::Layer& layer = calls->layer;
    layer.view = view;
    layer.tracker = &group.tracker;
    layer.rows = &group.rows;
    layer.decode = group.decode;
    layer.prompt = !group.decode && options_.prompt_attention;
    if (view.layer >= group.print_layer) {
      group.print_layer = view.layer;
      group.tracker.SetPrintSource(view.keys, view.shape.kv_heads * view.keys.head_stride);
    }
    layer.record_prints = view.layer == group.print_layer;
    batch_.PlanIndex(&layer);
    if (layer.decode) {
      std::copy(empty_.end() - kPhasesBefore, empty_.end(), before_);
      pending_ = calls;
      pending_node_ = node;
      return true;
    }
    bool due = layer.record_prints || layer.prompt;
    for (const auto& build : layer.builds) due = due || build.units > 0;
    if (due) calls->op(kIndexPhase).Rewrite(empty_.back());
    if (!layer.prompt) return false;
    calls->op(kPromptPhase).Rewrite(node);
    ++batch_.stats().nodes_ours;
    return true;
  }

  // The node after attention: if it is the view of its output that every graph of llama.cpp has
  // there, all phases have their place and the nodes are rewritten; if not, attention stays stock.
  void Settle(ggml_tensor* node) {
    LayerCalls* calls = pending_;
    pending_ = nullptr;
    if (node->op != GGML_OP_RESHAPE || node->src[0] != pending_node_) {
      problem_ =
          Status::Unsupported("attention is followed by " + std::string(ggml_op_name(node->op)) +
                              "; expected a reshape of its output");
      ++batch_.stats().nodes_stock;
      return;
    }
    const auto call = [&](Phase phase) -> const CustomOp& {
      return calls->op(static_cast<int>(phase));
    };
    if (options_.policy == Policy::kDense) {  // all rows are forced: one phase attends to them, and
                                              // two have nothing to do
      calls->op(kIndexPhase).Rewrite(before_[kPhasesBefore - 1]);
      call(Phase::kRank).Rewrite(pending_node_);
    } else {
      calls->op(kIndexPhase).Rewrite(before_[0]);
      for (Phase phase : {Phase::kRank, Phase::kBudget, Phase::kSelect})
        call(phase).Rewrite(before_[1 + static_cast<int>(phase)]);
      call(Phase::kAttend).Rewrite(pending_node_);
    }
    call(Phase::kCombine).Rewrite(node);
    ++batch_.stats().nodes_ours;
  }

  // The group of a layer, brought up to date with this batch at the first of its layers.
  Group& BeginGroup(const LayerView& view) {
    const ggml_tensor* mask = view.node->src[3];
    // Masks move from graph to graph; the first layer that uses one names its group.
    if (!group_of_mask_.empty() && group_of_mask_.begin()->first.first != graph_)
      group_of_mask_.clear();
    const int first_layer = group_of_mask_.try_emplace({graph_, mask}, view.layer).first->second;
    Group& group = groups_[first_layer];
    if (group.graph == graph_) return group;
    group.graph = graph_;
    group.decode = view.tokens <= options_.max_decode_tokens;
    BatchView batch;
    batch.tokens = view.tokens;
    batch.streams = view.streams;
    batch.num_cells = mask->ne[0];
    batch.mask = static_cast<const uint8_t*>(mask->data);
    batch.mask_row_bytes = mask->nb[1];
    batch.mask_stream_bytes = mask->nb[3];
    batch.stream_base = view.StreamBases();
    batch.written = written_;
    CellSet last;
    const uint8_t* last_row = batch.mask + (view.tokens - 1) * batch.mask_row_bytes;
    group.understood = std::ssize(written_) == view.tokens * view.streams &&
                       last.ReadMask(reinterpret_cast<const uint16_t*>(last_row), batch.num_cells);
    group.visible = last.Count();
    if (group.slides) return group;
    group.understood = group.understood && group.tracker.Update(batch, group.decode, &group.rows);
    if (!group.understood) {
      problem_ = Status::Unsupported(
          "attention has a mask that is not a choice of cells, or cells that are not written by "
          "it");
      return group;
    }
    if (!group.decode) return group;
    for (const TrackedRow& row : group.rows) batch_.stats().fallbacks += row.track == nullptr;
    if (counted_graph_ != graph_) batch_.stats().tokens += std::ssize(group.rows);
    counted_graph_ = graph_;
    return group;
  }

  HookOptions options_;                    // with the mode of the policy
  std::map<Mode, Options> index_options_;  // that each mode had last
  AttentionBatch batch_;
  bool time_stages_ = false;
  Status problem_;
  std::map<int, std::unique_ptr<LayerCalls>> layers_;
  std::map<int, Group> groups_;  // by the first layer of each
  std::map<std::pair<uint64_t, const ggml_tensor*>, int> group_of_mask_;

  std::set<ggml_backend_buffer_t> large_pages_;  // buffers of the cache that were asked for
  uint64_t graph_ = 1;
  int last_layer_ = -1;
  uint64_t counted_graph_ = 0;
  bool any_node_ = false;
  bool any_attention_ = false;
  std::vector<int64_t> written_;     // cells that the last SET_ROWS of a key cache writes
  std::vector<ggml_tensor*> empty_;  // empty nodes since the last that computes
  ggml_tensor* before_[kPhasesBefore] = {};
  LayerCalls* pending_ = nullptr;  // attention node whose successor is not known yet
  ggml_tensor* pending_node_ = nullptr;
};

Status Hook::Create(const HookOptions& options, std::unique_ptr<Hook>* hook) {
  TACTIC_RETURN_IF_ERROR(Impl::Check(options));
  hook->reset(new Hook(std::make_unique<Impl>(options)));
  return Status::Ok();
}

Hook::Hook(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Hook::~Hook() = default;

Status Hook::Install(llama_context_params* params) {
  if (params->cb_eval != nullptr) {
    return Status::InvalidArgument(
        "cb_eval is already set; expected a context without an evaluation callback");
  }
  params->cb_eval = Impl::Callback;
  params->cb_eval_user_data = impl_.get();
  params->flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  return Status::Ok();
}

Status Hook::SetOptions(const HookOptions& options) { return impl_->SetOptions(options); }
const HookOptions& Hook::options() const { return impl_->options(); }
void Hook::DropIndex() { impl_->DropIndex(); }
void Hook::MeasureMass(bool on) { impl_->MeasureMass(on); }
void Hook::MeasureStages(bool on) { impl_->MeasureStages(on); }
HookStats Hook::TakeStats() { return impl_->TakeStats(); }
std::vector<LayerTimes> Hook::TakeStageTimes() { return impl_->TakeStageTimes(); }
Status Hook::LastProblem() const { return impl_->Problem(); }

}  // namespace tactic::llama
