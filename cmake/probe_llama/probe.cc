// Names every part of llama.cpp's interface that came late and that Tactic needs.
#include <ggml.h>
#include <llama.h>

int main() {
  llama_context_params params = llama_context_default_params();
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.cb_eval = nullptr;
  return (&llama_set_adapters_lora != nullptr) + (&ggml_custom_4d != nullptr) +
         static_cast<int>(params.n_ctx);
}
