#include "tactic_llama/capture.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "llama/src/cell_tracker.h"
#include "llama/src/graph_batch.h"

namespace tactic::llama {
namespace {

Status OfLayer(int layer, const Status& status) {
  if (layer < 0) return status;
  return {status.code(), "layer " + std::to_string(layer) + ": " + status.message()};
}

bool IsHalf(ElementType type) { return type == ElementType::kF16 || type == ElementType::kBF16; }

// Whether a step fits what a Capture is for, besides what it sees.
Status CheckStep(const LayerView& view) {
  if (view.tokens != 1 || view.streams != 1) {
    return Status::Unsupported("a step has " + std::to_string(view.tokens * view.streams) +
                               " tokens; expected one");
  }
  for (const ElementType type : {view.keys.type, view.values.type}) {
    if (!IsHalf(type)) {
      return Status::Unsupported(std::string("the KV cache has type ") + ElementTypeName(type) +
                                 "; expected f16 or bf16");
    }
  }
  return Status::Ok();
}

}  // namespace

class Capture::Impl {
 public:
  explicit Impl(const CaptureOptions& options)
      : wanted_(options.layers.begin(), options.layers.end()) {}

  static bool Callback(ggml_tensor* node, bool ask, void* user_data) {
    auto* self = static_cast<Impl*>(user_data);
    if (!self->on_ || node->op != GGML_OP_FLASH_ATTN_EXT || !self->Wants(node)) return false;
    if (!ask) self->Take(node);
    return true;  // asked: stop after this node, its sources are valid then; else: go on
  }

  void Start(int64_t tokens) {
    on_ = false;
    first_ = tokens;
    steps_ = 0;
    layers_.clear();
    problem_ = Status::Ok();
  }
  void BeginStep() {
    on_ = true;
    ++steps_;
    taken_.clear();
  }
  void Stop() { on_ = false; }

  int steps() const { return steps_; }
  const std::vector<CapturedLayer>& layers() const { return layers_; }

  Status Problem() const {
    if (!problem_.ok()) return problem_;
    if (layers_.empty() && wanted_.empty()) {
      return Status::Unsupported(
          "the model's graph has no flash-attention nodes, so its attention cannot be captured");
    }
    for (const int layer : wanted_) {
      const auto at = Find(layer);
      if (at == layers_.end() || at->layer != layer) {
        return Status::NotFound("layer " + std::to_string(layer) +
                                " has no attention with keys of its own");
      }
    }
    return Status::Ok();
  }

 private:
  std::vector<CapturedLayer>::const_iterator Find(int layer) const {
    return std::lower_bound(layers_.begin(), layers_.end(), layer,
                            [](const CapturedLayer& a, int b) { return a.layer < b; });
  }

  bool Wants(const ggml_tensor* node) const {
    return wanted_.empty() || wanted_.contains(KeyCacheLayer(node->src[1]));
  }

  void Take(const ggml_tensor* node) {
    LayerView view;
    Status status = view.Read(node);
    if (!taken_.insert(view.layer).second) return;  // attends to keys of a layer before it
    if (status.ok()) status = CheckStep(view);
    if (status.ok()) status = Add(view);
    if (!status.ok() && problem_.ok()) problem_ = OfLayer(view.layer, status);
  }

  // The layer of `view` with the step's query.
  Status Add(const LayerView& view) {
    const auto at = Find(view.layer);
    const auto index = at - layers_.begin();
    if (at == layers_.end() || at->layer != view.layer) {
      if (steps_ > 1) return Status::Unsupported("it takes part in some steps only");
      CapturedLayer layer;
      layer.layer = view.layer;
      layer.shape = view.shape;
      layer.scale = view.scale;
      layer.softcap = view.softcap;
      layer.keys = view.keys;
      layer.values = view.values;
      layers_.insert(at, std::move(layer));
    }
    CapturedLayer& layer = layers_[static_cast<size_t>(index)];
    if (layer.slides) return Status::Ok();

    const auto visible_tokens = first_ + steps_;
    CellSet visible;
    const ggml_tensor* mask = view.node->src[3];
    if (!visible.ReadMask(static_cast<const uint16_t*>(mask->data), mask->ne[0])) {
      return Status::Unsupported("its mask is not a choice of cells");
    }
    const int64_t count = visible.Count();
    if (count < visible_tokens) {
      layer.slides = true;
      return Status::Ok();
    }
    bool in_order = view.StreamBases().front() == 0 && count == visible_tokens;
    visible.ForEach([&](int64_t cell) { in_order = in_order && cell < visible_tokens; });
    if (!in_order) {
      return Status::Unsupported("the cells that a step sees are not the first " +
                                 std::to_string(visible_tokens) +
                                 "; expected a single sequence in a fresh context");
    }
    const ggml_tensor* q = view.node->src[0];
    for (int head = 0; head < view.shape.q_heads; ++head) {
      const auto* row = reinterpret_cast<const float*>(static_cast<const uint8_t*>(q->data) +
                                                       static_cast<size_t>(head) * q->nb[2]);
      layer.q.insert(layer.q.end(), row, row + view.shape.head_dim);
    }
    return Status::Ok();
  }

  const std::set<int> wanted_;
  bool on_ = false;
  int64_t first_ = 0;  // tokens before the first step
  int steps_ = 0;
  std::set<int> taken_;  // layers of the current step
  std::vector<CapturedLayer> layers_;
  Status problem_;  // the first
};

Status Capture::Create(const CaptureOptions& options, std::unique_ptr<Capture>* capture) {
  for (const int layer : options.layers) {
    if (layer < 0) {
      return Status::InvalidArgument("layers has " + std::to_string(layer) +
                                     "; expected numbers from 0");
    }
  }
  capture->reset(new Capture(std::make_unique<Impl>(options)));
  return Status::Ok();
}

Capture::Capture(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Capture::~Capture() = default;

Status Capture::Install(llama_context_params* params) {
  if (params->cb_eval != nullptr) {
    return Status::InvalidArgument(
        "cb_eval is already set; expected a context without an evaluation callback");
  }
  params->cb_eval = Impl::Callback;
  params->cb_eval_user_data = impl_.get();
  params->flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  return Status::Ok();
}

void Capture::Start(int64_t tokens) { impl_->Start(tokens); }
void Capture::BeginStep() { impl_->BeginStep(); }
void Capture::Stop() { impl_->Stop(); }
int Capture::steps() const { return impl_->steps(); }
const std::vector<CapturedLayer>& Capture::layers() const { return impl_->layers(); }
Status Capture::Problem() const { return impl_->Problem(); }

}  // namespace tactic::llama
