// Sampler: picks the next token from the logits of the last step.
#ifndef TACTIC_APPS_SAMPLER_H_
#define TACTIC_APPS_SAMPLER_H_

#include <cstdint>

#include "llama-cpp.h"

namespace tactic::app {

class Sampler {
 public:
  // `temperature` 0: always the likeliest token. Otherwise drawn at random, the same for one seed.
  explicit Sampler(double temperature = 0, uint32_t seed = 0)
      : chain_(llama_sampler_chain_init(llama_sampler_chain_default_params())) {
    if (temperature <= 0) {
      llama_sampler_chain_add(chain_.get(), llama_sampler_init_greedy());
    } else {
      llama_sampler_chain_add(chain_.get(),
                              llama_sampler_init_temp(static_cast<float>(temperature)));
      llama_sampler_chain_add(chain_.get(), llama_sampler_init_dist(seed));
    }
  }

  llama_token Sample(llama_context* context) const {
    return llama_sampler_sample(chain_.get(), context, -1);
  }

 private:
  llama_sampler_ptr chain_;
};

}  // namespace tactic::app

#endif  // TACTIC_APPS_SAMPLER_H_
