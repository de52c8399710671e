#include "tiny_gemma.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "ggml.h"
#include "gguf.h"

namespace tactic::app {
namespace {

constexpr int64_t kEmbedding = 32;
constexpr int64_t kFeedForward = 64;
constexpr int kLayers = 4;
constexpr int64_t kQueryHeads = 4;
constexpr int64_t kKeyHeads = 2;
constexpr int64_t kHeadDim = 16;

}  // namespace

void WriteTinyGemma(const std::string& tokenizer_model, const std::string& path) {
  gguf_context* source =
      gguf_init_from_file(tokenizer_model.c_str(), {/*no_alloc=*/true, /*ctx=*/nullptr});
  ASSERT_NE(source, nullptr);
  gguf_context* gguf = gguf_init_empty();
  gguf_set_kv(gguf, source);  // the tokenizer, and llama's own keys, which Gemma ignores
  const int64_t tokens_key = gguf_find_key(source, "tokenizer.ggml.tokens");
  const auto vocabulary = static_cast<int64_t>(gguf_get_arr_n(source, tokens_key));
  gguf_set_val_str(gguf, "general.architecture", "gemma2");
  const auto set = [&](const char* key, int64_t value) {
    gguf_set_val_u32(gguf, key, static_cast<uint32_t>(value));
  };
  set("gemma2.context_length", 4096);
  set("gemma2.embedding_length", kEmbedding);
  set("gemma2.feed_forward_length", kFeedForward);
  set("gemma2.block_count", kLayers);
  set("gemma2.attention.head_count", kQueryHeads);
  set("gemma2.attention.head_count_kv", kKeyHeads);
  set("gemma2.attention.key_length", kHeadDim);
  set("gemma2.attention.value_length", kHeadDim);
  set("gemma2.attention.sliding_window", kTinyGemmaWindow);
  gguf_set_val_f32(gguf, "gemma2.attention.layer_norm_rms_epsilon", 1e-6F);
  gguf_set_val_f32(gguf, "gemma2.attn_logit_softcapping", kTinyGemmaSoftcap);
  gguf_set_val_f32(gguf, "gemma2.final_logit_softcapping", 30);

  const size_t bytes = static_cast<size_t>(vocabulary * kEmbedding) * sizeof(float) + (1 << 22);
  ggml_context* tensors = ggml_init({bytes, nullptr, /*no_alloc=*/false});
  std::minstd_rand random(1);
  const auto add = [&](const std::string& name, int64_t columns, int64_t rows = 1) {
    ggml_tensor* tensor = rows == 1 ? ggml_new_tensor_1d(tensors, GGML_TYPE_F32, columns)
                                    : ggml_new_tensor_2d(tensors, GGML_TYPE_F32, columns, rows);
    auto* values = static_cast<float*>(tensor->data);
    std::uniform_real_distribution<float> uniform(-0.5F, 0.5F);
    for (int64_t i = 0; i < columns * rows; ++i) values[i] = uniform(random);
    ggml_set_name(tensor, name.c_str());
    gguf_add_tensor(gguf, tensor);
  };
  add("token_embd.weight", kEmbedding, vocabulary);
  add("output_norm.weight", kEmbedding);
  for (int layer = 0; layer < kLayers; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    for (const char* norm : {"attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"}) {
      add(prefix + norm + ".weight", kEmbedding);
    }
    add(prefix + "attn_q.weight", kEmbedding, kQueryHeads * kHeadDim);
    add(prefix + "attn_k.weight", kEmbedding, kKeyHeads * kHeadDim);
    add(prefix + "attn_v.weight", kEmbedding, kKeyHeads * kHeadDim);
    add(prefix + "attn_output.weight", kQueryHeads * kHeadDim, kEmbedding);
    add(prefix + "ffn_gate.weight", kEmbedding, kFeedForward);
    add(prefix + "ffn_up.weight", kEmbedding, kFeedForward);
    add(prefix + "ffn_down.weight", kFeedForward, kEmbedding);
  }
  EXPECT_TRUE(gguf_write_to_file(gguf, path.c_str(), /*only_meta=*/false));
  ggml_free(tensors);
  gguf_free(gguf);
  gguf_free(source);
}

}  // namespace tactic::app
