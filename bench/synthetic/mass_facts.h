// What the attention of one query is like: how sparse, and where its mass lies.
#ifndef TACTIC_BENCH_SYNTHETIC_MASS_FACTS_H_
#define TACTIC_BENCH_SYNTHETIC_MASS_FACTS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace tactic::synthetic {

inline constexpr double kNeededMass = 0.9;  // of MassFacts::needed

struct MassFacts {
  int64_t needed = 0;  // the fewest tokens with 90 % of the mass
  double first = 0;    // mass of the first token
  double recent = 0;   // mass of the newest 64
  double largest = 0;  // mass of the largest of the others
  double alike = 0;    // correlation of the logits of neighbours
};

// From the logits of all tokens, oldest first. REQUIRES: at least 128 of them.
MassFacts FactsOf(std::span<const double> logits);

// Keys of one KV head: that of token t at data + t * stride.
struct KeyRows {
  const uint8_t* data = nullptr;
  size_t stride = 0;
  bool bf16 = false;  // else f16
};

// Of queries [count][dim], times the scale of logits; query j sees the first visible[j] tokens.
std::vector<MassFacts> FactsOf(std::span<const float> queries, size_t dim, const KeyRows& keys,
                               std::span<const int64_t> visible);

}  // namespace tactic::synthetic

#endif  // TACTIC_BENCH_SYNTHETIC_MASS_FACTS_H_
