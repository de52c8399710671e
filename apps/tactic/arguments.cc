#include "arguments.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <charconv>
#include <map>
#include <optional>
#include <thread>
#include <type_traits>

#include "defaults.h"
#include "names.h"

namespace tactic::app {
namespace {

constexpr int kLargestContext = 1 << 28;

std::string AdapterDescription(const Model& model) {
  std::string text(512, '\0');
  const int32_t length =
      llama_adapter_meta_val_str(model.adapter(), "general.description", text.data(), text.size());
  text.resize(length < 0 ? 0 : std::min<size_t>(length, text.size() - 1));
  return text;
}

int ThreadsOfThisProcess() {
  // glibc counts the CPUs of the affinity mask, as containers and taskset set it.
  return std::max(1U, std::thread::hardware_concurrency());
}

Status ResolveKvTypes(const ModelArgs& args, ggml_type* type_k, ggml_type* type_v) {
  TACTIC_RETURN_IF_ERROR(ParseKvType(args.kv_type, "--kv-type", type_k));
  *type_v = *type_k;
  if (!args.kv_type_k.empty()) {
    TACTIC_RETURN_IF_ERROR(ParseKvType(args.kv_type_k, "--kv-type-k", type_k));
  }
  if (!args.kv_type_v.empty()) {
    TACTIC_RETURN_IF_ERROR(ParseKvType(args.kv_type_v, "--kv-type-v", type_v));
  }
  return Status::Ok();
}

std::optional<int> ParseTokens(const std::string& text) {
  int tokens = 0;
  const char* end = text.data() + text.size();
  const auto [parsed, error] = std::from_chars(text.data(), end, tokens);
  if (error != std::errc() || parsed != end) return std::nullopt;
  return tokens;
}

// Declares options of the algorithm under one heading of the help.
class AlgorithmOptions {
 public:
  AlgorithmOptions(CLI::App* app, AlgorithmArgs* args, const char* group)
      : app_(app), args_(args), group_(group) {}

  template <typename T>
  void Add(const char* name, T Options::* field, const char* help) const {
    const T paper = Options::For(Mode::kPaper).*field, tactic = Options::For(Mode::kTactic).*field;
    app_->add_option_function<T>(name, Setter<T>(field), help)
        ->group(group_)
        ->default_str(paper == tactic ? fmt::format("{}", tactic)
                                      : fmt::format("{} (paper: {})", tactic, paper));
  }

  // For a field whose values have names.
  template <typename T>
  void AddChoice(const char* name, T Options::* field,
                 const std::type_identity_t<std::map<std::string, T>>& names,
                 const char* help) const {
    std::string shown;
    for (const auto& [value_name, value] : names) {
      if (value == Options().*field) shown = value_name;
    }
    const auto set = [names, setter = Setter<T>(field)](const std::string& value_name) {
      setter(names.at(value_name));
    };
    app_->add_option_function<std::string>(name, set, help)
        ->group(group_)
        ->check(CLI::IsMember(names))
        ->default_str(shown);
  }

 private:
  template <typename T>
  std::function<void(const T&)> Setter(T Options::* field) const {
    return [args = args_, field](const T& value) {
      args->changes.push_back([field, value](Options* options) { options->*field = value; });
    };
  }

  CLI::App* app_;
  AlgorithmArgs* args_;
  const char* group_;
};

}  // namespace

void AddModelArgs(CLI::App* app, ModelArgs* args) {
  app->add_option("-m,--model", args->model,
                  "GGUF model [$TACTIC_MODEL, else the bundled SmolLM2-135M-Instruct]")
      ->type_name("FILE");
  app->add_option("--lora", args->lora, "LoRA adapter (GGUF)")->type_name("FILE");
  app->add_option("--rope-freq-base", args->rope_freq_base, "rope base; 0: the model's own")
      ->check(CLI::NonNegativeNumber)
      ->type_name("X");
  app->add_option("-t,--threads", args->threads, "threads; 0: all that this process may use")
      ->check(CLI::Range(0, 1024))
      ->type_name("N");
  app->add_option("-b,--batch", args->batch, "tokens of a prompt that are computed at once")
      ->check(CLI::Range(32, 65536))
      ->capture_default_str()
      ->type_name("N");
  app->add_flag(
      "--no-repack", args->no_repack,
      "compute with the weights as they are in the file (helps where libllama's AMX crashes)");
  app->add_option("-c,--ctx", args->context, "context in tokens; 0: what is needed")
      ->check(CLI::Range(0, kLargestContext))
      ->type_name("N");
  app->add_option("--kv-type", args->kv_type,
                  "element type of the KV cache: f32 f16 bf16 q8_0 q4_0")
      ->capture_default_str()
      ->type_name("TYPE");
  app->add_option("--kv-type-k", args->kv_type_k, "the same for K alone")->type_name("TYPE");
  app->add_option("--kv-type-v", args->kv_type_v, "the same for V alone")->type_name("TYPE");
}

Status CheckModelArgs(const ModelArgs& args) {
  ggml_type type_k, type_v;
  return ResolveKvTypes(args, &type_k, &type_v);
}

Status LoadModel(const ModelArgs& args, std::unique_ptr<Model>* model) {
  ModelOptions options;
  options.path = args.model.empty() ? DefaultModelPath() : args.model;
  options.lora_path = args.lora;
  options.repack = !args.no_repack;
  return Model::Load(options, model);
}

Status ResolveSession(const ModelArgs& args, const Model& model, SessionOptions* options) {
  TACTIC_RETURN_IF_ERROR(ResolveKvTypes(args, &options->type_k, &options->type_v));
  options->threads = args.threads > 0 ? args.threads : ThreadsOfThisProcess();
  options->batch = args.batch;
  options->rope_freq_base = args.rope_freq_base;
  if (model.adapter() != nullptr && args.rope_freq_base == 0) {
    const std::string description = AdapterDescription(model);
    if (description.find("rope") != std::string::npos) {
      spdlog::warn("--rope-freq-base is not given, but the adapter says: {}", description);
    }
  }
  return Status::Ok();
}

Status ResolveContext(const ModelArgs& args, const Model& model, int64_t needed,
                      std::string_view who_needs, SessionOptions* options) {
  if (args.context > 0 && args.context < needed) {
    return Status::OutOfRange(
        fmt::format("--ctx is {}, but {} at least {}", args.context, who_needs, needed));
  }
  options->context = args.context > 0 ? args.context : RoundUpContext(needed);
  WarnBeyondTraining(model, options->context);
  return Status::Ok();
}

void WarnBeyondTraining(const Model& model, int context) {
  const int trained = model.facts().context;
  if (model.adapter() != nullptr || trained <= 0 || context <= RoundUpContext(trained)) return;
  spdlog::warn("the context of {} tokens exceeds the {} that the model was trained on", context,
               trained);
}

void AddAlgorithmArgs(CLI::App* app, AlgorithmArgs* args) {
  const AlgorithmOptions every(app, args, "Algorithm");
  // Ranges are checked by Options::Validate, the one place that knows them.
  every.Add("--target", &Options::target, "share of the attention mass to read, in (0, 1]");
  every.Add("--cluster-size", &Options::cluster_size, "mean number of keys in a cluster");
  every.Add("--segment-size", &Options::segment_size, "positions clustered together; 0: all");
  every.Add("--update-interval", &Options::update_interval,
            "with --segment-size 0: new positions until they are clustered");
  every.Add("--kmeans-iterations", &Options::kmeans_iterations,
            "upper bound of K-means iterations");
  every.Add("--sinks", &Options::sinks, "first positions, always read");
  every.Add("--recent", &Options::recent, "newest positions, always read");
  app->add_option_function<std::string>(
         "--dense-below",
         [args](const std::string& value) {
           const std::optional<int> tokens = ParseTokens(value);
           args->dense_below_given = tokens.has_value();
           if (!tokens) return;  // auto
           args->changes.push_back([n = *tokens](Options* options) { options->dense_below = n; });
         },
         "shorter sequences are read densely; auto: those for which that is faster, as is "
         "measured in a second when first needed and then kept in ~/.cache/tactic")
      ->group("Algorithm")
      ->check(CLI::Validator(
          [](const std::string& value) -> std::string {
            if (value == "auto" || ParseTokens(value)) return "";
            return "is '" + value + "', expected auto or a number of tokens";
          },
          ""))
      ->default_str("auto")
      ->type_name("N");

  const AlgorithmOptions tactic(app, args, "Algorithm of policy tactic");
  tactic.AddChoice("--index", &Options::index,
                   {{"clusters", IndexKind::kClusters}, {"pages", IndexKind::kPages}},
                   "divide positions by K-means, or into runs of 32 without clustering");
  tactic.AddChoice("--bits", &Options::bits, {{"auto", 0}, {"2", 2}, {"3", 3}, {"4", 4}},
                   "bits per element of a key's code; auto: by --bits-error");
  tactic.Add("--bits-error", &Options::bits_error,
             "error of a logit, as predicted, up to which fewer bits will do");
  tactic.Add("--skip-share", &Options::skip_share,
             "share of 1 - target that clusters may hold whose codes are not read");
  tactic.Add("--skip-token", &Options::skip_token,
             "share of 1 - target that one token of such a cluster may hold");
  tactic.Add("--unread-margin", &Options::unread_margin,
             "factor on the estimated mass of tokens that are not read");
  tactic.Add("--skipped-margin", &Options::skipped_margin,
             "factor on the estimated mass of clusters whose codes are not read");
  tactic.Add("--rounds", &Options::rounds,
             "times a selection that falls short is extended; 0: never");
  tactic.AddChoice("--tail", &Options::tail, {{"on", true}, {"off", false}},
                   "let unread tokens count, with the mean values of their clusters");
  tactic.Add("--dense-share", &Options::dense_share,
             "share of the context beyond which a KV head reads all of it");

  const AlgorithmOptions paper(app, args, "Algorithm of policy paper");
  paper.Add("--index-seed", &Options::seed, "seed of the initial centroids");
  paper.Add("--head-share", &Options::head_share, "share of ranks computed exactly before the fit");
  paper.Add("--near-window", &Options::near_window,
            "place of the near window of the fit, as a share");
  paper.Add("--far-window", &Options::far_window, "place of the far window of the fit, as a share");
  paper.Add("--window-share", &Options::window_share, "width of both windows, as a share");
}

Status ResolveAlgorithm(const AlgorithmArgs& args, llama::Policy policy,
                        llama::HookOptions* options) {
  *options = llama::HookOptions::For(policy);
  for (const auto& change : args.changes) change(&options->tactic);
  const Status status = options->tactic.Validate();
  if (status.ok()) return status;
  return {status.code(), fmt::format("policy {}: {}", llama::PolicyName(policy), status.message())};
}

void AddCacheArgs(CLI::App* app, CacheArgs* args) {
  app->add_flag("--no-cache", args->off, "neither use nor write saved prompts and measurements");
  app->add_option("--cache-dir", args->folder,
                  "folder of saved prompts and measurements [~/.cache/tactic]")
      ->type_name("DIR");
  app->add_option("--cache-limit", args->limit_gib,
                  "delete the oldest saved prompts beyond this many GiB")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->type_name("GIB");
}

std::string CacheFolder(const CacheArgs& args) {
  if (args.off) return "";
  return args.folder.empty() ? DefaultCacheDir() : args.folder;
}

PromptStateCache ResolveCache(const CacheArgs& args) {
  PromptStateOptions options;
  options.enabled = !args.off;
  options.folder = CacheFolder(args);
  options.limit_bytes = static_cast<int64_t>(args.limit_gib * (int64_t{1} << 30));
  return PromptStateCache(options);
}

void AddJsonArg(CLI::App* app, std::string* path) {
  app->add_option("--json", *path, "also write the results as JSON; -: to stdout")
      ->type_name("FILE");
}

}  // namespace tactic::app
