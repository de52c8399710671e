#include "arguments.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <thread>

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

void WarnBeyondTraining(const Model& model, int context) {
  const int trained = model.facts().context;
  if (model.adapter() != nullptr || trained <= 0 || context <= RoundUpContext(trained)) return;
  spdlog::warn("the context of {} tokens exceeds the {} that the model was trained on", context,
               trained);
}

void AddAlgorithmArgs(CLI::App* app, Options* options) {
  const auto add = [app](const char* name, auto* value, const char* help) {
    app->add_option(name, *value, help)->group("Algorithm")->capture_default_str();
  };
  // Ranges are checked by Options::Validate, the one place that knows them.
  add("--target", &options->target, "share of the attention mass to read, in (0, 1]");
  add("--cluster-size", &options->cluster_size, "mean number of keys in a cluster");
  add("--segment-size", &options->segment_size, "positions clustered together; 0: all");
  add("--update-interval", &options->update_interval,
      "with --segment-size 0: new positions until they are clustered");
  add("--kmeans-iterations", &options->kmeans_iterations, "upper bound of K-means iterations");
  add("--index-seed", &options->seed, "seed of the initial centroids");
  add("--sinks", &options->sinks, "first positions, always read");
  add("--recent", &options->recent, "newest positions, always read");
  add("--head-share", &options->head_share, "share of ranks computed exactly before the fit");
  add("--near-window", &options->near_window, "place of the near window of the fit, as a share");
  add("--far-window", &options->far_window, "place of the far window of the fit, as a share");
  add("--window-share", &options->window_share, "width of both windows, as a share");
  add("--dense-below", &options->dense_below, "shorter sequences are read densely");
}

void AddCacheArgs(CLI::App* app, CacheArgs* args) {
  app->add_flag("--no-cache", args->off, "neither use nor write saved prompts");
  app->add_option("--cache-dir", args->folder, "folder of saved prompts [~/.cache/tactic]")
      ->type_name("DIR");
  app->add_option("--cache-limit", args->limit_gib,
                  "delete the oldest saved prompts beyond this many GiB")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->type_name("GIB");
}

PromptStateCache ResolveCache(const CacheArgs& args) {
  PromptStateOptions options;
  options.enabled = !args.off;
  options.folder = args.folder.empty() ? DefaultCacheDir() : args.folder;
  options.limit_bytes = static_cast<int64_t>(args.limit_gib * (int64_t{1} << 30));
  return PromptStateCache(options);
}

void AddJsonArg(CLI::App* app, std::string* path) {
  app->add_option("--json", *path, "also write the results as JSON; -: to stdout")
      ->type_name("FILE");
}

}  // namespace tactic::app
