// `tactic demo`: facts hidden in a novel, found again under four kinds of attention.
//
// The text is read once. Every question is appended to it, answered greedily under each policy in
// turn, and rolled back, so that all policies see the same keys and values.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <array>
#include <chrono>

#include "arguments.h"
#include "defaults.h"
#include "demo_report.h"
#include "dense_below.h"
#include "haystack.h"
#include "interrupt.h"
#include "report.h"
#include "sampler.h"
#include "tactic/isa.h"
#include "text.h"

namespace tactic::app {
namespace {

using llama::Policy;

constexpr std::array kPolicies = {Policy::kStock, Policy::kDense, Policy::kPaper, Policy::kTactic};
constexpr int kDefaultContext = 8192;
constexpr int kSmallestContext = 1024;
// Tokens of an answer at most; the right ones have about twenty.
constexpr int kAnswerTokens = 40;
// What the end of the prompt, a question and an answer need besides the text.
constexpr int kReserve = 160;
// The system message of the adapter's training.
constexpr char kSystem[] = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
// Added to the seed of the facts for that of their places.
constexpr uint64_t kPlaceSeed = 2;
// Stands for the text and the question in the chat template until they are put in as tokens.
constexpr char kMarker[] = "@@TACTIC-TEXT@@";

struct DemoArgs {
  ModelArgs model;
  AlgorithmArgs algorithm;
  CacheArgs cache;
  std::string file;
  int facts = 3;
  int repeats = 3;
  uint64_t seed = 1;
  std::string json;
};

class Demo {
 public:
  Demo(const DemoArgs& args, bool show_progress) : args_(args), show_progress_(show_progress) {}

  // Loads the model, composes the text with its facts, and reads it.
  Status Prepare(DemoResult* result);
  // Asks every question under every policy, `repeats` times in turn.
  Status Ask(DemoResult* result);

 private:
  Status Compose(DemoResult* result);
  Status Read(DemoResult* result);
  // Brings in what the policies still have to prepare (all of the index, when the text came from a
  // saved state), with one untimed step each.
  Status Prime(DemoResult* result);
  Status AskOne(const std::vector<llama_token>& tokens, DemoQuestion* question,
                std::vector<Cost>* costs);
  // One greedy answer to the question that was read, whose last token is `token`; rolled back.
  // `measure`: the exact mass instead of time and reads.
  Status Answer(llama_token token, bool measure, Cost* cost, std::string* text);

  const DemoArgs& args_;
  const bool show_progress_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Session> session_;
  SessionOptions options_;
  std::vector<llama::HookOptions> policies_;
  std::vector<llama_token> text_;                    // up to where a question starts
  std::vector<std::vector<llama_token>> questions_;  // each up to where its answer starts
};

Status Demo::Prepare(DemoResult* result) {
  for (const Policy policy : kPolicies) {
    TACTIC_RETURN_IF_ERROR(ResolveAlgorithm(args_.algorithm, policy, &policies_.emplace_back()));
    result->target = policies_.back().tactic.target;  // the same for all
  }
  TACTIC_RETURN_IF_ERROR(CheckModelArgs(args_.model));
  TACTIC_RETURN_IF_ERROR(LoadModel(args_.model, &model_));
  TACTIC_RETURN_IF_ERROR(ResolveSession(args_.model, *model_, &options_));
  options_.context = RoundUpContext(args_.model.context);
  options_.keep_window = true;
  if (options_.context < kSmallestContext) {
    return Status::OutOfRange(fmt::format("--ctx is {}, expected at least {} for the demo",
                                          args_.model.context, kSmallestContext));
  }
  TACTIC_RETURN_IF_ERROR(Compose(result));
  return Read(result);
}

Status Demo::Compose(DemoResult* result) {
  const std::string file = args_.file.empty() ? FindProjectFile(kDefaultBook) : args_.file;
  std::string book;
  TACTIC_RETURN_IF_ERROR(ReadText(file, "--file", &book));
  std::vector<llama_token> book_tokens;
  TACTIC_RETURN_IF_ERROR(model_->Tokenize(book, false, false, &book_tokens));

  std::pair<std::string, std::string> chat;
  TACTIC_RETURN_IF_ERROR(
      model_->SplitChatTemplate({{"system", kSystem}, {"user", kMarker}}, kMarker, &chat));
  TACTIC_RETURN_IF_ERROR(model_->Tokenize(chat.first, true, true, &text_));
  const std::vector<Fact> facts = MakeFacts(args_.facts, args_.seed);
  std::vector<std::string> pieces;
  for (const Fact& fact : facts) pieces.push_back(" " + fact.sentence);
  Haystack haystack;
  const int size = options_.context - kReserve - static_cast<int>(text_.size());
  TACTIC_RETURN_IF_ERROR(HidePieces(*model_, book_tokens, size, pieces, Placing::kRandom,
                                    args_.seed + kPlaceSeed, &haystack));
  text_.insert(text_.end(), haystack.tokens.begin(), haystack.tokens.end());
  for (size_t i = 0; i < facts.size(); ++i) {
    result->questions.push_back({facts[i], haystack.depths[i], {}});
    TACTIC_RETURN_IF_ERROR(model_->Tokenize("\n\n" + facts[i].question + chat.second, false, true,
                                            &questions_.emplace_back()));
  }
  result->tokens = static_cast<int>(text_.size());
  return Status::Ok();
}

Status Demo::Read(DemoResult* result) {
  TACTIC_RETURN_IF_ERROR(Session::Open(*model_, options_, &policies_.back(), &session_));
  for (llama::HookOptions& policy : policies_) {
    if (!args_.algorithm.dense_below_given)
      ChooseDenseBelow(*session_, CacheFolder(args_.cache), &policy);
    result->costs.emplace_back(policy);
  }
  // The index of the last policy is built while the text is read.
  Cost& indexed = result->costs.back();
  TACTIC_RETURN_IF_ERROR(session_->UsePolicy(indexed.options()));
  const auto start = std::chrono::steady_clock::now();
  Progress progress("reading", result->tokens, show_progress_);
  TACTIC_RETURN_IF_ERROR(
      ResolveCache(args_.cache).Fill(text_, session_.get(), &progress, &result->from_cache));
  result->read_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  indexed.AddIndex(session_->hook()->TakeStats());
  return Status::Ok();
}

Status Demo::Answer(llama_token token, bool measure, Cost* cost, std::string* text) {
  const int depth = session_->depth();
  TACTIC_RETURN_IF_ERROR(session_->UsePolicy(cost->options()));
  session_->hook()->TakeStats();
  session_->hook()->MeasureMass(measure);
  const Sampler greedy;
  for (int i = 0; i < kAnswerTokens && !(i > 0 && model_->IsEndOfGeneration(token)); ++i) {
    if (i > 0) *text += model_->Piece(token);
    double milliseconds = 0;
    TACTIC_RETURN_IF_ERROR(session_->Step(token, &milliseconds));
    if (!measure) cost->AddTime(milliseconds);
    token = greedy.Sample(session_->get());
  }
  session_->hook()->MeasureMass(false);
  const llama::HookStats stats = session_->hook()->TakeStats();
  if (measure) {
    cost->AddMass(stats);
  } else {
    cost->AddReads(stats);
  }
  return session_->RollBack(depth);
}

Status Demo::Prime(DemoResult* result) {
  for (Cost& cost : result->costs) {
    TACTIC_RETURN_IF_ERROR(session_->UsePolicy(cost.options()));
    TACTIC_RETURN_IF_ERROR(session_->Step(questions_[0][0]));
    TACTIC_RETURN_IF_ERROR(session_->hook()->LastProblem());
    cost.AddIndex(session_->hook()->TakeStats());
    TACTIC_RETURN_IF_ERROR(session_->RollBack(result->tokens));
  }
  return Status::Ok();
}

Status Demo::AskOne(const std::vector<llama_token>& tokens, DemoQuestion* question,
                    std::vector<Cost>* costs) {
  // The question is a prompt like the text. Its last token is decoded by the policy, so that every
  // token of the answer, the first included, comes from the policy's attention.
  TACTIC_RETURN_IF_ERROR(session_->UsePolicy(llama::HookOptions::For(Policy::kStock)));
  TACTIC_RETURN_IF_ERROR(session_->Read({tokens.data(), tokens.size() - 1}));
  question->answers.resize(costs->size());
  for (int repeat = 0; repeat < args_.repeats; ++repeat) {
    for (size_t turn = 0; turn < costs->size(); ++turn) {
      // Another policy starts each time.
      const size_t policy = (turn + static_cast<size_t>(repeat)) % costs->size();
      std::string text;
      TACTIC_RETURN_IF_ERROR(Answer(tokens.back(), false, &(*costs)[policy], &text));
      const bool right = text.find(question->fact.value) != std::string::npos;
      question->answers[policy] = {text, right};
    }
  }
  for (Cost& cost : *costs) {
    std::string text;
    if (!Selects(cost.policy())) continue;  // the others hold all of the mass
    TACTIC_RETURN_IF_ERROR(Answer(tokens.back(), true, &cost, &text));
  }
  return session_->RollBack(static_cast<int>(text_.size()));
}

Status Demo::Ask(DemoResult* result) {
  TACTIC_RETURN_IF_ERROR(Prime(result));
  for (size_t i = 0; i < questions_.size(); ++i) {
    TACTIC_RETURN_IF_ERROR(AskOne(questions_[i], &result->questions[i], &result->costs));
    spdlog::info("question {} of {} is answered", i + 1, questions_.size());
  }
  return Status::Ok();
}

Status RunDemo(DemoArgs args, bool show_progress) {
  Report report;
  TACTIC_RETURN_IF_ERROR(Report::Open(args.json, &report));
  if (args.model.model.empty() && args.model.lora.empty()) {
    args.model.lora = FindProjectFile(kDefaultAdapter);
    if (args.model.rope_freq_base == 0) args.model.rope_freq_base = kDefaultAdapterRopeBase;
  }
  if (args.model.context == 0) args.model.context = kDefaultContext;
  DemoResult result;
  Demo demo(args, show_progress);
  TACTIC_RETURN_IF_ERROR(demo.Prepare(&result));
  fmt::print(report.text(), "read {} tokens in {:.1f} s ({} of them from a saved state)\n",
             result.tokens, result.read_seconds, result.from_cache);
  std::fflush(report.text());
  TACTIC_RETURN_IF_ERROR(demo.Ask(&result));
  PrintDemo(result, report.text());
  nlohmann::json json = DemoJson(result);
  json["isa"] = IsaName();
  json["llama_version"] = LlamaBuild();
  json["context"] = args.model.context;
  json["seed"] = args.seed;
  return report.WriteJson(json);
}

}  // namespace

void AddDemo(CLI::App* app, Command* command) {
  auto args = std::make_shared<DemoArgs>();
  CLI::App* sub =
      app->add_subcommand("demo", "Find facts hidden in a novel: stock, dense, paper and tactic");
  AddModelArgs(sub, &args->model);
  sub->get_option("--ctx")->description(
      fmt::format("tokens to read, question and answer included; 0: {}", kDefaultContext));
  sub->get_option("--lora")->description("LoRA adapter [the bundled one, unless --model is given]");
  sub->add_option("-f,--file", args->file, "the text to hide facts in [the bundled novel]")
      ->type_name("FILE");
  sub->add_option("--facts", args->facts, "facts to hide")
      ->check(CLI::Range(1, kMostFacts))
      ->capture_default_str()
      ->type_name("N");
  sub->add_option("--repeats", args->repeats, "times each answer is timed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->type_name("N");
  sub->add_option("--seed", args->seed, "seed of facts and places")
      ->capture_default_str()
      ->type_name("N");
  AddAlgorithmArgs(sub, &args->algorithm);
  AddCacheArgs(sub, &args->cache);
  AddJsonArg(sub, &args->json);
  sub->callback([args, command] {
    *command = [args] { return RunDemo(*args, spdlog::should_log(spdlog::level::info)); };
  });
}

}  // namespace tactic::app
