// Keys and values of one KV head for queries that are given: of a model that was not trained, or of
// another text.
//
// Logits are what is designed. Those of the tokens of a passage have a part in common, their
// topic's, and most of either part is the same for all queries of the group: it lies along a
// direction that all of them have the same product with. The rest is isotropic, so that each query
// sees it differently and keys fill the space. How large logits are is found by bisection: the
// fewest tokens with 90 % of the mass number `needed`, on average over the queries. Sink, window
// and heavy tokens get keys along directions that give each query, as nearly as least squares
// can, the product that makes up their share.
#ifndef TACTIC_BENCH_SYNTHETIC_PLANTED_HEAD_H_
#define TACTIC_BENCH_SYNTHETIC_PLANTED_HEAD_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace tactic::synthetic {

inline constexpr int64_t kLeastTokens = 512;

struct HeadQueries {
  std::span<const float> x;  // [steps][group][head_dim], times the scale of logits
  int group = 1;
  int head_dim = 0;
  // [steps][group]: log of the sum of exp(logit) over keys that the query sees and that are not
  // ours, those of the tokens after the text.
  std::span<const double> foreign;
};

struct HeadText {
  int64_t tokens = 0;  // at least kLeastTokens
  double needed = 0;   // tokens with 90 % of the mass; at least kSinks, at most tokens / 4
  int value_dim = 0;
  double value_size = 1;  // root of the mean square of values' elements
  uint64_t seed = 0;
};

// Where rows go: that of token t at data + t * stride.
struct HeadOutput {
  uint8_t* data = nullptr;
  size_t stride = 0;
  bool bf16 = false;  // else f16
};

// A text stays the same for a seed, whatever the queries are.
void PlantHead(const HeadText& text, const HeadQueries& queries, const HeadOutput& keys,
               const HeadOutput& values);

}  // namespace tactic::synthetic

#endif  // TACTIC_BENCH_SYNTHETIC_PLANTED_HEAD_H_
