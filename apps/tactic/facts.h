// Facts: invented sentences to hide in a long text, and questions about them.
//
// The sentences and questions have the wording on which the bundled adapter was trained (its model
// is small and answers nothing else reliably); names and values are not those of the training.
#ifndef TACTIC_APPS_FACTS_H_
#define TACTIC_APPS_FACTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "model.h"
#include "tactic/status.h"

namespace tactic::app {

struct Fact {
  std::string sentence;
  std::string question;
  std::string value;  // an answer is right when it contains this
};

inline constexpr int kMostFacts = 8;

// `count` facts of different kinds. Deterministic for a seed. REQUIRES: 0 <= count <= kMostFacts.
std::vector<Fact> MakeFacts(int count, uint64_t seed);

struct Haystack {
  std::vector<llama_token> tokens;
  std::vector<double> depths;  // where each fact starts, as a share of the tokens
};

// `size` tokens of `book` from a random sentence on, with every fact between two sentences at a
// random place. OutOfRange when the book is too short. Deterministic for a seed.
Status HideFacts(const Model& model, const std::vector<llama_token>& book, int size,
                 const std::vector<Fact>& facts, uint64_t seed, Haystack* haystack);

}  // namespace tactic::app

#endif  // TACTIC_APPS_FACTS_H_
