// Facts: invented sentences to hide in a long text, and questions about them.
//
// The sentences and questions have the wording on which the bundled adapter was trained (its model
// is small and answers nothing else reliably); names and values are not those of the training.
#ifndef TACTIC_APPS_FACTS_H_
#define TACTIC_APPS_FACTS_H_

#include <cstdint>
#include <string>
#include <vector>

namespace tactic::app {

struct Fact {
  std::string sentence;
  std::string question;
  std::string value;  // an answer is right when it contains this
};

inline constexpr int kMostFacts = 8;

// `count` facts of different kinds. Deterministic for a seed. REQUIRES: 0 <= count <= kMostFacts.
std::vector<Fact> MakeFacts(int count, uint64_t seed);

}  // namespace tactic::app

#endif  // TACTIC_APPS_FACTS_H_
