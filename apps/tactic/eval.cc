// `tactic eval`: what a policy does to the answers of the model, against exact attention.
#include "eval.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "defaults.h"
#include "dense_below.h"
#include "measure.h"
#include "quality_policy.h"
#include "text.h"

namespace tactic::app {
namespace {

using llama::Policy;

Status ParseEvalPolicy(const std::string& spec, EvalPolicy* policy) {
  policy->name = spec;
  const std::string name = spec.substr(0, spec.find(':'));
  Policy kind;
  TACTIC_RETURN_IF_ERROR(llama::ParsePolicy(name, &kind));
  policy->options = llama::HookOptions::For(kind);
  if (kind == Policy::kStock) {
    if (spec == name) return Status::Ok();
    return Status::InvalidArgument(fmt::format("policy '{}': stock has no parameters", spec));
  }
  QualityPolicy parsed;
  TACTIC_RETURN_IF_ERROR(ParseQualityPolicy(spec, &parsed));
  policy->options.tactic = parsed.options;
  policy->dense_below_given = spec.find(":dense-below=") != std::string::npos;
  return Status::Ok();
}

}  // namespace

Status ResolveEvalPolicies(const EvalArgs& args, std::vector<EvalPolicy>* policies) {
  std::set<std::string> seen;
  const std::set<double> targets(args.targets.begin(), args.targets.end());
  for (const double target : targets) {
    Options options;
    options.target = target;
    TACTIC_RETURN_IF_ERROR(options.Validate());
  }
  for (const std::string& spec : args.policies) {
    EvalPolicy policy;
    TACTIC_RETURN_IF_ERROR(ParseEvalPolicy(spec, &policy));
    if (!seen.insert(spec).second) continue;
    for (const double target : targets) {
      policy.options.tactic.target = target;
      policies->push_back(policy);
      if (!Selects(policy.options.policy)) break;  // reads everything, whatever the target
    }
  }
  return Status::Ok();
}

Status Evaluation::Load(const EvalArgs& args) {
  args_ = args;
  const std::set<int> unique(args.depths.begin(), args.depths.end());
  depths_.assign(unique.begin(), unique.end());
  TACTIC_RETURN_IF_ERROR(ResolveEvalPolicies(args, &policies_));
  TACTIC_RETURN_IF_ERROR(CheckModelArgs(args.model));
  const std::string file = args.file.empty() ? FindProjectFile(kDefaultBook) : args.file;
  TACTIC_RETURN_IF_ERROR(ReadText(file, "--file", &text_));
  TACTIC_RETURN_IF_ERROR(LoadModel(args.model, &model_));
  if (model_->facts().attention_only) return Status::Ok();
  return Status::Unsupported(fmt::format(
      "model '{}' is recurrent, expected one with a plain KV cache, which can be rolled back",
      model_->path()));
}

Status Evaluation::OpenSession(int needed) {
  SessionOptions options;
  TACTIC_RETURN_IF_ERROR(ResolveSession(args_.model, *model_, &options));
  TACTIC_RETURN_IF_ERROR(ResolveContext(args_.model, *model_, needed, "--depths needs", &options));
  options.keep_window = true;  // so that any distance can be rolled back
  const llama::HookOptions reference = EvalReference();
  TACTIC_RETURN_IF_ERROR(Session::Open(*model_, options, &reference, &session_));
  for (EvalPolicy& policy : policies_) {
    if (!policy.dense_below_given)
      ChooseDenseBelow(*session_, CacheFolder(args_.cache), &policy.options);
  }
  return Status::Ok();
}

Status Evaluation::Fill(std::span<const llama_token> tokens, bool show_progress, int* from_cache) {
  TACTIC_RETURN_IF_ERROR(session_->UsePolicy(llama::HookOptions::For(Policy::kStock)));
  {
    Progress progress("reading", std::ssize(tokens), show_progress);
    TACTIC_RETURN_IF_ERROR(
        ResolveCache(args_.cache).Fill(tokens, session_.get(), &progress, from_cache));
  }
  spdlog::info("cache filled with {} tokens, {} of them from a saved state", tokens.size(),
               *from_cache);
  return Status::Ok();
}

Status Evaluation::Step(llama_token token, std::span<const float>* logits) {
  TACTIC_RETURN_IF_ERROR(session_->Step(token));
  *logits = {llama_get_logits_ith(session_->get(), -1),
             static_cast<size_t>(model_->facts().vocabulary)};
  return Status::Ok();
}

nlohmann::json Evaluation::CommonFields() const {
  nlohmann::json json = SessionFields(*session_);
  json["file"] = args_.file.empty() ? kDefaultBook : args_.file;
  return json;
}

Status Compare(const EvalPolicy& policy, std::span<const float> reference,
               std::span<const float> other, llama_token next, NextToken* result) {
  *result = CompareNextToken(reference, other, next);
  if (!std::isnan(result->kl)) return Status::Ok();
  return Status::Internal(
      fmt::format("policy '{}' or dense attention gives logits that are no numbers", policy.name));
}

void AddEvalArgs(CLI::App* app, EvalArgs* args) {
  AddModelArgs(app, &args->model);
  app->add_option("-f,--file", args->file, "the text [the bundled book]")->type_name("FILE");
  app->add_option("--depths", args->depths, "tokens in the cache, e.g. 4096,8192")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 28))
      ->capture_default_str();
  app->add_option("--policies", args->policies,
                  "stock, or modes with their parameters, e.g. paper:recent=0,tactic:bits=2; "
                  "dense-below is measured unless given")
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("LIST");
  app->add_option("--targets", args->targets, "shares of the attention mass to read, in (0, 1]")
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("LIST");
  AddCacheArgs(app, &args->cache);
  AddJsonArg(app, &args->json);
}

void AddEval(CLI::App* app, Command* command) {
  CLI::App* sub = app->add_subcommand(
      "eval", "Check what a policy does to the model's answers, against exact attention");
  sub->require_subcommand(1);
  AddEvalKl(sub, command);
  AddEvalRetrieval(sub, command);
}

}  // namespace tactic::app
