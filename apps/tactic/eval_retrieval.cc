// `tactic eval retrieval`: does a policy still answer what dense attention answers?
//
// Facts, lines and JSON entries are hidden in a text at equal distances. The text is read once;
// every question is appended to it, answered greedily by dense attention and under each policy, and
// rolled back. Every other question is not read as a prompt, but decoded like the answer, so that
// the policy's selections also decide what the question finds.
#include "eval.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "eval_answers.h"
#include "facts.h"
#include "haystack.h"
#include "report.h"

namespace tactic::app {
namespace {

// Tokens of an answer beyond those of the value that it must contain; right ones need about 15.
constexpr int kAnswerSlack = 24;
// The system message of the adapter's training.
constexpr char kSystem[] = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
// Stands for the text and the question in the chat template until they are put in as tokens.
constexpr char kMarker[] = "@@TACTIC-TEXT@@";
// Seeds of different depths are this far apart, so that each depth has items of its own.
constexpr uint64_t kSeedStride = 1000003;

struct RetrievalArgs {
  EvalArgs eval;
  ItemCounts counts;
  uint64_t seed = 1;
};

// One question, ready to be asked.
struct Ask {
  std::vector<llama_token> tokens;  // up to where the answer starts
  bool decoded = false;
  int most_tokens = 0;  // of an answer
};

struct Answered {
  std::vector<llama_token> tokens;  // with the end of generation, where the answer got there
  std::string text;
  std::vector<std::vector<float>> logits;  // that each token was chosen by
};

class EvalRetrieval {
 public:
  EvalRetrieval(const RetrievalArgs& args, bool show_progress)
      : args_(args), show_progress_(show_progress) {}

  // Checks the arguments, loads the model, composes the texts of all depths and opens the context.
  Status Prepare();
  // Reads the text of a depth and asks everything.
  Status Measure(size_t depth, RetrievalResult* result);

  const Evaluation& evaluation() const { return evaluation_; }

 private:
  struct Text {
    std::vector<llama_token> tokens;
    std::vector<EvalQuestion> questions;
    std::vector<Ask> asks;
  };
  Status Compose(int depth, const std::vector<llama_token>& book,
                 const std::pair<std::string, std::string>& chat, Text* text);
  // The question under `policy`, but for its last token: that one is decoded with the answer, so
  // that every token of the answer, the first included, comes from the policy's attention.
  Status Pose(const Ask& ask, const llama::HookOptions& policy);
  // Greedy. Rolls back to what Pose left.
  Status Answer(const Ask& ask, Answered* answered);
  // Decodes `dense`, the answer of dense attention, for its logits. Rolls back to what Pose left.
  Status Force(const Ask& ask, const Answered& dense, Answered* forced);
  Status AnswerUnder(const Ask& ask, const EvalPolicy& policy, const Answered& dense,
                     const std::string& value, Cost* cost, EvalAnswer* answer);

  const RetrievalArgs& args_;
  const bool show_progress_;
  Evaluation evaluation_;
  std::vector<Text> texts_;  // one per depth
};

Status EvalRetrieval::Prepare() {
  if (args_.counts.facts + args_.counts.lines + args_.counts.entries == 0) {
    return Status::InvalidArgument("--facts, --lines and --entries leave nothing to ask for");
  }
  TACTIC_RETURN_IF_ERROR(evaluation_.Load(args_.eval));
  const Model& model = evaluation_.model();
  std::vector<llama_token> book;
  TACTIC_RETURN_IF_ERROR(model.Tokenize(evaluation_.text(), false, false, &book));
  std::pair<std::string, std::string> chat;
  TACTIC_RETURN_IF_ERROR(
      model.SplitChatTemplate({{"system", kSystem}, {"user", kMarker}}, kMarker, &chat));
  int needed = 0;
  for (const int depth : evaluation_.depths()) {
    Text& text = texts_.emplace_back();
    TACTIC_RETURN_IF_ERROR(Compose(depth, book, chat, &text));
    for (const Ask& ask : text.asks) {
      needed = std::max(needed, depth + static_cast<int>(ask.tokens.size()) + ask.most_tokens);
    }
  }
  return evaluation_.OpenSession(needed);
}

Status EvalRetrieval::Compose(int depth, const std::vector<llama_token>& book,
                              const std::pair<std::string, std::string>& chat, Text* text) {
  const Model& model = evaluation_.model();
  const uint64_t seed = args_.seed + kSeedStride * static_cast<uint64_t>(depth);
  const std::vector<EvalItem> items = MakeItems(args_.counts, seed);
  std::vector<std::string> pieces;
  for (const EvalItem& item : items) pieces.push_back(item.text);
  TACTIC_RETURN_IF_ERROR(model.Tokenize(chat.first, true, true, &text->tokens));
  Haystack haystack;
  const int size = depth - static_cast<int>(text->tokens.size());
  TACTIC_RETURN_IF_ERROR(HidePieces(model, book, size, pieces, Placing::kEven, seed, &haystack));
  text->tokens.insert(text->tokens.end(), haystack.tokens.begin(), haystack.tokens.end());
  for (size_t i = 0; i < items.size(); ++i) {
    Ask& ask = text->asks.emplace_back();
    ask.decoded = i % 2 == 1;
    TACTIC_RETURN_IF_ERROR(
        model.Tokenize("\n\n" + items[i].question + chat.second, false, true, &ask.tokens));
    std::vector<llama_token> value;
    TACTIC_RETURN_IF_ERROR(model.Tokenize(items[i].value, false, false, &value));
    ask.most_tokens = static_cast<int>(value.size()) + kAnswerSlack;
    EvalQuestion& question = text->questions.emplace_back();
    question.item = items[i];
    question.place = haystack.depths[i];
    question.decoded = ask.decoded;
  }
  return Status::Ok();
}

Status EvalRetrieval::Pose(const Ask& ask, const llama::HookOptions& policy) {
  Session* session = evaluation_.session();
  TACTIC_RETURN_IF_ERROR(session->UsePolicy(policy));
  const std::span<const llama_token> tokens(ask.tokens.data(), ask.tokens.size() - 1);
  if (!ask.decoded) return session->Read(tokens);
  for (const llama_token token : tokens) TACTIC_RETURN_IF_ERROR(session->Step(token));
  return Status::Ok();
}

Status EvalRetrieval::Answer(const Ask& ask, Answered* answered) {
  const Model& model = evaluation_.model();
  const int depth = evaluation_.session()->depth();
  llama_token token = ask.tokens.back();
  for (int i = 0; i < ask.most_tokens; ++i) {
    std::span<const float> logits;
    TACTIC_RETURN_IF_ERROR(evaluation_.Step(token, &logits));
    answered->logits.emplace_back(logits.begin(), logits.end());
    token =
        static_cast<llama_token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    answered->tokens.push_back(token);
    if (model.IsEndOfGeneration(token)) break;
    answered->text += model.Piece(token);
  }
  return evaluation_.session()->RollBack(depth);
}

Status EvalRetrieval::Force(const Ask& ask, const Answered& dense, Answered* forced) {
  const int depth = evaluation_.session()->depth();
  llama_token token = ask.tokens.back();
  for (const llama_token next : dense.tokens) {
    std::span<const float> logits;
    TACTIC_RETURN_IF_ERROR(evaluation_.Step(token, &logits));
    forced->logits.emplace_back(logits.begin(), logits.end());
    token = next;
  }
  return evaluation_.session()->RollBack(depth);
}

Status EvalRetrieval::AnswerUnder(const Ask& ask, const EvalPolicy& policy, const Answered& dense,
                                  const std::string& value, Cost* cost, EvalAnswer* answer) {
  llama::Hook* hook = evaluation_.session()->hook();
  const int depth = evaluation_.session()->depth();
  hook->TakeStats();
  TACTIC_RETURN_IF_ERROR(Pose(ask, policy.options));
  Answered given;
  TACTIC_RETURN_IF_ERROR(Answer(ask, &given));
  TACTIC_RETURN_IF_ERROR(hook->LastProblem());
  answer->text = given.text;
  answer->right = given.text.find(value) != std::string::npos;
  const llama::HookStats reads = hook->TakeStats();
  cost->AddReads(reads);
  Cost alone(policy.options);
  alone.AddReads(reads);
  answer->bytes_fraction = alone.BytesFraction();
  answer->belief = alone.Believed();

  // An answer of the same tokens has the logits already. One that went astray is the place to look
  // at the exact mass.
  if (given.tokens != dense.tokens) {
    given.logits.clear();
    hook->MeasureMass(Selects(policy.options.policy));
    const Status status = Force(ask, dense, &given);
    hook->MeasureMass(false);
    TACTIC_RETURN_IF_ERROR(status);
    const llama::HookStats measured = hook->TakeStats();
    if (measured.cases > 0) {
      answer->mass_mean = measured.own_mass_sum / static_cast<double>(measured.cases);
      answer->mass_min = measured.own_mass_min;
    }
  }
  for (size_t i = 0; i < dense.tokens.size(); ++i) {
    NextToken next;
    TACTIC_RETURN_IF_ERROR(
        Compare(policy, dense.logits[i], given.logits[i], dense.tokens[i], &next));
    answer->kl_mean += next.kl / static_cast<double>(dense.tokens.size());
    answer->kl_max = std::max(answer->kl_max, next.kl);
  }
  return evaluation_.session()->RollBack(depth);
}

Status EvalRetrieval::Measure(size_t depth, RetrievalResult* result) {
  Text& text = texts_[depth];
  const std::vector<EvalPolicy>& policies = evaluation_.policies();
  Session* session = evaluation_.session();
  result->depth = evaluation_.depths()[depth];
  for (const EvalPolicy& policy : policies) {
    result->names.push_back(policy.name);
    result->costs.emplace_back(policy.options);
  }
  TACTIC_RETURN_IF_ERROR(evaluation_.Fill(text.tokens, show_progress_, &result->from_cache));
  Progress progress(fmt::format("asking at {}", result->depth),
                    std::ssize(text.asks) * (1 + std::ssize(policies)), show_progress_, "answers");
  int64_t answers = 0;
  for (size_t i = 0; i < text.asks.size(); ++i) {
    const Ask& ask = text.asks[i];
    EvalQuestion question = text.questions[i];
    const std::string& value = question.item.value;
    Answered dense;
    TACTIC_RETURN_IF_ERROR(Pose(ask, EvalReference()));
    TACTIC_RETURN_IF_ERROR(Answer(ask, &dense));
    TACTIC_RETURN_IF_ERROR(session->RollBack(result->depth));
    question.dense_text = dense.text;
    question.dense_right = dense.text.find(value) != std::string::npos;
    progress.Update(++answers);
    for (size_t policy = 0; policy < policies.size(); ++policy) {
      TACTIC_RETURN_IF_ERROR(AnswerUnder(ask, policies[policy], dense, value,
                                         &result->costs[policy], &question.answers.emplace_back()));
      progress.Update(++answers);
    }
    result->questions.push_back(std::move(question));
  }
  return Status::Ok();
}

Status RunEvalRetrieval(const RetrievalArgs& args, bool show_progress) {
  Report report;
  TACTIC_RETURN_IF_ERROR(Report::Open(args.eval.json, &report));
  EvalRetrieval retrieval(args, show_progress);
  TACTIC_RETURN_IF_ERROR(retrieval.Prepare());
  std::vector<RetrievalResult> results;
  Status status;
  for (size_t i = 0; i < retrieval.evaluation().depths().size() && status.ok(); ++i) {
    RetrievalResult result;
    status = retrieval.Measure(i, &result);
    if (!result.questions.empty()) results.push_back(std::move(result));
  }
  if (!results.empty()) PrintRetrieval(results, report.text());
  TACTIC_RETURN_IF_ERROR(status);
  nlohmann::json json = RetrievalJson(results);
  json["command"] = "eval retrieval";
  json["seed"] = args.seed;
  json.update(retrieval.evaluation().CommonFields());
  return report.WriteJson(json);
}

}  // namespace

void AddEvalRetrieval(CLI::App* app, Command* command) {
  auto args = std::make_shared<RetrievalArgs>();
  args->eval.policies = {"paper", "tactic"};
  CLI::App* sub = app->add_subcommand(
      "retrieval", "Compare the answers of policies and dense attention about a long text");
  AddEvalArgs(sub, &args->eval);
  const auto count = [&](const char* name, int* value, int most, const char* help) {
    sub->add_option(name, *value, help)
        ->check(CLI::Range(0, most))
        ->capture_default_str()
        ->type_name("N");
  };
  count("--facts", &args->counts.facts, kMostFacts, "sentences to hide in the text of a depth");
  count("--lines", &args->counts.lines, kMostLines, "lines with a number to hide");
  count("--entries", &args->counts.entries, kMostEntries, "JSON entries to hide");
  sub->add_option("--seed", args->seed, "seed of what is hidden, and of the places")
      ->capture_default_str()
      ->type_name("N");
  sub->callback([args, command] {
    *command = [args] { return RunEvalRetrieval(*args, spdlog::should_log(spdlog::level::info)); };
  });
}

}  // namespace tactic::app
