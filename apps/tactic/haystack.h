// Haystacks: pieces of text hidden between the sentences of a long one.
#ifndef TACTIC_APPS_HAYSTACK_H_
#define TACTIC_APPS_HAYSTACK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "model.h"
#include "tactic/status.h"

namespace tactic::app {

struct Haystack {
  std::vector<llama_token> tokens;
  std::vector<double> depths;  // where each piece starts, as a share of the tokens
};

enum class Placing : uint8_t {
  kRandom,  // anywhere
  kEven,    // at equal distances, in random order
};

// `size` tokens of `book` from a random sentence on, pieces included, every piece between two
// sentences. OutOfRange when the book is too short. Deterministic for a seed.
Status HidePieces(const Model& model, const std::vector<llama_token>& book, int size,
                  const std::vector<std::string>& pieces, Placing placing, uint64_t seed,
                  Haystack* haystack);

}  // namespace tactic::app

#endif  // TACTIC_APPS_HAYSTACK_H_
