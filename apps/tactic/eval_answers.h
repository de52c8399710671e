// Answers of one policy and of dense attention to the questions of `tactic eval retrieval`.
#ifndef TACTIC_APPS_EVAL_ANSWERS_H_
#define TACTIC_APPS_EVAL_ANSWERS_H_

#include <optional>
#include <string>
#include <vector>

#include "eval_items.h"
#include "llama.h"
#include "measure.h"

namespace tactic::app {

// What one policy said to one question.
struct EvalAnswer {
  std::string text;
  bool right = false;
  // Against dense attention, over the tokens of its answer. Mean and largest.
  double kl_mean = 0;
  double kl_max = 0;
  double bytes_fraction = 1;
  std::optional<Belief> belief;  // of the selections of the answer, and of a decoded question
  // Measured while dense attention's answer was decoded; absent where the answers are the same, and
  // for policies that read everything.
  std::optional<double> mass_mean;
  std::optional<double> mass_min;
};

struct EvalQuestion {
  EvalItem item;
  double place = 0;      // where the item starts, as a share of the text
  bool decoded = false;  // the question was decoded token by token, not read as a prompt
  std::string dense_text;
  bool dense_right = false;
  std::vector<EvalAnswer> answers;  // one per policy
};

// All questions about one text.
struct RetrievalResult {
  int depth = 0;  // tokens before a question
  int from_cache = 0;
  std::vector<std::string> names;  // of the policies, as they were given
  std::vector<Cost> costs;         // one per policy
  std::vector<EvalQuestion> questions;
};

// Questions of one kind, or of all, under one policy.
struct AnswerTally {
  int questions = 0;
  int dense_right = 0;
  int right = 0;
  int kept = 0;        // right, and dense attention was, too
  int gained = 0;      // right although dense attention was not
  double kl_mean = 0;  // of the questions' means
  double kl_max = 0;
};
AnswerTally Count(const RetrievalResult& result, size_t policy, std::optional<ItemKind> kind);

// A table, and every answer that was lost: right under dense attention and wrong under a policy.
void PrintRetrieval(const std::vector<RetrievalResult>& results, FILE* out);

// One record per depth and policy, and one per question.
nlohmann::json RetrievalJson(const std::vector<RetrievalResult>& results);

}  // namespace tactic::app

#endif  // TACTIC_APPS_EVAL_ANSWERS_H_
