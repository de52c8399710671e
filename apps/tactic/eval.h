// What the two evaluations of `tactic eval` share: arguments, policies, model and context.
#ifndef TACTIC_APPS_EVAL_H_
#define TACTIC_APPS_EVAL_H_

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "arguments.h"
#include "next_token.h"
#include "session.h"
#include "tactic/status.h"
#include "tactic_llama/hook.h"

namespace tactic::app {

struct EvalArgs {
  ModelArgs model;
  CacheArgs cache;
  std::string file;
  std::vector<int> depths = {8192, 16384, 32768};
  std::vector<std::string> policies;
  std::vector<double> targets = {0.9};
  std::string json;
};
void AddEvalArgs(CLI::App* app, EvalArgs* args);

// `tactic eval kl` and `tactic eval retrieval`.
void AddEvalKl(CLI::App* app, Command* command);
void AddEvalRetrieval(CLI::App* app, Command* command);

struct EvalPolicy {
  std::string name;  // as it was given
  llama::HookOptions options;
  bool dense_below_given = false;  // otherwise it is measured when the context is opened
};

// stock, or a mode with its parameters as in `tactic quality`: once for each target where the
// target matters. InvalidArgument when one is wrong. Without duplicates.
Status ResolveEvalPolicies(const EvalArgs& args, std::vector<EvalPolicy>* policies);

// What every policy is compared with: our exact kernel.
inline llama::HookOptions EvalReference() { return llama::HookOptions::For(llama::Policy::kDense); }

class Evaluation {
 public:
  // Checks the arguments, reads the text and loads the model.
  Status Load(const EvalArgs& args);
  // Opens a context for `needed` tokens.
  Status OpenSession(int needed);
  // Fills the empty context with `tokens`, from a saved state or by reading. Nothing is indexed.
  Status Fill(std::span<const llama_token> tokens, bool show_progress, int* from_cache);
  // One token through the current policy. `logits` [vocabulary]: of what follows; valid until the
  // next step.
  Status Step(llama_token token, std::span<const float>* logits);

  const std::vector<int>& depths() const { return depths_; }  // ascending, without duplicates
  const std::vector<EvalPolicy>& policies() const { return policies_; }
  const std::string& text() const { return text_; }
  const Model& model() const { return *model_; }
  Session* session() const { return session_.get(); }
  // Fields of the results that describe the run.
  nlohmann::json CommonFields() const;

 private:
  EvalArgs args_;
  std::vector<int> depths_;
  std::vector<EvalPolicy> policies_;
  std::string text_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Session> session_;
};

// CompareNextToken, with an error for logits that are no numbers.
Status Compare(const EvalPolicy& policy, std::span<const float> reference,
               std::span<const float> other, llama_token next, NextToken* result);

}  // namespace tactic::app

#endif  // TACTIC_APPS_EVAL_H_
