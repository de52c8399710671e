// A model of four layers of which every other one slides over a window.
#ifndef TACTIC_TESTS_APP_TINY_GEMMA_H_
#define TACTIC_TESTS_APP_TINY_GEMMA_H_

#include <string>

namespace tactic::app {

inline constexpr int kTinyGemmaWindow = 64;
inline constexpr float kTinyGemmaSoftcap = 50;

// Writes a Gemma 2 with random weights and the tokenizer of `tokenizer_model`. Layers 0 and 2
// slide; attention logits are softly capped.
void WriteTinyGemma(const std::string& tokenizer_model, const std::string& path);

}  // namespace tactic::app

#endif  // TACTIC_TESTS_APP_TINY_GEMMA_H_
