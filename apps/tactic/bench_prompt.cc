// `tactic bench-prompt`: how long a prompt takes to read, with llama.cpp's attention and with ours.
//
// All readers take turns in one process, each from an empty cache. Ours build the index of policy
// tactic on the way, which counts.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "arguments.h"
#include "defaults.h"
#include "measure.h"
#include "memory.h"
#include "report.h"
#include "text.h"

namespace tactic::app {
namespace {

using llama::Policy;

struct BenchPromptArgs {
  ModelArgs model;
  std::vector<int> lengths = {2048, 8192};
  std::string file;
  int repeats = 3;
  std::string json;
};

// Who reads.
struct Reader {
  const char* name;
  bool flash_attention;  // of llama.cpp; ours need it on
  Policy policy;
  bool prompt_attention;
};
constexpr Reader kReaders[] = {
    {"stock", true, Policy::kStock, false},
    {"stock-no-flash", false, Policy::kStock, false},
    {"index-only", true, Policy::kTactic, false},
    {"tactic", true, Policy::kTactic, true},
};

struct ReaderResult {
  const Reader* reader = nullptr;
  std::vector<double> milliseconds;
  double index_ms = 0;  // clustering and coding, summed over threads; of the slowest repeat
};

struct LengthResult {
  int tokens = 0;
  std::vector<ReaderResult> readers;

  // The faster of llama.cpp's two ways.
  double Stock() const {
    double best = std::numeric_limits<double>::infinity();
    for (const ReaderResult& result : readers) {
      if (result.reader->policy == Policy::kStock)
        best = std::min(best, Summarize(result.milliseconds).median);
    }
    return best;
  }
};

class BenchPrompt {
 public:
  BenchPrompt(const BenchPromptArgs& args, bool show_progress)
      : args_(args), show_progress_(show_progress) {}

  Status Prepare();
  Status Measure(int tokens, LengthResult* result);
  nlohmann::json CommonFields() const;

 private:
  Status Read(int tokens, ReaderResult* result);

  const BenchPromptArgs& args_;
  const bool show_progress_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Session> session_;    // with the hook
  std::unique_ptr<Session> flash_off_;  // stock without flash attention; may be null
  std::vector<llama_token> tokens_;
};

Status BenchPrompt::Prepare() {
  TACTIC_RETURN_IF_ERROR(CheckModelArgs(args_.model));
  std::string text;
  const std::string file = args_.file.empty() ? FindProjectFile(kDefaultBook) : args_.file;
  TACTIC_RETURN_IF_ERROR(ReadText(file, "--file", &text));
  TACTIC_RETURN_IF_ERROR(LoadModel(args_.model, &model_));
  TACTIC_RETURN_IF_ERROR(model_->Tokenize(text, true, false, &tokens_));
  const int needed = *std::max_element(args_.lengths.begin(), args_.lengths.end());
  if (static_cast<int>(tokens_.size()) < needed) {
    return Status::OutOfRange(fmt::format("--lengths asks for {} tokens of text, but --file has {}",
                                          needed, tokens_.size()));
  }
  SessionOptions options;
  TACTIC_RETURN_IF_ERROR(ResolveSession(args_.model, *model_, &options));
  TACTIC_RETURN_IF_ERROR(ResolveContext(args_.model, *model_, needed, "--lengths needs", &options));
  const bool flash_off = options.CanDoWithoutFlash();
  TACTIC_RETURN_IF_ERROR(
      CheckMemory((flash_off ? 2 : 1) * int64_t{options.context} *
                      model_->facts().KvBytesPerToken(options.type_k, options.type_v),
                  fmt::format("the KV caches of contexts of {} tokens", options.context)));
  const llama::HookOptions hook;
  TACTIC_RETURN_IF_ERROR(Session::Open(*model_, options, &hook, &session_));
  if (!flash_off) return Status::Ok();
  options.flash_attention = false;
  return Session::Open(*model_, options, nullptr, &flash_off_);
}

Status BenchPrompt::Read(int tokens, ReaderResult* result) {
  const Reader& reader = *result->reader;
  Session* session = reader.flash_attention ? session_.get() : flash_off_.get();
  session->Clear();
  if (session->hook() != nullptr) {
    llama::HookOptions options = llama::HookOptions::For(reader.policy);
    options.prompt_attention = reader.prompt_attention;
    TACTIC_RETURN_IF_ERROR(session->UsePolicy(options));
    session->hook()->TakeStats();
  }
  Progress progress(fmt::format("reading, {}", reader.name), tokens, show_progress_);
  const auto start = std::chrono::steady_clock::now();
  TACTIC_RETURN_IF_ERROR(session->Read({tokens_.data(), static_cast<size_t>(tokens)}, &progress));
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
  result->milliseconds.push_back(time.count());
  if (session->hook() == nullptr) return Status::Ok();
  const auto build_ns = static_cast<double>(session->hook()->TakeStats().index_build_ns);
  result->index_ms = std::max(result->index_ms, build_ns / 1e6);
  return session->hook()->LastProblem();
}

Status BenchPrompt::Measure(int tokens, LengthResult* result) {
  result->tokens = tokens;
  for (const Reader& reader : kReaders) {
    if (!reader.flash_attention && !flash_off_) continue;
    result->readers.push_back({.reader = &reader, .milliseconds = {}, .index_ms = 0});
  }
  const size_t readers = result->readers.size();
  for (int repeat = 0; repeat < args_.repeats; ++repeat) {
    // Another one starts each time: whoever comes first may find the machine in another state.
    for (size_t i = 0; i < readers; ++i) {
      const size_t at = (i + static_cast<size_t>(repeat)) % readers;
      TACTIC_RETURN_IF_ERROR(Read(tokens, &result->readers[at]));
    }
  }
  return Status::Ok();
}

nlohmann::json BenchPrompt::CommonFields() const {
  nlohmann::json json = SessionFields(*session_);
  json.update({
      {"file", args_.file.empty() ? kDefaultBook : args_.file},
      {"repeats", args_.repeats},
      {"batch", session_->options().batch},
  });
  return json;
}

void PrintTable(const std::vector<LengthResult>& results, FILE* out) {
  Table table({"tokens", "reader", "seconds", "p10-p90", "tokens/s", "vs stock", "index s"});
  for (const LengthResult& length : results) {
    for (const ReaderResult& result : length.readers) {
      const Quantiles time = Summarize(result.milliseconds);
      table.AddRow({fmt::format("{}", length.tokens), result.reader->name,
                    fmt::format("{:.2f}", time.median / 1e3),
                    fmt::format("{:.2f}-{:.2f}", time.p10 / 1e3, time.p90 / 1e3),
                    fmt::format("{:.0f}", length.tokens / time.median * 1e3),
                    Speedup(time.median, length.Stock()),
                    fmt::format("{:.2f}", result.index_ms / 1e3)});
    }
  }
  table.Print(out);
}

nlohmann::json Records(const std::vector<LengthResult>& results, const nlohmann::json& common) {
  nlohmann::json records = nlohmann::json::array();
  for (const LengthResult& length : results) {
    for (const ReaderResult& result : length.readers) {
      const Quantiles time = Summarize(result.milliseconds);
      nlohmann::json record = common;
      record.update({
          {"tokens", length.tokens},
          {"reader", result.reader->name},
          {"milliseconds", ToJson(time)},
          {"tokens_per_second", length.tokens / time.median * 1e3},
          {"speedup_vs_stock", length.Stock() / time.median},
          {"index_build_ms", result.index_ms},
      });
      records.push_back(std::move(record));
    }
  }
  return records;
}

Status RunBenchPrompt(const BenchPromptArgs& args, bool show_progress) {
  Report report;
  TACTIC_RETURN_IF_ERROR(Report::Open(args.json, &report));
  BenchPrompt bench(args, show_progress);
  TACTIC_RETURN_IF_ERROR(bench.Prepare());
  std::vector<LengthResult> results;
  for (const int tokens : args.lengths) {
    TACTIC_RETURN_IF_ERROR(bench.Measure(tokens, &results.emplace_back()));
    spdlog::info("prompts of {} tokens are measured", tokens);
  }
  PrintTable(results, report.text());
  return report.WriteJson(Records(results, bench.CommonFields()));
}

}  // namespace

void AddBenchPrompt(CLI::App* app, Command* command) {
  auto args = std::make_shared<BenchPromptArgs>();
  CLI::App* sub = app->add_subcommand(
      "bench-prompt", "Time reading a prompt, llama.cpp's attention and ours side by side");
  AddModelArgs(sub, &args->model);
  sub->add_option("--lengths", args->lengths, "tokens of the prompts, e.g. 2048,8192")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 28))
      ->capture_default_str();
  sub->add_option("-f,--file", args->file, "the text [the bundled book]")->type_name("FILE");
  sub->add_option("--repeats", args->repeats, "times each reader has its turn")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str()
      ->type_name("N");
  AddJsonArg(sub, &args->json);
  sub->callback([args, command] {
    *command = [args] { return RunBenchPrompt(*args, spdlog::should_log(spdlog::level::info)); };
  });
}

}  // namespace tactic::app
