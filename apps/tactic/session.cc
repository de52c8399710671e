#include "session.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>

#include "interrupt.h"
#include "llama_log.h"
#include "memory.h"

namespace tactic::app {
namespace {

// llama.cpp pads a context to this many tokens.
constexpr int64_t kContextUnit = 256;

}  // namespace

int RoundUpContext(int64_t tokens) {
  return static_cast<int>((tokens + kContextUnit - 1) / kContextUnit * kContextUnit);
}

bool CallbackPair::Call(ggml_tensor* node, bool ask, void* pair) {
  const auto* self = static_cast<const CallbackPair*>(pair);
  if (ask) self->first.function(node, ask, self->first.data);
  return self->second.function(node, ask, self->second.data);
}

Status Session::Open(const Model& model, const SessionOptions& options,
                     const llama::HookOptions* hook_options, std::unique_ptr<Session>* result) {
  const int64_t bytes =
      int64_t{options.context} * model.facts().KvBytesPerToken(options.type_k, options.type_v);
  TACTIC_RETURN_IF_ERROR(
      CheckMemory(bytes, fmt::format("the KV cache of a context of {} tokens", options.context)));

  std::unique_ptr<Session> session(new Session());
  session->model_ = &model;
  session->options_ = options;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(options.context);
  params.n_batch = params.n_ubatch = static_cast<uint32_t>(options.batch);
  params.n_threads = params.n_threads_batch = options.threads;
  params.type_k = options.type_k;
  params.type_v = options.type_v;
  params.rope_freq_base = options.rope_freq_base;
  params.flash_attn_type =
      options.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.swa_full = options.keep_window;
  params.offload_kqv = params.op_offload = false;  // attention reads the cache in host memory
  params.no_perf = true;
  params.abort_callback = AbortOnInterrupt;
  TACTIC_RETURN_IF_ERROR(session->InstallCallbacks(hook_options, &params));
  ForgetLlamaErrors();
  session->context_.reset(llama_init_from_model(model.get(), params));
  if (!session->context_) {
    const std::string reason = LlamaError();
    return Status::Unsupported(fmt::format("model '{}' gives no context of {} tokens: {}",
                                           model.path(), options.context,
                                           reason.empty() ? "no reason given" : reason));
  }
  if (model.adapter() != nullptr) {
    llama_adapter_lora* adapter = model.adapter();
    float scale = 1;
    if (llama_set_adapters_lora(session->get(), &adapter, 1, &scale) != 0) {
      return Status::Unsupported(fmt::format("adapter '{}' cannot be applied to model '{}'",
                                             model.lora_path(), model.path()));
    }
  }
  TACTIC_RETURN_IF_ERROR(session->CheckTakeover());
  *result = std::move(session);
  return Status::Ok();
}

Status Session::InstallCallbacks(const llama::HookOptions* hook_options,
                                 llama_context_params* params) {
  if (hook_options != nullptr) {
    TACTIC_RETURN_IF_ERROR(llama::Hook::Create(*hook_options, &hook_));
    TACTIC_RETURN_IF_ERROR(hook_->Install(params));
  }
  if (options_.capture == nullptr) return Status::Ok();
  callbacks_.first = {params->cb_eval, params->cb_eval_user_data};
  params->cb_eval = nullptr;
  TACTIC_RETURN_IF_ERROR(options_.capture->Install(params));
  if (hook_options == nullptr) return Status::Ok();
  callbacks_.second = {params->cb_eval, params->cb_eval_user_data};
  params->cb_eval = CallbackPair::Call;
  params->cb_eval_user_data = &callbacks_;
  return Status::Ok();
}

Status Session::CheckTakeover() {
  if (!hook_ || hook_->options().policy == llama::Policy::kStock) return Status::Ok();
  TACTIC_RETURN_IF_ERROR(Step(0));
  const Status problem = hook_->LastProblem();
  if (!problem.ok()) {
    return Status::Unsupported(fmt::format(
        "policy '{}' cannot be used with model '{}': {}; --policy stock works without Tactic",
        llama::PolicyName(hook_->options().policy), model_->path(), problem.message()));
  }
  Clear();
  hook_->TakeStats();
  return Status::Ok();
}

Status Session::Decode(std::span<const llama_token> tokens) {
  if (Interrupted()) return InterruptedStatus();
  if (depth_ + static_cast<int64_t>(tokens.size()) > capacity()) {
    return Status::OutOfRange(fmt::format("{} tokens do not fit behind the {} in a context of {}",
                                          tokens.size(), depth_, capacity()));
  }
  ForgetLlamaErrors();
  // llama_batch_get_one wants a mutable pointer but only reads.
  auto* data = const_cast<llama_token*>(tokens.data());
  const int32_t code =
      llama_decode(get(), llama_batch_get_one(data, static_cast<int32_t>(tokens.size())));
  if (Interrupted()) {
    // Some of the batch may be in the cache; leave a sequence that can be continued.
    llama_memory_seq_rm(llama_get_memory(get()), 0, depth_, -1);
    return InterruptedStatus();
  }
  if (code != 0) {
    const std::string reason = LlamaError();
    return Status::Internal(fmt::format("llama_decode failed with code {} at token {}: {}", code,
                                        depth_, reason.empty() ? "no reason given" : reason));
  }
  llama_synchronize(get());
  depth_ += static_cast<int>(tokens.size());
  return Status::Ok();
}

Status Session::Read(std::span<const llama_token> tokens, Progress* progress) {
  // A batch of few tokens would count as decoding: the last two batches share what is left.
  const auto smallest = static_cast<size_t>(hook_ ? hook_->options().max_decode_tokens + 1 : 1);
  const auto batch = static_cast<size_t>(options_.batch);
  const int start = depth_;
  if (depth_ + static_cast<int64_t>(tokens.size()) > capacity()) {
    return Status::OutOfRange(fmt::format("the prompt has {} tokens, but the context holds only {}",
                                          depth_ + static_cast<int64_t>(tokens.size()),
                                          capacity()));
  }
  while (!tokens.empty()) {
    size_t count = std::min(batch, tokens.size());
    const size_t rest = tokens.size() - count;
    if (rest > 0 && rest < smallest && count >= 2 * smallest) count -= smallest;
    TACTIC_RETURN_IF_ERROR(Decode(tokens.first(count)));
    tokens = tokens.subspan(count);
    if (progress != nullptr) progress->Update(depth_, start);
  }
  return Status::Ok();
}

Status Session::Step(llama_token token, double* milliseconds) {
  const auto start = std::chrono::steady_clock::now();
  TACTIC_RETURN_IF_ERROR(Decode({&token, 1}));
  if (milliseconds != nullptr) {
    const auto time = std::chrono::steady_clock::now() - start;
    *milliseconds = std::chrono::duration<double, std::milli>(time).count();
  }
  return Status::Ok();
}

Status Session::RollBack(int depth) {
  if (depth == depth_) return Status::Ok();
  if (!llama_memory_seq_rm(llama_get_memory(get()), 0, depth, -1)) {
    return Status::Unsupported(fmt::format(
        "model '{}' keeps a state that cannot be rolled back, expected a plain KV cache",
        model_->path()));
  }
  depth_ = depth;
  return Status::Ok();
}

void Session::Clear() {
  llama_memory_clear(llama_get_memory(get()), false);
  depth_ = 0;
  if (hook_) hook_->DropIndex();
}

void Session::SetDepth(int depth) {
  depth_ = depth;
  if (hook_) hook_->DropIndex();  // it never saw the cells being written
}

Status Session::UsePolicy(const llama::HookOptions& options) { return hook_->SetOptions(options); }

}  // namespace tactic::app
