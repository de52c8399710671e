// `tactic eval kl`: how far the next token that a policy predicts is from that of dense attention.
//
// At each depth dense attention decodes the text that follows, token by token, and its logits are
// kept. Then every policy decodes the same tokens after the same cache.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <iterator>

#include "eval.h"
#include "eval_kl_report.h"
#include "memory.h"
#include "report.h"

namespace tactic::app {
namespace {

struct KlArgs {
  EvalArgs eval;
  int skip = 0;
  int tokens = 256;
};

class EvalKl {
 public:
  EvalKl(const KlArgs& args, bool show_progress) : args_(args), show_progress_(show_progress) {}

  // Checks the arguments, loads the model and fills the context to the largest depth.
  Status Prepare();
  // One depth under every policy; each must be smaller than the one before.
  Status Measure(int depth, std::vector<KlResult>* results);

  const Evaluation& evaluation() const { return evaluation_; }
  nlohmann::json CommonFields() const;

 private:
  // Decodes the tokens after `depth` and rolls back. f(i, logits) after the i-th of them.
  template <class F>
  Status Decode(int depth, const llama::HookOptions& policy, Progress* progress, const F& f);

  const KlArgs& args_;
  const bool show_progress_;
  Evaluation evaluation_;
  std::vector<llama_token> tokens_;
  std::vector<float> reference_;  // [tokens][vocabulary], logits of dense attention
  int64_t decoded_ = 0;           // steps at this depth
};

Status EvalKl::Prepare() {
  TACTIC_RETURN_IF_ERROR(evaluation_.Load(args_.eval));
  const Model& model = evaluation_.model();
  TACTIC_RETURN_IF_ERROR(model.Tokenize(evaluation_.text(), true, false, &tokens_));
  model.Skip(args_.skip, &tokens_);
  const int deepest = evaluation_.depths().back();
  // One more token than is decoded: what follows the last is known, too.
  const int64_t needed = int64_t{deepest} + args_.tokens + 1;
  if (std::ssize(tokens_) < needed) {
    return Status::OutOfRange(
        fmt::format("--depths and --tokens ask for {} tokens of text, but --file has {} behind "
                    "--skip {}",
                    needed, tokens_.size(), args_.skip));
  }
  const int64_t logits = int64_t{args_.tokens} * model.facts().vocabulary;
  TACTIC_RETURN_IF_ERROR(CheckMemory(logits * static_cast<int64_t>(sizeof(float)),
                                     fmt::format("the logits of {} tokens", args_.tokens)));
  reference_.resize(static_cast<size_t>(logits));
  TACTIC_RETURN_IF_ERROR(evaluation_.OpenSession(deepest + args_.tokens));
  int from_cache = 0;
  return evaluation_.Fill({tokens_.data(), static_cast<size_t>(deepest)}, show_progress_,
                          &from_cache);
}

template <class F>
Status EvalKl::Decode(int depth, const llama::HookOptions& policy, Progress* progress, const F& f) {
  TACTIC_RETURN_IF_ERROR(evaluation_.session()->UsePolicy(policy));
  for (int i = 0; i < args_.tokens; ++i) {
    std::span<const float> logits;
    TACTIC_RETURN_IF_ERROR(evaluation_.Step(tokens_[static_cast<size_t>(depth + i)], &logits));
    TACTIC_RETURN_IF_ERROR(f(i, logits));
    progress->Update(++decoded_);
  }
  TACTIC_RETURN_IF_ERROR(evaluation_.session()->hook()->LastProblem());
  return evaluation_.session()->RollBack(depth);
}

Status EvalKl::Measure(int depth, std::vector<KlResult>* results) {
  Session* session = evaluation_.session();
  const auto vocabulary = static_cast<size_t>(evaluation_.model().facts().vocabulary);
  TACTIC_RETURN_IF_ERROR(session->RollBack(depth));
  const int64_t runs = 1 + std::ssize(evaluation_.policies());
  Progress progress(fmt::format("decoding at {}", depth), runs * args_.tokens, show_progress_);
  decoded_ = 0;
  TACTIC_RETURN_IF_ERROR(
      Decode(depth, EvalReference(), &progress, [&](int i, std::span<const float> logits) {
        std::copy(logits.begin(), logits.end(),
                  reference_.begin() + static_cast<std::ptrdiff_t>(i * vocabulary));
        return Status::Ok();
      }));
  for (const EvalPolicy& policy : evaluation_.policies()) {
    KlResult result{depth, policy.name, Cost(policy.options), {}};
    session->hook()->TakeStats();
    TACTIC_RETURN_IF_ERROR(
        Decode(depth, policy.options, &progress, [&](int i, std::span<const float> logits) {
          const std::span<const float> reference(&reference_[i * vocabulary], vocabulary);
          return Compare(policy, reference, logits, tokens_[static_cast<size_t>(depth + i + 1)],
                         &result.tokens.emplace_back());
        }));
    result.cost.AddReads(session->hook()->TakeStats());
    results->push_back(std::move(result));
  }
  return Status::Ok();
}

nlohmann::json EvalKl::CommonFields() const {
  nlohmann::json json = evaluation_.CommonFields();
  json["skip"] = args_.skip;
  json["tokens"] = args_.tokens;
  return json;
}

Status RunEvalKl(const KlArgs& args, bool show_progress) {
  Report report;
  TACTIC_RETURN_IF_ERROR(Report::Open(args.eval.json, &report));
  EvalKl kl(args, show_progress);
  TACTIC_RETURN_IF_ERROR(kl.Prepare());
  const std::vector<int>& depths = kl.evaluation().depths();
  std::vector<KlResult> results;
  Status status;
  // The cache shrinks from depth to depth; people read tables the other way.
  for (auto depth = depths.rbegin(); depth != depths.rend() && status.ok(); ++depth) {
    std::vector<KlResult> measured;
    status = kl.Measure(*depth, &measured);
    results.insert(results.begin(), std::make_move_iterator(measured.begin()),
                   std::make_move_iterator(measured.end()));
  }
  if (!results.empty()) PrintKlTable(results, args.tokens, report.text());
  TACTIC_RETURN_IF_ERROR(status);
  return report.WriteJson(KlRecords(results, kl.CommonFields()));
}

}  // namespace

void AddEvalKl(CLI::App* app, Command* command) {
  auto args = std::make_shared<KlArgs>();
  args->eval.policies = {"stock", "paper", "tactic"};
  CLI::App* sub = app->add_subcommand(
      "kl", "Compare the next tokens that policies and dense attention predict in a text");
  AddEvalArgs(sub, &args->eval);
  sub->add_option("--skip", args->skip, "tokens of the text to leave out at its start")
      ->check(CLI::Range(0, 1 << 28))
      ->capture_default_str()
      ->type_name("N");
  sub->add_option("--tokens", args->tokens, "tokens to predict at each depth")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str()
      ->type_name("N");
  sub->callback([args, command] {
    *command = [args] { return RunEvalKl(*args, spdlog::should_log(spdlog::level::info)); };
  });
}

}  // namespace tactic::app
