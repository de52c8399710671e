#include "eval_answers.h"

#include <fmt/format.h>

#include <algorithm>

#include "report.h"

namespace tactic::app {
namespace {

nlohmann::json OrNull(const std::optional<double>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
}

// "tactic", or "tactic at 0.8" where policies share a name.
std::string LongName(const RetrievalResult& result, size_t policy) {
  const std::string& name = result.names[policy];
  if (std::count(result.names.begin(), result.names.end(), name) < 2) return name;
  return fmt::format("{} at {}", name, result.costs[policy].options().tactic.target);
}

nlohmann::json TallyJson(const AnswerTally& tally) {
  return {{"questions", tally.questions}, {"dense_right", tally.dense_right},
          {"right", tally.right},         {"kept", tally.kept},
          {"gained", tally.gained},       {"kl_mean", tally.kl_mean},
          {"kl_max", tally.kl_max}};
}

void AddRows(const RetrievalResult& result, size_t policy, Table* table) {
  const Cost& cost = result.costs[policy];
  const auto add = [&](const char* kind_name, std::optional<ItemKind> kind) {
    const AnswerTally tally = Count(result, policy, kind);
    if (tally.questions == 0) return;
    const std::optional<Belief> belief = kind ? std::nullopt : cost.Believed();
    table->AddRow({fmt::format("{}", result.depth), LongName(result, policy), kind_name,
                   fmt::format("{}/{}", tally.dense_right, tally.questions),
                   fmt::format("{}/{}", tally.right, tally.questions),
                   fmt::format("{}/{}", tally.kept, tally.dense_right),
                   fmt::format("{}", tally.gained), fmt::format("{:.5f}", tally.kl_mean),
                   fmt::format("{:.4f}", tally.kl_max),
                   belief ? fmt::format("{:.3f}", belief->p_hat_min) : "-",
                   kind ? "-" : Percent(cost.BytesFraction())});
  };
  for (const ItemKind kind : kItemKinds) add(ItemKindName(kind), kind);
  add("all", std::nullopt);
}

// On one line.
std::string Line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

void PrintLost(const RetrievalResult& result, size_t policy, FILE* out) {
  for (const EvalQuestion& question : result.questions) {
    const EvalAnswer& answer = question.answers[policy];
    if (!question.dense_right || answer.right) continue;
    fmt::print(out, "\nlost at {} by {}: {} at {:.0f} %, question {}\n", result.depth,
               LongName(result, policy), ItemKindName(question.item.kind), 100 * question.place,
               question.decoded ? "decoded" : "read");
    fmt::print(out, "  asked:    {}\n  expected: {}\n  dense:    {}\n  answer:   {}\n",
               Line(question.item.question), question.item.value, Line(question.dense_text),
               Line(answer.text));
    fmt::print(out, "  KL of the answer's tokens: {:.4f} on average, {:.4f} at most",
               answer.kl_mean, answer.kl_max);
    if (answer.belief) {
      fmt::print(out, "; p_hat: {:.3f} on average, {:.3f} at least", answer.belief->p_hat_mean,
                 answer.belief->p_hat_min);
    }
    if (answer.mass_mean) {
      fmt::print(out, "; mass: {:.3f} on average, {:.3f} at least", *answer.mass_mean,
                 answer.mass_min.value_or(0));
    }
    fmt::print(out, "\n");
  }
}

nlohmann::json QuestionJson(const RetrievalResult& result, const EvalQuestion& question) {
  nlohmann::json answers = nlohmann::json::array();
  for (size_t policy = 0; policy < question.answers.size(); ++policy) {
    const EvalAnswer& answer = question.answers[policy];
    const auto belief = [&](double Belief::* field) {
      return OrNull(answer.belief ? std::optional((*answer.belief).*field) : std::nullopt);
    };
    answers.push_back({{"policy_given", result.names[policy]},
                       {"target", result.costs[policy].options().tactic.target},
                       {"text", answer.text},
                       {"right", answer.right},
                       {"kl_mean", answer.kl_mean},
                       {"kl_max", answer.kl_max},
                       {"bytes_read_fraction", answer.bytes_fraction},
                       {"p_hat_mean", belief(&Belief::p_hat_mean)},
                       {"p_hat_min", belief(&Belief::p_hat_min)},
                       {"mass_mean", OrNull(answer.mass_mean)},
                       {"mass_min", OrNull(answer.mass_min)}});
  }
  return {{"depth", result.depth},
          {"kind", ItemKindName(question.item.kind)},
          {"place", question.place},
          {"decoded", question.decoded},
          {"question", question.item.question},
          {"value", question.item.value},
          {"dense", {{"text", question.dense_text}, {"right", question.dense_right}}},
          {"answers", answers}};
}

}  // namespace

AnswerTally Count(const RetrievalResult& result, size_t policy, std::optional<ItemKind> kind) {
  AnswerTally tally;
  for (const EvalQuestion& question : result.questions) {
    if (kind && question.item.kind != *kind) continue;
    const EvalAnswer& answer = question.answers[policy];
    ++tally.questions;
    tally.dense_right += question.dense_right ? 1 : 0;
    tally.right += answer.right ? 1 : 0;
    tally.kept += answer.right && question.dense_right ? 1 : 0;
    tally.gained += answer.right && !question.dense_right ? 1 : 0;
    tally.kl_mean += answer.kl_mean;
    tally.kl_max = std::max(tally.kl_max, answer.kl_max);
  }
  if (tally.questions > 0) tally.kl_mean /= tally.questions;
  return tally;
}

void PrintRetrieval(const std::vector<RetrievalResult>& results, FILE* out) {
  Table table({"depth", "policy", "kind", "dense right", "right", "kept", "gained", "KL mean",
               "max", "p_hat min", "bytes"});
  for (const RetrievalResult& result : results) {
    for (size_t policy = 0; policy < result.costs.size(); ++policy) AddRows(result, policy, &table);
  }
  table.Print(out);
  fmt::print(out,
             "\nkept: right answers among those that dense attention has right; gained: those that "
             "it has not.\n"
             "KL(dense || policy) in nats over the tokens of dense attention's answer. p_hat: the "
             "mass that\n"
             "selections believe they read.\n");
  for (const RetrievalResult& result : results) {
    for (size_t policy = 0; policy < result.costs.size(); ++policy) PrintLost(result, policy, out);
  }
}

nlohmann::json RetrievalJson(const std::vector<RetrievalResult>& results) {
  nlohmann::json records = nlohmann::json::array(), questions = nlohmann::json::array();
  for (const RetrievalResult& result : results) {
    for (size_t policy = 0; policy < result.costs.size(); ++policy) {
      nlohmann::json record;
      result.costs[policy].AddTo(&record);
      record["depth"] = result.depth;
      record["policy_given"] = result.names[policy];
      record["target"] = result.costs[policy].options().tactic.target;
      record["all"] = TallyJson(Count(result, policy, std::nullopt));
      for (const ItemKind kind : kItemKinds) {
        record[ItemKindName(kind)] = TallyJson(Count(result, policy, kind));
      }
      records.push_back(std::move(record));
    }
    for (const EvalQuestion& question : result.questions) {
      questions.push_back(QuestionJson(result, question));
    }
  }
  return {{"records", records}, {"questions", questions}};
}

}  // namespace tactic::app
