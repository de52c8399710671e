// `tactic info`: what the machine, libllama and the model are.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <map>
#include <string>
#include <thread>

#include "arguments.h"
#include "defaults.h"
#include "memory.h"
#include "report.h"
#include "tactic/isa.h"

namespace tactic::app {
namespace {

struct InfoArgs {
  ModelArgs model;
  AlgorithmArgs algorithm;
  std::string json;
};

// What the graph of a decode step shows about attention, found by decoding one token.
struct GraphFacts {
  int flash_nodes = 0;              // attention nodes that can be taken over
  std::vector<int> sliding_layers;  // their caches are smaller than the others'
};

struct Probe {
  std::map<std::string, int64_t> cells;  // per cache tensor of a flash-attention node
  int flash_nodes = 0;
};

bool ObserveNode(ggml_tensor* node, bool /*ask*/, void* user_data) {
  auto* probe = static_cast<Probe*>(user_data);
  if (node->op == GGML_OP_FLASH_ATTN_EXT) {
    ++probe->flash_nodes;
    const ggml_tensor* keys = node->src[1];
    const ggml_tensor* cache = keys->view_src != nullptr ? keys->view_src : keys;
    probe->cells[ggml_get_name(cache)] = cache->ne[1];
  }
  return false;  // run on, do not stop here
}

// Layers whose cache tensor ("cache_k_l7") is smaller than the largest.
std::vector<int> SlidingLayers(const Probe& probe) {
  int64_t largest = 0;
  for (const auto& [name, cells] : probe.cells) largest = std::max(largest, cells);
  std::vector<int> layers;
  for (const auto& [name, cells] : probe.cells) {
    const size_t digits = name.find_last_not_of("0123456789") + 1;
    if (cells < largest && digits < name.size()) layers.push_back(std::stoi(name.substr(digits)));
  }
  std::sort(layers.begin(), layers.end());
  return layers;
}

Status ProbeGraph(const Model& model, int threads, GraphFacts* facts) {
  Probe probe;
  llama_context_params params = llama_context_default_params();
  params.n_batch = params.n_ubatch = 32;
  // Large enough for a sliding window to be smaller than the context.
  params.n_ctx =
      static_cast<uint32_t>(RoundUpContext(2 * int64_t{model.facts().sliding_window} + 512));
  params.n_threads = params.n_threads_batch = threads;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.swa_full = false;
  params.offload_kqv = params.op_offload = false;
  params.cb_eval = ObserveNode;
  params.cb_eval_user_data = &probe;
  const llama_context_ptr context(llama_init_from_model(model.get(), params));
  llama_token token = 0;
  if (!context || llama_decode(context.get(), llama_batch_get_one(&token, 1)) != 0) {
    return Status::Unsupported(fmt::format("model '{}' does not run", model.path()));
  }
  facts->flash_nodes = probe.flash_nodes;
  facts->sliding_layers = SlidingLayers(probe);
  return Status::Ok();
}

// Bytes of index per token and layer, as segments store it. An estimate: the newest positions are
// in no segment yet, and bits that are chosen for each segment count as 3.
double IndexBytesPerToken(const ModelFacts& facts, const Options& options) {
  constexpr double kMember = 2;        // place of a token in its segment
  constexpr double kPaperCluster = 4;  // where its members begin
  // That, a scale each of centroid and mean, 17 bytes for how its keys spread, log of its size.
  constexpr double kTacticCluster = 4 + 2 + 2 + 17 + 4;
  if (options.mode == Mode::kPaper) {  // f16 centroids
    return facts.kv_heads *
           (kMember + (2.0 * facts.head_dim_k + kPaperCluster) / options.cluster_size);
  }
  const int bits = options.bits > 0 ? options.bits : 3;
  const double code = facts.head_dim_k * bits / 8.0 + 1;
  // 8-bit centroids of keys and means of values.
  const double cluster = facts.head_dim_k + facts.head_dim_v + kTacticCluster;
  const int tokens = options.index == IndexKind::kPages ? Options::kPage : options.cluster_size;
  return facts.kv_heads * (kMember + code + cluster / tokens);
}

std::string Join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
  return text;
}

Status Info(const InfoArgs& args) {
  llama::HookOptions tactic, paper;
  TACTIC_RETURN_IF_ERROR(ResolveAlgorithm(args.algorithm, llama::Policy::kTactic, &tactic));
  TACTIC_RETURN_IF_ERROR(ResolveAlgorithm(args.algorithm, llama::Policy::kPaper, &paper));
  TACTIC_RETURN_IF_ERROR(CheckModelArgs(args.model));
  Report report;
  TACTIC_RETURN_IF_ERROR(Report::Open(args.json, &report));
  std::unique_ptr<Model> model;
  TACTIC_RETURN_IF_ERROR(LoadModel(args.model, &model));
  SessionOptions session;
  TACTIC_RETURN_IF_ERROR(ResolveSession(args.model, *model, &session));
  GraphFacts graph;
  TACTIC_RETURN_IF_ERROR(ProbeGraph(*model, session.threads, &graph));

  const ModelFacts& facts = model->facts();
  const int context = args.model.context > 0 ? args.model.context : facts.context;
  const int64_t kv_bytes = facts.KvBytesPerToken(session.type_k, session.type_v);
  const int indexed_layers = graph.flash_nodes - static_cast<int>(graph.sliding_layers.size());
  const double tactic_bytes = indexed_layers * IndexBytesPerToken(facts, tactic.tactic);
  const double paper_bytes = indexed_layers * IndexBytesPerToken(facts, paper.tactic);

  const nlohmann::json json = {
      {"command", "info"},
      {"isa", IsaName()},
      {"isas_supported", SupportedIsas()},
      {"threads", session.threads},
      {"memory_available_bytes", AvailableMemory()},
      {"llama_version", LlamaBuild()},
      {"llama_system", llama_print_system_info()},
      {"model",
       {{"path", model->path()},
        {"lora", model->lora_path()},
        {"architecture", facts.architecture},
        {"description", facts.description},
        {"parameters", facts.parameters},
        {"tensor_bytes", facts.tensor_bytes},
        {"layers", facts.layers},
        {"q_heads", facts.q_heads},
        {"kv_heads", facts.kv_heads},
        {"head_dim_k", facts.head_dim_k},
        {"head_dim_v", facts.head_dim_v},
        {"context", facts.context},
        {"vocabulary", facts.vocabulary},
        {"rope_freq_base", facts.rope_base},
        {"sliding_window", facts.sliding_window},
        {"sliding_layers", graph.sliding_layers},
        {"attention_only", facts.attention_only},
        {"flash_attention_layers", graph.flash_nodes},
        {"tactic_layers", indexed_layers}}},
      {"kv_type_k", ggml_type_name(session.type_k)},
      {"kv_type_v", ggml_type_name(session.type_v)},
      {"kv_bytes_per_token", kv_bytes},
      {"index_bytes_per_token_estimate", {{"tactic", tactic_bytes}, {"paper", paper_bytes}}},
      {"context", context},
  };

  FILE* out = report.text();
  const auto line = [out](const char* name, const std::string& value) {
    fmt::print(out, "{:<16} {}\n", name, value);
  };
  line("isa", fmt::format("{} (this machine has: {})", IsaName(), Join(SupportedIsas())));
  line("threads", fmt::format("{}", session.threads));
  line("memory", fmt::format("{} available", FormatBytes(static_cast<double>(AvailableMemory()))));
  line("llama.cpp", LlamaBuild());
  line("", llama_print_system_info());
  line("model", fmt::format("{} ({})", facts.description, model->path()));
  if (!model->lora_path().empty()) line("adapter", model->lora_path());
  line("size", fmt::format("{:.1f} M parameters, {}", static_cast<double>(facts.parameters) / 1e6,
                           FormatBytes(static_cast<double>(facts.tensor_bytes))));
  line("attention",
       fmt::format("{} layers, {} query heads, {} KV heads, head_dim {} (K) {} (V)", facts.layers,
                   facts.q_heads, facts.kv_heads, facts.head_dim_k, facts.head_dim_v));
  line("trained on", fmt::format("{} tokens, rope base {:.0f}", facts.context, facts.rope_base));
  line("vocabulary", fmt::format("{} tokens", facts.vocabulary));
  if (facts.sliding_window > 0) {
    line("sliding window",
         fmt::format("{} tokens in {} layers: [{}]", facts.sliding_window,
                     graph.sliding_layers.size(), fmt::join(graph.sliding_layers, " ")));
  } else {
    line("sliding window", "none");
  }
  line("tactic serves", fmt::format("{} of {} layers", indexed_layers, facts.layers));
  line("KV cache", fmt::format("{} a token ({}/{}), {} at {} tokens",
                               FormatBytes(static_cast<double>(kv_bytes)),
                               ggml_type_name(session.type_k), ggml_type_name(session.type_v),
                               FormatBytes(static_cast<double>(kv_bytes) * context), context));
  const auto index_line = [&](const char* name, const char* policy, double bytes) {
    line(name, fmt::format("policy {}: about {} a token, {} at {} tokens", policy,
                           FormatBytes(bytes), FormatBytes(bytes * context), context));
  };
  index_line("index", "tactic", tactic_bytes);
  index_line("", "paper", paper_bytes);
  return report.WriteJson(json);
}

}  // namespace

void AddInfo(CLI::App* app, Command* command) {
  auto args = std::make_shared<InfoArgs>();
  CLI::App* sub = app->add_subcommand("info", "Describe the machine, libllama and a model");
  AddModelArgs(sub, &args->model);
  AddAlgorithmArgs(sub, &args->algorithm);
  AddJsonArg(sub, &args->json);
  sub->callback([args, command] { *command = [args] { return Info(*args); }; });
}

}  // namespace tactic::app
