// A cache filled with keys and values for which the queries that a model really has at a depth find
// what attention to a long text is like: `tactic bench --fill synthetic`.
//
// The queries of the steps to come are captured, keys are made for them (bench/synthetic), and the
// queries are captured again: what they find is what is reported. Values are small, as what
// attention returns changes the queries of the layers above.
#ifndef TACTIC_APPS_SYNTHETIC_FILL_H_
#define TACTIC_APPS_SYNTHETIC_FILL_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>

#include "session.h"

namespace tactic::app {

// Least depth that has room for a sink, topics and a window.
inline constexpr int kLeastSyntheticDepth = 512;

struct SyntheticOptions {
  int needed = 1800;  // tokens with 90 % of the mass, on average over layers, heads and steps
  uint64_t seed = 1;
};

// Means over layers, query heads and some steps.
struct SyntheticFacts {
  double asked = 0;   // tokens with 90 % of the mass: as wanted, at most a tenth of the depth
  double needed = 0;  // as it came out
  double needed_log_sd = 0;  // standard deviation of its logarithm
  double first = 0;          // mass of the first token
  double recent = 0;         // of the newest 64
  double largest = 0;        // of the largest of the others
  double alike = 0;          // correlation of the logits of neighbours
  int64_t cases = 0;
  int rounds = 0;  // of capturing and filling
};
nlohmann::json ToJson(const SyntheticFacts& facts);

// Replaces what `session` holds by `depth` tokens; those that will be decoded there are `next`.
// Unsupported for models whose layers slide or cap their logits, and where the cache is neither f16
// nor bf16. REQUIRES: the session has a hook and a capture; depth >= kLeastSyntheticDepth.
Status FillSynthetic(const SyntheticOptions& options, int depth, std::span<const llama_token> next,
                     Session* session, SyntheticFacts* facts);

}  // namespace tactic::app

#endif  // TACTIC_APPS_SYNTHETIC_FILL_H_
