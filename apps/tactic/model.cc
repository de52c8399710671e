#include "model.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "interrupt.h"
#include "llama_log.h"

namespace tactic::app {
namespace {

namespace fs = std::filesystem;

constexpr int kMetaValueBytes = 256;

std::string MetaValue(const llama_model* model, const std::string& key) {
  std::string value(kMetaValueBytes, '\0');
  const int length = llama_model_meta_val_str(model, key.c_str(), value.data(), value.size());
  value.resize(length < 0 ? 0 : std::min<size_t>(length, value.size() - 1));
  return value;
}

int MetaInt(const llama_model* model, const std::string& key, int otherwise) {
  const std::string value = MetaValue(model, key);
  return value.empty() ? otherwise : std::atoi(value.c_str());
}

// llama.cpp's own messages for a file that is no GGUF are about its reader; say it plainly first.
Status CheckGguf(const std::string& path, const std::string& what) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) {
    return Status::NotFound(fmt::format("{} '{}' is a folder, expected a GGUF file", what, path));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return Status::NotFound(
        fmt::format("{} '{}' cannot be read: {}", what, path, std::strerror(errno)));
  }
  char magic[4] = {};
  file.read(magic, sizeof(magic));
  if (!file || std::memcmp(magic, "GGUF", sizeof(magic)) != 0) {
    return Status::Unsupported(fmt::format(
        "{} '{}' is not a GGUF file: its first four bytes are not \"GGUF\"", what, path));
  }
  return Status::Ok();
}

Status LoadFailed(const std::string& path, const std::string& what) {
  const std::string reason = LlamaError();
  return Status::Unsupported(
      fmt::format("{} '{}' cannot be loaded, expected a complete GGUF file: {}", what, path,
                  reason.empty() ? "no reason given" : reason));
}

ModelFacts ReadFacts(const llama_model* model) {
  ModelFacts facts;
  facts.architecture = MetaValue(model, "general.architecture");
  facts.description.resize(kMetaValueBytes);
  const int length = llama_model_desc(model, facts.description.data(), facts.description.size());
  facts.description.resize(length < 0 ? 0 : length);
  facts.layers = llama_model_n_layer(model);
  facts.q_heads = llama_model_n_head(model);
  facts.kv_heads = llama_model_n_head_kv(model);
  const std::string prefix = facts.architecture + ".";
  const int even_split = facts.q_heads > 0 ? llama_model_n_embd(model) / facts.q_heads : 0;
  facts.head_dim_k = MetaInt(model, prefix + "attention.key_length", even_split);
  facts.head_dim_v = MetaInt(model, prefix + "attention.value_length", even_split);
  facts.context = llama_model_n_ctx_train(model);
  facts.vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
  facts.sliding_window = llama_model_n_swa(model);
  facts.rope_base = std::atof(MetaValue(model, prefix + "rope.freq_base").c_str());
  facts.parameters = static_cast<int64_t>(llama_model_n_params(model));
  facts.tensor_bytes = static_cast<int64_t>(llama_model_size(model));
  facts.attention_only = !llama_model_is_recurrent(model) && !llama_model_is_hybrid(model);
  return facts;
}

bool ContinueLoading(float /*fraction*/, void* /*unused*/) { return !Interrupted(); }

}  // namespace

int64_t ModelFacts::KvBytesPerToken(ggml_type type_k, ggml_type type_v) const {
  return static_cast<int64_t>(layers) * (ggml_row_size(type_k, int64_t{kv_heads} * head_dim_k) +
                                         ggml_row_size(type_v, int64_t{kv_heads} * head_dim_v));
}

Status Model::Load(const ModelOptions& options, std::unique_ptr<Model>* result) {
  const std::string& path = options.path;
  const std::string& lora_path = options.lora_path;
  TACTIC_RETURN_IF_ERROR(CheckGguf(path, "model"));
  if (!lora_path.empty()) TACTIC_RETURN_IF_ERROR(CheckGguf(lora_path, "adapter"));

  std::unique_ptr<Model> model(new Model());
  model->options_ = options;
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  params.use_extra_bufts = options.repack;
  params.progress_callback = ContinueLoading;
  ForgetLlamaErrors();
  model->model_.reset(llama_model_load_from_file(path.c_str(), params));
  if (Interrupted()) return InterruptedStatus();
  if (!model->model_) return LoadFailed(path, "model");
  if (!llama_model_has_decoder(model->get())) {
    return Status::Unsupported(
        fmt::format("model '{}' has no decoder, expected one that generates text", path));
  }
  model->facts_ = ReadFacts(model->get());
  if (!lora_path.empty()) {
    model->adapter_.reset(llama_adapter_lora_init(model->get(), lora_path.c_str()));
    if (!model->adapter_) return LoadFailed(lora_path, "adapter");
  }
  *result = std::move(model);
  return Status::Ok();
}

Status Model::Tokenize(std::string_view text, bool start, bool special,
                       std::vector<llama_token>* tokens) const {
  if (text.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    return Status::InvalidArgument(
        fmt::format("the text has {} bytes, expected less than 2 GiB", text.size()));
  }
  const auto size = static_cast<int32_t>(text.size());
  const auto tokenize = [&] {
    return llama_tokenize(vocab(), text.data(), size, tokens->data(),
                          static_cast<int32_t>(tokens->size()), start, special);
  };
  tokens->resize(text.size() / 3 + 16);  // English has about four bytes a token
  int32_t count = tokenize();
  if (count < 0 && count != std::numeric_limits<int32_t>::min()) {
    tokens->resize(static_cast<size_t>(-count));
    count = tokenize();
  }
  if (count < 0) return Status::Internal("llama.cpp could not tokenize the text");
  tokens->resize(static_cast<size_t>(count));
  return Status::Ok();
}

void Model::Skip(int count, std::vector<llama_token>* tokens) const {
  const bool starts = llama_vocab_get_add_bos(vocab()) && !tokens->empty() &&
                      tokens->front() == llama_vocab_bos(vocab());
  const auto first = tokens->begin() + (starts ? 1 : 0);
  tokens->erase(first, first + std::min<std::ptrdiff_t>(count, tokens->end() - first));
}

std::string Model::Piece(llama_token token) const {
  std::string piece(64, '\0');
  int32_t size = llama_token_to_piece(vocab(), token, piece.data(),
                                      static_cast<int32_t>(piece.size()), 0, false);
  if (size < 0) {
    piece.resize(static_cast<size_t>(-size));
    size = llama_token_to_piece(vocab(), token, piece.data(), static_cast<int32_t>(piece.size()), 0,
                                false);
  }
  piece.resize(static_cast<size_t>(std::max(size, 0)));
  return piece;
}

Status Model::ApplyChatTemplate(const std::vector<ChatMessage>& messages, std::string* text) const {
  const char* chat_template = llama_model_chat_template(get(), nullptr);
  if (chat_template == nullptr) {
    return Status::Unsupported(fmt::format(
        "model '{}' has no chat template; use --raw to send the text as it is", path()));
  }
  std::vector<llama_chat_message> chat;
  size_t size = 256;
  for (const ChatMessage& message : messages) {
    chat.push_back({message.role.c_str(), message.content.c_str()});
    size += 2 * (message.role.size() + message.content.size());
  }
  const auto apply = [&] {
    return llama_chat_apply_template(chat_template, chat.data(), chat.size(), true, text->data(),
                                     static_cast<int32_t>(text->size()));
  };
  text->resize(size);
  int32_t length = apply();
  if (length > static_cast<int32_t>(text->size())) {
    text->resize(static_cast<size_t>(length));
    length = apply();
  }
  if (length < 0) {
    return Status::Unsupported(fmt::format(
        "the chat template of model '{}' is not one that llama.cpp knows; use --raw", path()));
  }
  text->resize(static_cast<size_t>(length));
  return Status::Ok();
}

Status Model::SplitChatTemplate(const std::vector<ChatMessage>& messages, std::string_view marker,
                                std::pair<std::string, std::string>* halves) const {
  std::string chat;
  TACTIC_RETURN_IF_ERROR(ApplyChatTemplate(messages, &chat));
  const size_t at = chat.find(marker);
  if (at == std::string::npos) {
    return Status::Unsupported(
        fmt::format("the chat template of model '{}' changes the text", path()));
  }
  halves->first = chat.substr(0, at);
  halves->second = chat.substr(at + marker.size());
  return Status::Ok();
}

}  // namespace tactic::app
