// Models made for tests.
#ifndef TACTIC_TESTS_APP_TINY_MODEL_H_
#define TACTIC_TESTS_APP_TINY_MODEL_H_

#include <string>

namespace tactic::app {

// Writes a one-layer Mamba with zero weights and the tokenizer of `tokenizer_model`: a model
// without any attention, hence without a node that Tactic could take over.
void WriteTinyMamba(const std::string& tokenizer_model, const std::string& path);

}  // namespace tactic::app

#endif  // TACTIC_TESTS_APP_TINY_MODEL_H_
