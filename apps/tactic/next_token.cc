#include "next_token.h"

#include <algorithm>
#include <cmath>

#include "quality_stats.h"

namespace tactic::app {
namespace {

// log of the sum of exp(logit), with the largest taken out so that nothing overflows.
double LogSumExp(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit} - largest);
  return largest + std::log(sum);
}

std::ptrdiff_t Top(std::span<const float> logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

}  // namespace

NextToken CompareNextToken(std::span<const float> reference, std::span<const float> other,
                           int next) {
  const double log_sum_reference = LogSumExp(reference), log_sum = LogSumExp(other);
  double kl = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double log_p = double{reference[i]} - log_sum_reference;
    const double p = std::exp(log_p);
    if (p == 0) continue;  // also where its logarithm is -infinity
    kl += p * (log_p - (double{other[i]} - log_sum));
  }
  const auto at = static_cast<size_t>(next);
  // Rounding may leave it below 0; a NaN must stay one.
  return {.kl = kl < 0 ? 0 : kl,
          .same_top = Top(reference) == Top(other),
          .nll_reference = log_sum_reference - double{reference[at]},
          .nll = log_sum - double{other[at]}};
}

NextTokenSummary Summarize(const std::vector<NextToken>& tokens) {
  const auto n = static_cast<double>(tokens.size());
  NextTokenSummary summary;
  std::vector<double> kl;
  double nll_reference = 0, nll = 0, same_top = 0;
  for (const NextToken& token : tokens) {
    kl.push_back(token.kl);
    summary.kl_mean += token.kl / n;
    same_top += token.same_top ? 1 : 0;
    nll_reference += token.nll_reference;
    nll += token.nll;
  }
  double squares = 0;
  for (const double value : kl) squares += (value - summary.kl_mean) * (value - summary.kl_mean);
  if (kl.size() > 1) summary.kl_standard_error = std::sqrt(squares / (n - 1) / n);
  const auto largest = std::max_element(kl.begin(), kl.end());
  summary.kl_max = *largest;
  summary.kl_max_at = static_cast<int>(largest - kl.begin());
  summary.kl_median = Percentile(kl, 0.5);
  summary.kl_p99 = Percentile(kl, 0.99);
  summary.same_top_share = same_top / n;
  summary.perplexity_reference = std::exp(nll_reference / n);
  summary.perplexity = std::exp(nll / n);
  return summary;
}

}  // namespace tactic::app
