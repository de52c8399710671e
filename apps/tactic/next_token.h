// How far the next token that a policy predicts is from the one that exact attention predicts.
#ifndef TACTIC_APPS_NEXT_TOKEN_H_
#define TACTIC_APPS_NEXT_TOKEN_H_

#include <span>
#include <vector>

namespace tactic::app {

struct NextToken {
  double kl = 0;             // KL(reference || other) in nats, over the whole vocabulary
  bool same_top = false;     // both hold the same token for the likeliest
  double nll_reference = 0;  // -log of the probability of the token that really follows
  double nll = 0;
};

// Both are logits [vocabulary]; `next` is the token that really follows. All sums in double; equal
// logits have a `kl` of exactly 0. NaN where a logit is.
NextToken CompareNextToken(std::span<const float> reference, std::span<const float> other,
                           int next);

struct NextTokenSummary {
  double kl_mean = 0;
  double kl_standard_error = 0;  // as if tokens were independent; 0 for a single one
  double kl_median = 0;
  double kl_p99 = 0;  // by nearest rank
  double kl_max = 0;
  int kl_max_at = 0;  // index of that token
  double same_top_share = 0;
  double perplexity_reference = 0;
  double perplexity = 0;
};

// REQUIRES: `tokens` is not empty.
NextTokenSummary Summarize(const std::vector<NextToken>& tokens);

}  // namespace tactic::app

#endif  // TACTIC_APPS_NEXT_TOKEN_H_
