#include "demo_report.h"

#include <fmt/format.h>

#include "report.h"

namespace tactic::app {
namespace {

using llama::Policy;

double MedianOf(const DemoResult& result, Policy policy) {
  for (const Cost& cost : result.costs) {
    if (cost.policy() == policy && cost.steps() > 0) return cost.Time().median;
  }
  return 0;
}

int RightAnswers(const DemoResult& result, size_t policy) {
  int right = 0;
  for (const DemoQuestion& question : result.questions)
    right += question.answers[policy].right ? 1 : 0;
  return right;
}

}  // namespace

void PrintDemo(const DemoResult& result, FILE* out) {
  fmt::print(out, "\n");
  for (const DemoQuestion& question : result.questions) {
    fmt::print(out, "hidden at {:.0f} %: {}\n  asked: {}\n", 100 * question.depth,
               question.fact.sentence, question.fact.question);
    for (size_t i = 0; i < question.answers.size(); ++i) {
      fmt::print(out, "  {:<6}  {:<5}  {}\n", llama::PolicyName(result.costs[i].policy()),
                 question.answers[i].right ? "right" : "WRONG", question.answers[i].text);
    }
  }
  fmt::print(out, "\n");
  Table table({"policy", "right", "ms/token", "p10-p90", "vs stock", "vs dense", "rows read",
               "bytes read", "mass", fmt::format("reached {}", result.target)});
  const double stock = MedianOf(result, Policy::kStock), dense = MedianOf(result, Policy::kDense);
  for (size_t i = 0; i < result.costs.size(); ++i) {
    const Cost& cost = result.costs[i];
    const Quantiles time = cost.Time();
    const std::optional<Mass> mass = cost.MassReached();
    table.AddRow({llama::PolicyName(cost.policy()),
                  fmt::format("{}/{}", RightAnswers(result, i), result.questions.size()),
                  fmt::format("{:.2f}", time.median),
                  fmt::format("{:.2f}-{:.2f}", time.p10, time.p90), Speedup(time.median, stock),
                  Speedup(time.median, dense), Percent(cost.RowsFraction()),
                  Percent(cost.BytesFraction()), mass ? fmt::format("{:.3f}", mass->own_mean) : "-",
                  mass ? Percent(mass->own_reached) : "-"});
  }
  table.Print(out);
  fmt::print(
      out,
      "\nstock: llama.cpp with flash attention on; `tactic bench` compares with on and off.\n"
      "dense: Tactic's own exact attention. paper: the published algorithm. tactic: selects by "
      "codes\n"
      "of the keys, and extends what turns out to fall short.\n"
      "mass: share of softmax weight that a head's selection holds; reached: share of (layer, "
      "head,\n"
      "step) cases that hold the target. Both computed exactly, on steps that are not timed.\n");
  for (const Cost& cost : result.costs) {
    const std::string belief = cost.BeliefText();
    if (!belief.empty()) fmt::print(out, "{}: {}\n", llama::PolicyName(cost.policy()), belief);
  }
}

nlohmann::json DemoJson(const DemoResult& result) {
  nlohmann::json questions = nlohmann::json::array();
  for (const DemoQuestion& question : result.questions) {
    nlohmann::json answers;
    for (size_t i = 0; i < question.answers.size(); ++i) {
      answers[llama::PolicyName(result.costs[i].policy())] = {{"text", question.answers[i].text},
                                                              {"right", question.answers[i].right}};
    }
    questions.push_back({{"sentence", question.fact.sentence},
                         {"question", question.fact.question},
                         {"value", question.fact.value},
                         {"depth", question.depth},
                         {"answers", answers}});
  }
  nlohmann::json policies = nlohmann::json::array();
  const double stock = MedianOf(result, Policy::kStock), dense = MedianOf(result, Policy::kDense);
  for (size_t i = 0; i < result.costs.size(); ++i) {
    nlohmann::json policy;
    result.costs[i].AddTo(&policy);
    const double median = result.costs[i].Time().median;
    policy["right"] = RightAnswers(result, i);
    policy["speedup_vs_stock_fa_on"] = stock / median;
    policy["speedup_vs_dense"] = dense / median;
    policies.push_back(policy);
  }
  return {{"command", "demo"},
          {"tokens", result.tokens},
          {"tokens_from_cache", result.from_cache},
          {"read_ms", result.read_seconds * 1e3},
          {"target", result.target},
          {"questions", questions},
          {"policies", policies}};
}

}  // namespace tactic::app
