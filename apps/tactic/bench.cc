// `tactic bench`: what a decode step costs at given depths, for several policies side by side.
//
// All policies run in one process on the same cache, in turn, so that a machine that slows down
// slows all of them. A repeat decodes a few tokens and rolls back to the depth.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "arguments.h"
#include "bench_report.h"
#include "defaults.h"
#include "dense_below.h"
#include "interrupt.h"
#include "memory.h"
#include "report.h"
#include "state_blob.h"
#include "synthetic_fill.h"
#include "text.h"

namespace tactic::app {
namespace {

using llama::Policy;

// Steps after a change of policy that only warm the caches up.
constexpr int kWarmUpSteps = 2;

Status RefusedCache() {
  return Status::Unsupported("this libllama refuses an injected KV cache; use --fill real");
}

struct BenchArgs {
  ModelArgs model;
  AlgorithmArgs algorithm;
  CacheArgs cache;
  std::vector<int> depths = {4096, 8192, 16384, 32768};
  std::vector<std::string> policies = {"stock", "dense", "paper", "tactic"};
  std::string fill = "real";
  SyntheticOptions synthetic;  // its seed is that of random K and V, too
  bool needed_given = false;
  std::string file;
  int repeats = 5;
  int tokens = 8;
  int mass_tokens = 16;
  bool stages = false;
  std::string json;
};

class Bench {
 public:
  Bench(const BenchArgs& args, bool show_progress) : args_(args), show_progress_(show_progress) {}

  // Checks the arguments, loads the model, opens the contexts and fills their caches to the largest
  // depth (synthetic ones are filled for each depth).
  Status Prepare();
  // Measures one depth; each must be smaller than the one before.
  Status Measure(int depth, DepthResult* result);

  const std::vector<int>& depths() const { return depths_; }  // descending, without duplicates
  double target() const { return policies_.front().tactic.target; }  // of every policy
  nlohmann::json CommonFields() const;
  bool random() const { return args_.fill == "random"; }

 private:
  bool real() const { return args_.fill == "real"; }
  bool synthetic() const { return args_.fill == "synthetic"; }
  // Steps that are decoded at a depth.
  int MostSteps() const { return kWarmUpSteps + std::max(args_.tokens, args_.mass_tokens); }
  bool Wants(Policy policy) const {
    return std::any_of(policies_.begin(), policies_.end(),
                       [&](const llama::HookOptions& options) { return options.policy == policy; });
  }
  Status CheckArguments();
  // `needed`: tokens that the contexts must hold.
  Status OpenSessions(int needed);
  Status FillReal();
  Status FillRandom();
  Status FillSyntheticDepth(int depth, DepthResult* result);
  // The same cache for the context without flash attention.
  Status CopyToFlashOff();
  Status RollBack(int depth);
  // `count` steps at `depth`, then back. Times go to `times` (may be null) after the warm-up.
  Status Steps(Session* session, int depth, int warm_up, int count, std::vector<double>* times);
  Status MeasureRepeat(int depth, int repeat, DepthResult* result);
  // As many steps as were timed, stage by stage: the clocks may cost a little.
  Status MeasureStages(int depth, const llama::HookOptions& policy, DepthResult* result);

  const BenchArgs& args_;
  const bool show_progress_;
  std::vector<int> depths_;
  std::vector<llama::HookOptions> policies_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<llama::Capture> capture_;  // of session_, which it must outlive; may be null
  std::unique_ptr<Session> session_;         // with the hook
  std::unique_ptr<Session> flash_off_;       // stock without flash attention; may be null
  std::vector<llama_token> tokens_;  // the text; what follows a depth is what is decoded there
};

Status Bench::CheckArguments() {
  const std::set<int, std::greater<>> unique(args_.depths.begin(), args_.depths.end());
  depths_.assign(unique.begin(), unique.end());
  for (const std::string& name : args_.policies) {
    Policy policy;
    TACTIC_RETURN_IF_ERROR(llama::ParsePolicy(name, &policy));
    if (Wants(policy)) continue;
    TACTIC_RETURN_IF_ERROR(ResolveAlgorithm(args_.algorithm, policy, &policies_.emplace_back()));
  }
  if (args_.needed_given && !synthetic()) {
    return Status::InvalidArgument(
        fmt::format("--fill-needed is given, but --fill is {}, expected synthetic", args_.fill));
  }
  if (synthetic() && depths_.back() < kLeastSyntheticDepth) {
    return Status::InvalidArgument(
        fmt::format("--depths has {}, expected at least {} for --fill synthetic", depths_.back(),
                    kLeastSyntheticDepth));
  }
  return CheckModelArgs(args_.model);
}

Status Bench::Prepare() {
  TACTIC_RETURN_IF_ERROR(CheckArguments());
  std::string text;
  if (real()) {
    const std::string file = args_.file.empty() ? FindProjectFile(kDefaultBook) : args_.file;
    TACTIC_RETURN_IF_ERROR(ReadText(file, "--file", &text));
  }
  TACTIC_RETURN_IF_ERROR(LoadModel(args_.model, &model_));
  if (!model_->facts().attention_only) {
    return Status::Unsupported(fmt::format(
        "model '{}' is recurrent, expected one with a plain KV cache, which can be rolled back",
        model_->path()));
  }
  const int needed = depths_.front() + MostSteps();
  if (real()) {
    TACTIC_RETURN_IF_ERROR(model_->Tokenize(text, true, false, &tokens_));
    if (static_cast<int>(tokens_.size()) < needed) {
      return Status::OutOfRange(fmt::format(
          "--depths asks for {} tokens of text, but --file has {}", needed, tokens_.size()));
    }
  }
  TACTIC_RETURN_IF_ERROR(OpenSessions(needed));
  if (real()) return FillReal();
  // Any tokens will do; the prime spreads them over the vocabulary.
  for (int64_t i = 0; i < needed; ++i) {
    tokens_.push_back(static_cast<llama_token>(i * 7919 % model_->facts().vocabulary));
  }
  return random() ? FillRandom() : Status::Ok();
}

Status Bench::OpenSessions(int needed) {
  SessionOptions options;
  TACTIC_RETURN_IF_ERROR(ResolveSession(args_.model, *model_, &options));
  TACTIC_RETURN_IF_ERROR(ResolveContext(args_.model, *model_, needed, "--depths needs", &options));
  options.keep_window = true;

  const bool flash_off = Wants(Policy::kStock) && options.CanDoWithoutFlash();
  // Two caches, and one more as the copy on its way from the first to the second.
  const int copies = flash_off ? 3 : synthetic() ? 2 : 1;
  const int64_t bytes = copies * int64_t{options.context} *
                        model_->facts().KvBytesPerToken(options.type_k, options.type_v);
  TACTIC_RETURN_IF_ERROR(CheckMemory(
      bytes,
      fmt::format("the KV cache of a context of {} tokens, {} times,", options.context, copies)));

  llama::HookOptions hook = policies_.front();
  // One of ours, if any, so that a model that cannot be served is noticed before the text is read.
  for (const llama::HookOptions& policy : policies_) {
    if (policy.policy != Policy::kStock) hook = policy;
  }
  if (synthetic()) TACTIC_RETURN_IF_ERROR(llama::Capture::Create({}, &capture_));
  options.capture = capture_.get();
  TACTIC_RETURN_IF_ERROR(Session::Open(*model_, options, &hook, &session_));
  options.capture = nullptr;
  for (llama::HookOptions& policy : policies_) {
    if (!args_.algorithm.dense_below_given)
      ChooseDenseBelow(*session_, CacheFolder(args_.cache), &policy);
  }
  if (!flash_off) return Status::Ok();
  options.flash_attention = false;
  return Session::Open(*model_, options, nullptr, &flash_off_);
}

Status Bench::FillReal() {
  const std::span<const llama_token> text(tokens_.data(), static_cast<size_t>(depths_.front()));
  // Dense reads: exactly, in half of stock's time, and nothing is indexed before a depth asks for
  // it and times it.
  TACTIC_RETURN_IF_ERROR(session_->UsePolicy(llama::HookOptions::For(Policy::kDense)));
  int from_cache = 0;
  {
    Progress progress("reading", depths_.front(), show_progress_);
    TACTIC_RETURN_IF_ERROR(
        ResolveCache(args_.cache).Fill(text, session_.get(), &progress, &from_cache));
  }
  spdlog::info("cache filled with {} tokens, {} of them from a saved state", depths_.front(),
               from_cache);
  return flash_off_ ? CopyToFlashOff() : Status::Ok();
}

Status Bench::CopyToFlashOff() {
  std::vector<uint8_t> blob(llama_state_get_size(session_->get()));
  llama_state_get_data(session_->get(), blob.data(), blob.size());
  const Status transposed = TransposeValues(&blob);
  if (transposed.ok() &&
      llama_state_set_data(flash_off_->get(), blob.data(), blob.size()) == blob.size()) {
    flash_off_->SetDepth(session_->depth());
    return Status::Ok();
  }
  if (synthetic()) return transposed.ok() ? RefusedCache() : transposed;
  spdlog::warn(
      "the cache cannot be copied to a context without flash attention; the text is read again");
  flash_off_->Clear();
  Progress progress("reading without flash attention", depths_.front(), show_progress_);
  return flash_off_->Read({tokens_.data(), static_cast<size_t>(depths_.front())}, &progress);
}

Status Bench::FillRandom() {
  for (Session* session : {session_.get(), flash_off_.get()}) {
    if (session == nullptr) continue;
    TACTIC_RETURN_IF_ERROR(session->Step(0));
    std::vector<uint8_t> sample(llama_state_get_size(session->get()));
    llama_state_get_data(session->get(), sample.data(), sample.size());
    session->Clear();
    std::vector<uint8_t> blob;
    TACTIC_RETURN_IF_ERROR(RandomStateBlob(sample, static_cast<uint32_t>(depths_.front()),
                                           args_.synthetic.seed, &blob));
    if (llama_state_set_data(session->get(), blob.data(), blob.size()) != blob.size()) {
      return RefusedCache();
    }
    session->SetDepth(depths_.front());
  }
  return Status::Ok();
}

Status Bench::FillSyntheticDepth(int depth, DepthResult* result) {
  const std::span<const llama_token> next(tokens_.data() + depth, static_cast<size_t>(MostSteps()));
  TACTIC_RETURN_IF_ERROR(
      FillSynthetic(args_.synthetic, depth, next, session_.get(), &result->synthetic.emplace()));
  if (!flash_off_) return Status::Ok();
  flash_off_->Clear();
  return CopyToFlashOff();
}

Status Bench::RollBack(int depth) {
  TACTIC_RETURN_IF_ERROR(session_->RollBack(depth));
  return flash_off_ ? flash_off_->RollBack(depth) : Status::Ok();
}

Status Bench::Steps(Session* session, int depth, int warm_up, int count,
                    std::vector<double>* times) {
  for (int i = 0; i < warm_up + count; ++i) {
    if (i == warm_up && session->hook() != nullptr) session->hook()->TakeStats();
    double milliseconds = 0;
    TACTIC_RETURN_IF_ERROR(session->Step(tokens_[static_cast<size_t>(depth + i)], &milliseconds));
    if (times != nullptr && i >= warm_up) times->push_back(milliseconds);
  }
  return session->RollBack(depth);
}

Status Bench::MeasureRepeat(int depth, int repeat, DepthResult* result) {
  // Another one starts each time: whoever comes first may find the machine in another state.
  const size_t variants = result->costs.size() + (flash_off_ ? 1 : 0);
  for (size_t i = 0; i < variants; ++i) {
    const size_t variant = (i + static_cast<size_t>(repeat)) % variants;
    if (variant == result->costs.size()) {
      TACTIC_RETURN_IF_ERROR(
          Steps(flash_off_.get(), depth, kWarmUpSteps, args_.tokens, &result->fa_off_ms));
      continue;
    }
    Cost& cost = result->costs[variant];
    TACTIC_RETURN_IF_ERROR(session_->UsePolicy(cost.options()));
    std::vector<double> times;
    TACTIC_RETURN_IF_ERROR(Steps(session_.get(), depth, kWarmUpSteps, args_.tokens, &times));
    for (const double time : times) cost.AddTime(time);
    cost.AddReads(session_->hook()->TakeStats());
  }
  return Status::Ok();
}

Status Bench::MeasureStages(int depth, const llama::HookOptions& policy, DepthResult* result) {
  TACTIC_RETURN_IF_ERROR(session_->UsePolicy(policy));
  TACTIC_RETURN_IF_ERROR(Steps(session_.get(), depth, 0, kWarmUpSteps, nullptr));
  StepStages stages;
  stages.policy = policy.policy;
  stages.depth = depth;
  stages.threads = llama_n_threads(session_->get());
  std::vector<double> times;
  session_->hook()->TakeStageTimes();
  session_->hook()->MeasureStages(true);
  Status status;
  for (int repeat = 0; repeat < args_.repeats && status.ok(); ++repeat) {
    status = Steps(session_.get(), depth, 0, args_.tokens, &times);
    stages.AddReads(session_->hook()->TakeStats());
  }
  session_->hook()->MeasureStages(false);
  TACTIC_RETURN_IF_ERROR(status);
  stages.steps = static_cast<int>(times.size());
  stages.step_ms = std::accumulate(times.begin(), times.end(), 0.0) / stages.steps;
  stages.layers = session_->hook()->TakeStageTimes();
  result->stages.push_back(std::move(stages));
  return Status::Ok();
}

Status Bench::Measure(int depth, DepthResult* result) {
  TACTIC_RETURN_IF_ERROR(synthetic() ? FillSyntheticDepth(depth, result) : RollBack(depth));
  result->depth = depth;
  const SessionOptions& options = session_->options();
  // Sliding windows read less, by an amount that only llama.cpp knows.
  const bool known = model_->facts().sliding_window == 0;
  result->kv_bytes =
      !known ? 0 : depth * model_->facts().KvBytesPerToken(options.type_k, options.type_v);
  for (const llama::HookOptions& policy : policies_) {
    Cost& cost = result->costs.emplace_back(policy);
    if (policy.policy == Policy::kStock) continue;
    // From nothing to the first token: this is what building the index costs at this depth.
    TACTIC_RETURN_IF_ERROR(session_->UsePolicy(policy));
    session_->hook()->DropIndex();
    session_->hook()->TakeStats();
    TACTIC_RETURN_IF_ERROR(Steps(session_.get(), depth, 0, 1, nullptr));
    cost.AddIndex(session_->hook()->TakeStats());
    TACTIC_RETURN_IF_ERROR(session_->hook()->LastProblem());
  }
  for (int repeat = 0; repeat < args_.repeats; ++repeat) {
    TACTIC_RETURN_IF_ERROR(MeasureRepeat(depth, repeat, result));
  }
  for (const llama::HookOptions& policy : policies_) {
    if (args_.stages && policy.policy != Policy::kStock)
      TACTIC_RETURN_IF_ERROR(MeasureStages(depth, policy, result));
  }
  for (Cost& cost : result->costs) {
    if (!Selects(cost.policy()) || random() || args_.mass_tokens == 0) continue;
    TACTIC_RETURN_IF_ERROR(session_->UsePolicy(cost.options()));
    session_->hook()->TakeStats();
    session_->hook()->MeasureMass(true);
    const Status status = Steps(session_.get(), depth, 0, args_.mass_tokens, nullptr);
    session_->hook()->MeasureMass(false);
    TACTIC_RETURN_IF_ERROR(status);
    cost.AddMass(session_->hook()->TakeStats());
  }
  return Status::Ok();
}

nlohmann::json Bench::CommonFields() const {
  nlohmann::json json = SessionFields(*session_);
  json.update({
      {"fill", args_.fill},
      {"file", !real()              ? ""
               : args_.file.empty() ? kDefaultBook
                                    : args_.file},
      {"target", target()},
      {"repeats", args_.repeats},
      {"tokens_per_repeat", args_.tokens},
  });
  return json;
}

Status RunBench(const BenchArgs& args, bool show_progress) {
  Report report;
  TACTIC_RETURN_IF_ERROR(Report::Open(args.json, &report));
  Bench bench(args, show_progress);
  TACTIC_RETURN_IF_ERROR(bench.Prepare());
  std::vector<DepthResult> results;
  Status status;
  for (const int depth : bench.depths()) {
    DepthResult result;
    status = bench.Measure(depth, &result);
    if (!status.ok()) break;
    spdlog::info("depth {} is measured", depth);
    // The cache shrinks from depth to depth; people read tables the other way.
    results.insert(results.begin(), std::move(result));
  }
  if (!results.empty()) {
    PrintBenchTable(results, bench.target(), bench.random(), report.text());
  }
  TACTIC_RETURN_IF_ERROR(status);
  return report.WriteJson(BenchRecords(results, bench.CommonFields()));
}

}  // namespace

void AddBench(CLI::App* app, Command* command) {
  auto args = std::make_shared<BenchArgs>();
  CLI::App* sub =
      app->add_subcommand("bench", "Time decode steps at given depths, policies side by side");
  AddModelArgs(sub, &args->model);
  sub->add_option("--depths", args->depths, "tokens in the cache, e.g. 4096,8192")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 28))
      ->capture_default_str();
  sub->add_option("--policies", args->policies, "of stock, dense, paper and tactic")
      ->delimiter(',')
      ->capture_default_str();
  sub->add_option("--fill", args->fill,
                  "K and V of a real text, synthetic ones that are as sparse, or random ones")
      ->check(CLI::IsMember({"real", "synthetic", "random"}))
      ->capture_default_str();
  CLI::Option* needed =
      sub->add_option("--fill-needed", args->synthetic.needed,
                      "of synthetic K and V: tokens with 90 % of the mass, on average over heads")
          ->check(CLI::Range(4, 1 << 28))
          ->capture_default_str()
          ->type_name("N");
  sub->add_option("-f,--file", args->file, "the text [the bundled book]")->type_name("FILE");
  sub->add_option("--repeats", args->repeats, "times each policy has its turn")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str()
      ->type_name("N");
  sub->add_option("--tokens", args->tokens, "steps that are timed in a turn")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str()
      ->type_name("N");
  sub->add_option("--mass-tokens", args->mass_tokens, "steps whose exact mass is measured; 0: none")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str()
      ->type_name("N");
  sub->add_flag("--stages", args->stages,
                "also time every stage of every layer, with the bytes it reads");
  sub->add_option("--seed", args->synthetic.seed, "seed of random and synthetic K and V")
      ->capture_default_str()
      ->type_name("N");
  AddAlgorithmArgs(sub, &args->algorithm);
  AddCacheArgs(sub, &args->cache);
  AddJsonArg(sub, &args->json);
  sub->callback([args, command, needed] {
    args->needed_given = needed->count() > 0;
    *command = [args] { return RunBench(*args, spdlog::should_log(spdlog::level::info)); };
  });
}

}  // namespace tactic::app
