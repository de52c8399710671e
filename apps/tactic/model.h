// Model: a GGUF model with its optional LoRA adapter, and what it knows about text.
//
// Runs on the CPU only: Tactic's attention reads the KV cache in host memory. Thread-compatible.
#ifndef TACTIC_APPS_MODEL_H_
#define TACTIC_APPS_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "llama-cpp.h"
#include "tactic/status.h"

namespace tactic::app {

// What the file says about the model. Head counts are those of the first layer.
struct ModelFacts {
  std::string architecture;
  std::string description;
  int layers = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim_k = 0;
  int head_dim_v = 0;
  int context = 0;  // tokens the model was trained on
  int vocabulary = 0;
  int sliding_window = 0;  // tokens; 0: none
  double rope_base = 0;    // 0: unknown
  int64_t parameters = 0;
  int64_t tensor_bytes = 0;
  // False for recurrent and hybrid models: their state cannot be rolled back to a smaller depth.
  bool attention_only = true;

  // Bytes that one token takes in the KV cache of all layers (an upper bound when layers differ).
  int64_t KvBytesPerToken(ggml_type type_k, ggml_type type_v) const;
};

struct ModelOptions {
  std::string path;
  std::string lora_path;  // empty: no adapter
  // Let llama.cpp keep the weights in a layout for this CPU (its "extra buffer types").
  bool repack = true;
};

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

class Model {
 public:
  // Loads the model and its adapter. NotFound when a file is missing or unreadable, Unsupported
  // when it is not a complete model (or adapter) that llama.cpp knows.
  static Status Load(const ModelOptions& options, std::unique_ptr<Model>* model);

  llama_model* get() const { return model_.get(); }
  llama_adapter_lora* adapter() const { return adapter_.get(); }
  const llama_vocab* vocab() const { return llama_model_get_vocab(model_.get()); }
  const ModelFacts& facts() const { return facts_; }
  const std::string& path() const { return options_.path; }
  const std::string& lora_path() const { return options_.lora_path; }

  // Tokens of `text`. `start`: it is the start of a sequence (adds the BOS token where the model
  // wants one). `special`: "<|im_start|>" and its like become control tokens.
  Status Tokenize(std::string_view text, bool start, bool special,
                  std::vector<llama_token>* tokens) const;

  // Leaves out the first `count` tokens of a text, but not the token that the start of a sequence
  // needs.
  void Skip(int count, std::vector<llama_token>* tokens) const;

  // The bytes of a token; control tokens are empty.
  std::string Piece(llama_token token) const;

  bool IsEndOfGeneration(llama_token token) const { return llama_vocab_is_eog(vocab(), token); }

  // The chat as one text, ending where the assistant starts to answer. Unsupported when the model
  // has no chat template, or one that llama.cpp does not know.
  Status ApplyChatTemplate(const std::vector<ChatMessage>& messages, std::string* text) const;

  // The chat as the text before and after `marker`, which must occur in a message: lets a long text
  // be read once and different questions be asked after it.
  Status SplitChatTemplate(const std::vector<ChatMessage>& messages, std::string_view marker,
                           std::pair<std::string, std::string>* halves) const;

 private:
  Model() = default;

  ModelOptions options_;
  llama_model_ptr model_;
  llama_adapter_lora_ptr adapter_;  // after model_: freed before it
  ModelFacts facts_;
};

}  // namespace tactic::app

#endif  // TACTIC_APPS_MODEL_H_
