#include "llama/src/graph_batch.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "ggml-backend.h"
#include "llama/src/policy.h"

namespace tactic::llama {
namespace {

bool ReadType(ggml_type type, ElementType* out) {
  switch (type) {
    case GGML_TYPE_F32:
      *out = ElementType::kF32;
      return true;
    case GGML_TYPE_F16:
      *out = ElementType::kF16;
      return true;
    case GGML_TYPE_BF16:
      *out = ElementType::kBF16;
      return true;
    case GGML_TYPE_Q8_0:
      *out = ElementType::kQ8_0;
      return true;
    case GGML_TYPE_Q4_0:
      *out = ElementType::kQ4_0;
      return true;
    default:
      return false;
  }
}

// A view of a cache tensor, [dim, cells, heads, streams], as rows numbered from the tensor's first
// cell.
Status ReadRows(const ggml_tensor* view, RowsView* rows) {
  const std::string name = view->name;
  if (view->view_src == nullptr || view->view_src->buffer == nullptr) {
    return Status::Unsupported(name + " is not a view of the KV cache");
  }
  if (!ggml_backend_buffer_is_host(view->view_src->buffer)) {
    return Status::Unsupported(name +
                               " lies in a device buffer; expected the KV cache in host memory");
  }
  if (!ReadType(view->type, &rows->type)) {
    return Status::Unsupported(name + " has type " + ggml_type_name(view->type) +
                               "; expected f32, f16, bf16, q8_0 or q4_0");
  }
  if (view->nb[0] != ggml_type_size(view->type)) {
    return Status::Unsupported(name + " is stored transposed; expected rows of one token each");
  }
  rows->data = static_cast<const uint8_t*>(view->view_src->data);
  rows->row_stride = view->nb[1];
  rows->head_stride = view->nb[2];
  return Status::Ok();
}

// Everything was checked when the node was taken over.
void CheckPlan(const LayerView& view, const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "tactic: internal error: layer %d: %s\n", view.layer,
               status.message().c_str());
  std::abort();
}

}  // namespace

void AddReport(const HeadReport& head, double target, HookStats* stats) {
  if (head.p_hat >= 0) {
    ++stats->selections;
    stats->p_hat_sum += head.p_hat;
    stats->p_hat_min = std::min(stats->p_hat_min, head.p_hat);
    stats->extended += head.rounds > 0;
    stats->coded += head.code_error > 0;
    stats->code_error_sum += head.code_error;
    stats->code_error_max = std::max(stats->code_error_max, head.code_error);
  }
  if (head.own_mass < 0) return;
  constexpr double kRounding = 0.001;  // a target missed by less is reached
  constexpr double kOverclaim = 0.05;  // one missed by more should have been noticed
  const double reached = target - kRounding;
  ++stats->cases;
  stats->own_mass_sum += head.own_mass;
  stats->union_mass_sum += head.union_mass;
  stats->own_mass_min = std::min(stats->own_mass_min, head.own_mass);
  stats->union_mass_min = std::min(stats->union_mass_min, head.union_mass);
  stats->own_reached += head.own_mass >= reached;
  stats->union_reached += head.union_mass >= reached;
  stats->overclaims += head.p_hat >= target && head.own_mass < target - kOverclaim;
}

int KeyCacheLayer(const ggml_tensor* node) {
  constexpr std::string_view kPrefix = "cache_k_l";
  const ggml_tensor* cache = node->view_src != nullptr ? node->view_src : node;
  if (!std::string_view(cache->name).starts_with(kPrefix)) return -1;
  return std::atoi(cache->name + kPrefix.size());
}

Status LayerView::Read(const ggml_tensor* attention) {
  const ggml_tensor* q = attention->src[0];
  const ggml_tensor* k = attention->src[1];
  const ggml_tensor* v = attention->src[2];
  const ggml_tensor* mask = attention->src[3];
  layer = KeyCacheLayer(k);
  if (k->view_src == nullptr || layer < 0) {
    return Status::Unsupported("attention reads keys from " + std::string(k->name) +
                               "; expected a KV cache");
  }
  if (mask == nullptr || mask->type != GGML_TYPE_F16 || mask->buffer == nullptr ||
      !ggml_backend_buffer_is_host(mask->buffer)) {
    return Status::Unsupported("attention has no f16 mask in host memory");
  }
  if (attention->src[4] != nullptr) return Status::Unsupported("attention has learned sinks");
  if (q->type != GGML_TYPE_F32 || attention->type != GGML_TYPE_F32 ||
      !ggml_is_contiguous(attention)) {
    return Status::Unsupported("queries or outputs are not f32");
  }
  TACTIC_RETURN_IF_ERROR(ReadRows(k, &keys));
  TACTIC_RETURN_IF_ERROR(ReadRows(v, &values));
  float params[3];  // scale, max_bias, softcap
  std::memcpy(params, attention->op_params, sizeof(params));
  if (params[1] != 0) return Status::Unsupported("attention uses ALiBi");
  node = attention;
  shape = {static_cast<int>(q->ne[2]), static_cast<int>(k->ne[2]), static_cast<int>(k->ne[0]),
           static_cast<int>(v->ne[0])};
  tokens = q->ne[1];
  streams = q->ne[3];
  scale = params[0];
  softcap = params[2];
  Status status = shape.Validate();
  if (!status.ok()) return Status::Unsupported(status.message());
  if (k->ne[3] != streams || mask->ne[3] != streams || mask->ne[1] < tokens || mask->ne[2] != 1 ||
      v->ne[2] != k->ne[2]) {
    return Status::Unsupported("attention has sources of unexpected sizes");
  }
  return Status::Ok();
}

std::vector<int64_t> LayerView::StreamBases() const {
  const ggml_tensor* k = node->src[1];
  const auto offset = static_cast<int64_t>(static_cast<const uint8_t*>(k->data) - keys.data);
  std::vector<int64_t> bases;
  for (int64_t s = 0; s < streams; ++s) {
    bases.push_back((offset + s * static_cast<int64_t>(k->nb[3])) /
                    static_cast<int64_t>(keys.row_stride));
  }
  return bases;
}

std::vector<float> LayerView::QueryNorms() const {
  // Of a stream: plenty for a mean that chooses between 2 and 4 bits.
  constexpr int64_t kTokens = 64;
  const ggml_tensor* q = node->src[0];
  std::vector<float> norms;
  for (int h = 0; h < shape.kv_heads; ++h) {
    double sum = 0;
    int64_t count = 0;
    for (int64_t s = 0; s < streams; ++s) {
      for (int64_t t = std::max<int64_t>(0, tokens - kTokens); t < tokens; ++t) {
        for (int head = h * shape.group(); head < (h + 1) * shape.group(); ++head) {
          const auto* row = reinterpret_cast<const float*>(
              static_cast<const uint8_t*>(q->data) + t * q->nb[1] + head * q->nb[2] + s * q->nb[3]);
          double square = 0;
          for (int i = 0; i < shape.head_dim; ++i) square += double{row[i]} * double{row[i]};
          if (!std::isfinite(square)) continue;
          sum += square;
          ++count;
        }
      }
    }
    const double mean = count > 0 ? sum / static_cast<double>(count) : 0;
    norms.push_back(static_cast<float>(mean * scale * scale));
  }
  return norms;
}

void AttentionBatch::PlanIndex(Layer* layer) {
  layer->builds.clear();
  layer->next_unit = 0;
  layer->norms_told = false;
  const Mode mode = options_->tactic.mode;
  if (!HasIndex(mode)) return;
  for (const TrackedRow& row : *layer->rows) {
    if (row.track == nullptr) continue;
    const bool seen =
        std::any_of(layer->builds.begin(), layer->builds.end(),
                    [&](const Layer::Build& build) { return build.track == row.track; });
    if (seen) continue;
    auto [at, created] = row.track->indexes.try_emplace(std::pair(mode, layer->view.layer),
                                                        layer->view.shape, options_->tactic);
    if (created) at->second.Append(std::ssize(row.track->cells));
    const Building building = layer->decode ? Building::kAll : Building::kClosed;
    layer->builds.push_back({row.track, &at->second, at->second.PlanBuild(building)});
  }
}

void AttentionBatch::TellQueryNorms(Layer* layer) {
  const std::lock_guard<std::mutex> lock(layer->norms_mutex);
  if (layer->norms_told) return;
  if (layer->query_norms.empty()) layer->query_norms = layer->view.QueryNorms();
  for (const Layer::Build& build : layer->builds) build.index->SetQueryNorms(layer->query_norms);
  layer->norms_told = true;
}

void AttentionBatch::Index(Layer* layer, int thread, int threads) {
  int total = 0;
  for (const Layer::Build& build : layer->builds) total += build.units;
  // Before PlanStep looks at the indexes. The first prompt batch has queries enough, whether there
  // is something to build or not; a decode step has few.
  if (total > 0 || (thread == 0 && !layer->decode && !layer->builds.empty())) TellQueryNorms(layer);
  if (thread == 0) {
    if (layer->record_prints) layer->tracker->RecordPrints();
    if (layer->decode) PlanStep(layer, threads);
    if (layer->prompt) PlanPrompt(*layer, threads);
  }
  if (total == 0) return;
  const auto begin = std::chrono::steady_clock::now();
  for (int unit = layer->next_unit++; unit < total; unit = layer->next_unit++) {
    int within = unit;
    for (const Layer::Build& build : layer->builds) {
      if (within < build.units) {
        build.index->BuildUnit(within, layer->view.keys, layer->view.values, build.track->cells);
        break;
      }
      within -= build.units;
    }
  }
  build_ns_ +=
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - begin)
          .count();
}

void AttentionBatch::PlanStep(Layer* layer, int threads) {
  Harvest();
  const LayerView& view = layer->view;
  const ggml_tensor* q = view.node->src[0];
  const ggml_tensor* out = view.node;
  requests_.clear();
  for (int64_t s = 0; s < view.streams; ++s) {
    for (int64_t t = 0; t < view.tokens; ++t) {
      const TrackedRow& row = (*layer->rows)[s * view.tokens + t];
      DecodeRequest request;
      request.q = reinterpret_cast<const float*>(static_cast<const uint8_t*>(q->data) +
                                                 t * q->nb[1] + s * q->nb[3]);
      request.q_stride = q->nb[2] / sizeof(float);
      request.keys = view.keys;
      request.values = view.values;
      request.cells = row.cells();
      request.out = reinterpret_cast<float*>(static_cast<uint8_t*>(out->data) + t * out->nb[2] +
                                             s * out->nb[3]);
      request.out_stride = out->nb[1] / sizeof(float);
      const Mode mode = options_->tactic.mode;
      if (row.track != nullptr && HasIndex(mode)) {
        request.index = &row.track->indexes.at({mode, view.layer});
      }
      requests_.push_back(request);
    }
  }
  const DecodeParams params{view.scale, view.softcap, measure_};
  CheckPlan(view, step_.Plan(view.shape, options_->tactic, params, requests_, threads));
  step_done_ = false;
}

void AttentionBatch::PlanPrompt(const Layer& layer, int threads) {
  const LayerView& view = layer.view;
  const ggml_tensor* q = view.node->src[0];
  const ggml_tensor* k = view.node->src[1];
  const ggml_tensor* mask = view.node->src[3];
  const ggml_tensor* out = view.node;
  const std::vector<int64_t> bases = view.StreamBases();
  std::vector<PromptRequest> requests;
  for (int64_t s = 0; s < view.streams; ++s) {
    const auto stream = static_cast<size_t>(s);
    PromptRequest request;
    request.tokens = view.tokens;
    request.q =
        reinterpret_cast<const float*>(static_cast<const uint8_t*>(q->data) + stream * q->nb[3]);
    request.q_token_stride = q->nb[1] / sizeof(float);
    request.q_head_stride = q->nb[2] / sizeof(float);
    request.out = reinterpret_cast<float*>(static_cast<uint8_t*>(out->data) + stream * out->nb[3]);
    request.out_token_stride = out->nb[2] / sizeof(float);
    request.out_head_stride = out->nb[1] / sizeof(float);
    request.keys = view.keys;
    request.values = view.values;
    request.keys.data += static_cast<size_t>(bases[stream]) * view.keys.row_stride;
    request.values.data += static_cast<size_t>(bases[stream]) * view.values.row_stride;
    request.num_cells = k->ne[1];
    request.mask = reinterpret_cast<const uint16_t*>(static_cast<const uint8_t*>(mask->data) +
                                                     stream * mask->nb[3]);
    request.mask_stride = mask->nb[1] / sizeof(uint16_t);
    requests.push_back(request);
  }
  CheckPlan(view, prompt_.Plan(view.shape, {view.scale, view.softcap, false}, requests, threads));
}

void AttentionBatch::RunPrompt(int thread) { prompt_.Run(thread); }

void AttentionBatch::Run(Layer* layer, Phase phase, int thread) {
  (void)layer;
  step_.RunPhase(phase, thread);
  if (phase == Phase::kCombine && thread == 0) step_done_ = true;
}

void AttentionBatch::Harvest() {
  stats_.index_build_ns += build_ns_.exchange(0);
  if (!step_done_) return;
  step_done_ = false;
  const DecodeStats step = step_.stats();
  stats_.rows_read += step.rows_read;
  stats_.rows_dense += step.rows_dense;
  stats_.bytes_read += step.bytes_read;
  stats_.bytes_clusters += step.bytes_clusters;
  stats_.bytes_codes += step.bytes_codes;
  stats_.bytes_rows += step.bytes_rows;
  stats_.bytes_dense += step.bytes_dense;
  for (const HeadReport& head : step_.head_reports())
    AddReport(head, options_->tactic.target, &stats_);
}

}  // namespace tactic::llama
