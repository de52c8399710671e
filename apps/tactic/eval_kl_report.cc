#include "eval_kl_report.h"

#include <fmt/format.h>

#include "report.h"

namespace tactic::app {

void PrintKlTable(const std::vector<KlResult>& results, int tokens, FILE* out) {
  Table table({"depth", "policy", "target", "KL mean", "+-", "median", "p99", "max", "same top",
               "perplexity", "dense", "rows", "bytes", "p_hat mean", "min", "fallbacks"});
  for (const KlResult& result : results) {
    const NextTokenSummary summary = Summarize(result.tokens);
    const std::optional<Belief> belief = result.cost.Believed();
    table.AddRow(
        {fmt::format("{}", result.depth), result.name,
         Selects(result.cost.policy()) ? fmt::format("{}", result.cost.options().tactic.target)
                                       : "-",
         fmt::format("{:.5f}", summary.kl_mean), fmt::format("{:.5f}", summary.kl_standard_error),
         fmt::format("{:.5f}", summary.kl_median), fmt::format("{:.4f}", summary.kl_p99),
         fmt::format("{:.4f}", summary.kl_max), Percent(summary.same_top_share),
         fmt::format("{:.3f}", summary.perplexity),
         fmt::format("{:.3f}", summary.perplexity_reference), Percent(result.cost.RowsFraction()),
         Percent(result.cost.BytesFraction()),
         belief ? fmt::format("{:.3f}", belief->p_hat_mean) : "-",
         belief ? fmt::format("{:.3f}", belief->p_hat_min) : "-",
         fmt::format("{}", result.cost.fallbacks())});
  }
  table.Print(out);
  fmt::print(out,
             "\nKL(dense || policy) of the next token in nats, over {} tokens of the text after "
             "each depth;\n"
             "+-: its standard error. same top: share of tokens with the same likeliest successor. "
             "dense: the\n"
             "perplexity of dense attention. p_hat: the mass that selections believe they read.\n",
             tokens);
}

nlohmann::json KlRecords(const std::vector<KlResult>& results, const nlohmann::json& common) {
  nlohmann::json records = nlohmann::json::array();
  for (const KlResult& result : results) {
    nlohmann::json record = common;
    result.cost.AddTo(&record);
    const NextTokenSummary summary = Summarize(result.tokens);
    record["depth"] = result.depth;
    record["policy_given"] = result.name;
    record["target"] = Selects(result.cost.policy())
                           ? nlohmann::json(result.cost.options().tactic.target)
                           : nlohmann::json(nullptr);
    record["kl_mean"] = summary.kl_mean;
    record["kl_standard_error"] = summary.kl_standard_error;
    record["kl_median"] = summary.kl_median;
    record["kl_p99"] = summary.kl_p99;
    record["kl_max"] = summary.kl_max;
    record["kl_max_at"] = summary.kl_max_at;
    record["same_top_share"] = summary.same_top_share;
    record["perplexity"] = summary.perplexity;
    record["perplexity_dense"] = summary.perplexity_reference;
    records.push_back(std::move(record));
  }
  return records;
}

}  // namespace tactic::app
