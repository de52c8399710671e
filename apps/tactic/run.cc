// `tactic run`: generate text.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <chrono>

#include "arguments.h"
#include "defaults.h"
#include "dense_below.h"
#include "interrupt.h"
#include "measure.h"
#include "memory.h"
#include "report.h"
#include "sampler.h"
#include "text.h"

namespace tactic::app {
namespace {

using Clock = std::chrono::steady_clock;

struct RunArgs {
  ModelArgs model;
  AlgorithmArgs algorithm;
  std::string policy = "tactic";
  std::string prompt;
  std::string file;
  std::string system;
  bool raw = false;
  std::string prompt_attention = "ours";
  int max_tokens = 256;
  double temperature = 0;
  uint32_t seed = 1;
  int measure_every = 16;
  std::string json;
};

struct Generated {
  std::string text;
  int tokens = 0;
  double seconds = 0;    // of the steps without measurement
  int timed_tokens = 0;  // in these seconds
  int measured_steps = 0;
  const char* end = "length";
};

Status ReadPromptText(const RunArgs& args, std::string* text) {
  if (args.prompt.empty() && args.file.empty()) {
    return Status::InvalidArgument(
        "there is nothing to read: give --prompt, --file, or --file - for stdin");
  }
  if (args.prompt == "-" && args.file == "-") {
    return Status::InvalidArgument(
        "--prompt and --file cannot both be '-': there is only one stdin");
  }
  std::string prompt = args.prompt;
  if (prompt == "-") TACTIC_RETURN_IF_ERROR(ReadText("-", "--prompt", &prompt));
  if (args.file.empty()) {
    *text = prompt;
  } else {
    TACTIC_RETURN_IF_ERROR(ReadText(args.file, "--file", text));
    // The question belongs after the text: models are trained that way, and a text that is read
    // once can then be asked about again.
    if (!prompt.empty()) *text += "\n\n" + prompt;
  }
  if (text->empty()) return Status::InvalidArgument("the prompt is empty");
  return Status::Ok();
}

Status PromptTokens(const RunArgs& args, const Model& model, const std::string& text,
                    std::vector<llama_token>* tokens) {
  if (args.raw) return model.Tokenize(text, true, true, tokens);
  std::vector<ChatMessage> messages;
  if (!args.system.empty()) messages.push_back({"system", args.system});
  messages.push_back({"user", text});
  std::string chat;
  TACTIC_RETURN_IF_ERROR(model.ApplyChatTemplate(messages, &chat));
  return model.Tokenize(chat, true, true, tokens);
}

// Writes whole characters of a stream of token pieces as they come.
class TextStream {
 public:
  explicit TextStream(FILE* out) : out_(out) {}
  void Write(const std::string& piece) {
    pending_ += piece;
    const size_t whole = WholeUtf8Prefix(pending_);
    std::fwrite(pending_.data(), 1, whole, out_);
    std::fflush(out_);
    pending_.erase(0, whole);
  }

 private:
  FILE* out_;
  std::string pending_;
};

// Streams the answer. Every --measure-every'th step also computes the exact mass that it read and
// does not count for the time.
Status Generate(const RunArgs& args, Session* session, FILE* out, Cost* cost, Generated* result) {
  const Model& model = session->model();
  const Sampler sampler(args.temperature, args.seed);
  TextStream stream(out);
  const bool measure = Selects(cost->policy()) && args.measure_every > 0;
  for (int i = 0; i < args.max_tokens; ++i) {
    const auto start = Clock::now();
    const llama_token token = sampler.Sample(session->get());
    if (model.IsEndOfGeneration(token)) {
      result->end = "end of answer";
      return Status::Ok();
    }
    const std::string piece = model.Piece(token);
    result->text += piece;
    ++result->tokens;
    stream.Write(piece);
    if (i + 1 == args.max_tokens) break;  // its successor is not wanted
    if (session->depth() == session->capacity()) {
      result->end = "context full";
      return Status::Ok();
    }
    // In the middle of each stretch, so that a short answer has a measured step, too.
    const bool measured = measure && i % args.measure_every == args.measure_every / 2;
    session->hook()->MeasureMass(measured);
    double milliseconds = 0;
    const Status status = session->Step(token, &milliseconds);
    if (!status.ok()) {
      result->end = Interrupted() ? "interrupted" : "error";
      return status;
    }
    const llama::HookStats stats = session->hook()->TakeStats();
    if (measured) {
      cost->AddMass(stats);
      ++result->measured_steps;
    } else {
      cost->AddReads(stats);
      cost->AddTime(milliseconds);
      result->seconds += std::chrono::duration<double>(Clock::now() - start).count();
      ++result->timed_tokens;
    }
  }
  return Status::Ok();
}

double Rate(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

void PrintClosing(const RunArgs& args, const Session& session, size_t prompt_tokens,
                  double prompt_seconds, const Cost& cost, const Generated& generated) {
  // To stderr: stdout carries the answer alone.
  fmt::print(stderr,
             "\n[{}] prompt {} tokens, {:.0f} tok/s; generated {} tokens, {:.1f} tok/s ({})\n",
             args.policy, prompt_tokens, Rate(static_cast<int64_t>(prompt_tokens), prompt_seconds),
             generated.tokens, Rate(generated.timed_tokens, generated.seconds), generated.end);
  if (cost.policy() == llama::Policy::kStock || cost.BytesPerStep() == 0) return;
  fmt::print(stderr,
             "  read per step: {:.0f} of {} tokens ({}), {} of keys, values and index ({})\n",
             cost.RowsFraction() * session.depth(), session.depth(), Percent(cost.RowsFraction()),
             FormatBytes(cost.BytesPerStep()), Percent(cost.BytesFraction()));
  const std::optional<Mass> mass = cost.MassReached();
  const std::string belief = cost.BeliefText();
  if (!belief.empty()) fmt::print(stderr, "  {}\n", belief);
  if (Selects(cost.policy()) && mass) {
    fmt::print(stderr,
               "  attention mass reached: {:.3f} on average, target {} reached in {} of the cases "
               "(on {} measured steps, which tok/s leaves out)\n",
               mass->own_mean, cost.options().tactic.target, Percent(mass->own_reached),
               generated.measured_steps);
  }
}

nlohmann::json RunJson(const Session& session, size_t prompt_tokens, double prompt_seconds,
                       const Cost& cost, const Generated& generated) {
  nlohmann::json json = {
      {"command", "run"},
      {"model", session.model().path()},
      {"lora", session.model().lora_path()},
      {"target", cost.options().tactic.target},
      {"context", session.capacity()},
      {"threads", session.options().threads},
      {"prompt_tokens", prompt_tokens},
      {"prompt_attention", cost.options().prompt_attention ? "ours" : "stock"},
      {"prompt_ms", prompt_seconds * 1e3},
      {"prompt_tokens_per_s", Rate(static_cast<int64_t>(prompt_tokens), prompt_seconds)},
      {"generated_tokens", generated.tokens},
      {"tokens_per_s", Rate(generated.timed_tokens, generated.seconds)},
      {"rows_read_per_step", cost.RowsPerStep()},
      {"bytes_read_per_step", cost.BytesPerStep()},
      {"measured_steps", generated.measured_steps},
      {"end", generated.end},
      {"text", generated.text},
  };
  cost.AddTo(&json);
  return json;
}

Status Run(const RunArgs& args, bool show_progress) {
  llama::Policy policy;
  TACTIC_RETURN_IF_ERROR(llama::ParsePolicy(args.policy, &policy));
  llama::HookOptions hook;
  TACTIC_RETURN_IF_ERROR(ResolveAlgorithm(args.algorithm, policy, &hook));
  hook.prompt_attention = args.prompt_attention == "ours" && policy != llama::Policy::kStock;
  TACTIC_RETURN_IF_ERROR(CheckModelArgs(args.model));
  Report report;
  TACTIC_RETURN_IF_ERROR(Report::Open(args.json, &report));
  std::string text;
  TACTIC_RETURN_IF_ERROR(ReadPromptText(args, &text));

  std::unique_ptr<Model> model;
  TACTIC_RETURN_IF_ERROR(LoadModel(args.model, &model));
  std::vector<llama_token> tokens;
  TACTIC_RETURN_IF_ERROR(PromptTokens(args, *model, text, &tokens));
  SessionOptions options;
  TACTIC_RETURN_IF_ERROR(ResolveSession(args.model, *model, &options));
  const int64_t needed = static_cast<int64_t>(tokens.size()) + args.max_tokens;
  options.context = args.model.context > 0 ? args.model.context : RoundUpContext(needed);
  if (static_cast<int64_t>(tokens.size()) > options.context) {
    return Status::OutOfRange(
        fmt::format("the prompt has {} tokens, but --ctx is {}; expected at least {}",
                    tokens.size(), options.context, needed));
  }
  WarnBeyondTraining(*model, options.context);
  std::unique_ptr<Session> session;
  TACTIC_RETURN_IF_ERROR(Session::Open(*model, options, &hook, &session));
  if (!args.algorithm.dense_below_given) {
    ChooseDenseBelow(*session, DefaultCacheDir(), &hook);
    TACTIC_RETURN_IF_ERROR(session->UsePolicy(hook));
  }

  const auto start = Clock::now();
  {
    Progress progress("reading", static_cast<int64_t>(tokens.size()), show_progress);
    TACTIC_RETURN_IF_ERROR(session->Read(tokens, &progress));
  }
  const double prompt_seconds = std::chrono::duration<double>(Clock::now() - start).count();
  Cost cost(hook);
  cost.AddIndex(session->hook()->TakeStats());

  Generated generated;
  const Status status = Generate(args, session.get(), report.text(), &cost, &generated);
  fmt::print(report.text(), "\n");
  PrintClosing(args, *session, tokens.size(), prompt_seconds, cost, generated);
  TACTIC_RETURN_IF_ERROR(status);
  return report.WriteJson(RunJson(*session, tokens.size(), prompt_seconds, cost, generated));
}

}  // namespace

void AddRun(CLI::App* app, Command* command) {
  auto args = std::make_shared<RunArgs>();
  CLI::App* sub = app->add_subcommand("run", "Generate text");
  AddModelArgs(sub, &args->model);
  sub->add_option("-p,--prompt", args->prompt, "the prompt, or the question about --file; -: stdin")
      ->type_name("TEXT");
  sub->add_option("-f,--file", args->file, "text to read before the prompt; -: stdin")
      ->type_name("FILE");
  sub->add_option("--system", args->system, "system message")->type_name("TEXT");
  sub->add_flag("--raw,--no-chat", args->raw, "send the text as it is, without the chat template");
  sub->add_option("-n,--max-tokens", args->max_tokens, "tokens to generate at most")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str()
      ->type_name("N");
  sub->add_option("--temp", args->temperature, "temperature; 0: always the likeliest token")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->type_name("X");
  sub->add_option("--seed", args->seed, "seed of the sampling")
      ->capture_default_str()
      ->type_name("N");
  sub->add_option("--policy", args->policy, "who computes attention: stock, dense, paper or tactic")
      ->capture_default_str();
  sub->add_option("--prompt-attention", args->prompt_attention,
                  "who computes it while the prompt is read: our exact kernel or llama.cpp")
      ->check(CLI::IsMember({"ours", "stock"}))
      ->capture_default_str();
  sub->add_option("--measure-every", args->measure_every,
                  "measure the exact mass on every Nth step; 0: never")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->type_name("N");
  AddAlgorithmArgs(sub, &args->algorithm);
  AddJsonArg(sub, &args->json);
  sub->callback([args, command] {
    *command = [args] { return Run(*args, spdlog::should_log(spdlog::level::info)); };
  });
}

}  // namespace tactic::app
