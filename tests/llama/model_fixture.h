// A real model for the adapter's tests: SmolLM2-135M from $TACTIC_MODEL or models/, loaded once per
// process.
#ifndef TACTIC_TESTS_LLAMA_MODEL_FIXTURE_H_
#define TACTIC_TESTS_LLAMA_MODEL_FIXTURE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "llama.h"

namespace tactic::llama {

struct ModelDeleter {
  void operator()(llama_model* model) const { llama_model_free(model); }
};
struct ContextDeleter {
  void operator()(llama_context* context) const { llama_free(context); }
};
using ContextPtr = std::unique_ptr<llama_context, ContextDeleter>;

inline llama_model* Model() {
  static const std::unique_ptr<llama_model, ModelDeleter> model = [] {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    llama_backend_init();
    const char* path = std::getenv("TACTIC_MODEL");
    const std::string file =
        path != nullptr ? path : TACTIC_PROJECT_DIR "/models/SmolLM2-135M-Instruct.Q4_1.gguf";
    return std::unique_ptr<llama_model, ModelDeleter>(
        llama_model_load_from_file(file.c_str(), llama_model_default_params()));
  }();
  EXPECT_NE(model, nullptr) << "scripts/setup.sh links the model into models/";
  return model.get();
}

// The first `count` tokens of Moby Dick.
inline std::vector<llama_token> BookTokens(size_t count) {
  std::stringstream text;
  text << std::ifstream(TACTIC_PROJECT_DIR "/data/moby_dick.txt").rdbuf();
  const std::string prefix = text.str().substr(0, 8 * count + 4096);
  std::vector<llama_token> tokens(prefix.size());
  const int n = llama_tokenize(llama_model_get_vocab(Model()), prefix.data(),
                               static_cast<int32_t>(prefix.size()), tokens.data(),
                               static_cast<int32_t>(tokens.size()), true, false);
  EXPECT_GE(n, static_cast<int>(count));
  tokens.resize(count);
  return tokens;
}

inline llama_context_params SmallContext(uint32_t tokens) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = tokens;
  params.n_batch = 512;
  params.n_ubatch = 512;
  params.n_threads = params.n_threads_batch = 2;
  return params;
}

// Kullback-Leibler divergence of the next-token distributions that two vectors of logits stand for,
// in nats.
inline double Kl(const std::vector<float>& p_logits, const std::vector<float>& q_logits) {
  const auto log_sum = [](const std::vector<float>& logits) {
    const double max = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (float l : logits) sum += std::exp(l - max);
    return max + std::log(sum);
  };
  const double p_sum = log_sum(p_logits), q_sum = log_sum(q_logits);
  double kl = 0;
  for (size_t i = 0; i < p_logits.size(); ++i) {
    const double log_p = p_logits[i] - p_sum;
    kl += std::exp(log_p) * (log_p - (q_logits[i] - q_sum));
  }
  return kl;
}

}  // namespace tactic::llama

#endif  // TACTIC_TESTS_LLAMA_MODEL_FIXTURE_H_
