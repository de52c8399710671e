#include "tiny_model.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "ggml.h"
#include "gguf.h"

namespace tactic::app {
namespace {

constexpr int64_t kEmbedding = 32;
constexpr int64_t kInner = 2 * kEmbedding;  // the only expansion that llama.cpp knows
constexpr int64_t kConvolution = 4;
constexpr int64_t kState = 16;
constexpr int64_t kTimeStepRank = 4;

}  // namespace

void WriteTinyMamba(const std::string& tokenizer_model, const std::string& path) {
  gguf_context* source =
      gguf_init_from_file(tokenizer_model.c_str(), {/*no_alloc=*/true, /*ctx=*/nullptr});
  ASSERT_NE(source, nullptr);
  gguf_context* gguf = gguf_init_empty();
  gguf_set_kv(gguf, source);  // the tokenizer, and llama's own keys, which Mamba ignores
  const int64_t tokens_key = gguf_find_key(source, "tokenizer.ggml.tokens");
  const auto vocabulary = static_cast<int64_t>(gguf_get_arr_n(source, tokens_key));
  gguf_set_val_str(gguf, "general.architecture", "mamba");
  const auto set = [&](const char* key, int64_t value) {
    gguf_set_val_u32(gguf, key, static_cast<uint32_t>(value));
  };
  set("mamba.context_length", 4096);
  set("mamba.embedding_length", kEmbedding);
  set("mamba.feed_forward_length", 0);
  set("mamba.attention.head_count", 0);
  set("mamba.block_count", 1);
  set("mamba.ssm.conv_kernel", kConvolution);
  set("mamba.ssm.inner_size", kInner);
  set("mamba.ssm.state_size", kState);
  set("mamba.ssm.time_step_rank", kTimeStepRank);
  gguf_set_val_f32(gguf, "mamba.attention.layer_norm_rms_epsilon", 1e-5F);

  const size_t bytes = static_cast<size_t>(vocabulary * kEmbedding) * sizeof(float) + (1 << 22);
  ggml_context* tensors = ggml_init({bytes, nullptr, /*no_alloc=*/false});
  const auto add = [&](const char* name, int64_t columns, int64_t rows = 0) {
    ggml_tensor* tensor = rows == 0 ? ggml_new_tensor_1d(tensors, GGML_TYPE_F32, columns)
                                    : ggml_new_tensor_2d(tensors, GGML_TYPE_F32, columns, rows);
    std::memset(tensor->data, 0, ggml_nbytes(tensor));
    ggml_set_name(tensor, name);
    gguf_add_tensor(gguf, tensor);
  };
  add("token_embd.weight", kEmbedding, vocabulary);
  add("output_norm.weight", kEmbedding);
  add("blk.0.attn_norm.weight", kEmbedding);
  add("blk.0.ssm_in.weight", kEmbedding, 2 * kInner);
  add("blk.0.ssm_conv1d.weight", kConvolution, kInner);
  add("blk.0.ssm_conv1d.bias", kInner);
  add("blk.0.ssm_x.weight", kInner, kTimeStepRank + 2 * kState);
  add("blk.0.ssm_dt.weight", kTimeStepRank, kInner);
  add("blk.0.ssm_dt.bias", kInner);
  add("blk.0.ssm_a", kState, kInner);
  add("blk.0.ssm_d", kInner);
  add("blk.0.ssm_out.weight", kInner, kEmbedding);
  EXPECT_TRUE(gguf_write_to_file(gguf, path.c_str(), /*only_meta=*/false));
  ggml_free(tensors);
  gguf_free(gguf);
  gguf_free(source);
}

}  // namespace tactic::app
