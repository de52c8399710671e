// `tactic trace`: queries, keys and values of a real run, in a file.
//
// The text is read with stock attention (or comes from a saved state), then a few tokens are
// decoded one at a time while a Capture looks on.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>

#include "arguments.h"
#include "atomic_file.h"
#include "defaults.h"
#include "interrupt.h"
#include "layer_list.h"
#include "memory.h"
#include "report.h"
#include "sampler.h"
#include "text.h"
#include "trace_file.h"
#include "trace_writer.h"

namespace tactic::app {
namespace {

namespace fs = std::filesystem;

struct TraceArgs {
  ModelArgs model;
  CacheArgs cache;
  std::string file;
  int skip = 0;
  int depth = 0;  // 0: as much of the text as fits
  int steps = 24;
  bool generate = false;
  std::string layers = "all";
  std::string output;
  std::string json;
};

class Trace {
 public:
  Trace(const TraceArgs& args, bool show_progress) : args_(args), show_progress_(show_progress) {}

  // Checks the arguments, loads the model, opens the context, and finds out what can be captured.
  Status Prepare();
  // Reads the text up to the first step.
  Status Read();
  // Decodes the steps.
  Status Steps();
  Status Write();

  void PrintSummary(FILE* out) const;
  nlohmann::json Json() const;

 private:
  Status TakeTokens(const std::string& text);
  Status OpenSession();
  // Decodes one token that is removed again: what cannot be captured shows before a long text is
  // read.
  Status Probe();
  Status CheckDisk() const;
  // What the capture has, in the terms of the file.
  void Describe();

  const TraceArgs& args_;
  const bool show_progress_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<llama::Capture> capture_;  // before session_: must outlive it
  std::unique_ptr<Session> session_;
  std::vector<llama_token> tokens_;  // what is read and decoded, and the token that follows
  TraceInfo info_;
};

Status Trace::Prepare() {
  TACTIC_RETURN_IF_ERROR(CheckModelArgs(args_.model));
  const std::string file = args_.file.empty() ? FindProjectFile(kDefaultBook) : args_.file;
  std::string text;
  TACTIC_RETURN_IF_ERROR(ReadText(file, "--file", &text));
  TACTIC_RETURN_IF_ERROR(LoadModel(args_.model, &model_));
  if (!model_->facts().attention_only) {
    return Status::Unsupported(fmt::format(
        "model '{}' is recurrent, expected one with a plain KV cache, which can be rolled back",
        model_->path()));
  }
  info_.model = fs::path(model_->path()).filename().string();
  info_.lora = fs::path(model_->lora_path()).filename().string();
  info_.text = fs::path(file).filename().string();
  info_.llama_build = LlamaBuild();
  info_.skip = args_.skip;
  info_.generated = args_.generate;
  TACTIC_RETURN_IF_ERROR(TakeTokens(text));
  TACTIC_RETURN_IF_ERROR(OpenSession());
  TACTIC_RETURN_IF_ERROR(Probe());
  return CheckDisk();
}

Status Trace::TakeTokens(const std::string& text) {
  // A prompt for an answer may be a chat, with its control tokens.
  TACTIC_RETURN_IF_ERROR(model_->Tokenize(text, true, args_.generate, &tokens_));
  model_->Skip(args_.skip, &tokens_);

  // Generated tokens need room in the context, but not in the text.
  const int64_t decoded = args_.generate ? 0 : int64_t{args_.steps} + 1;
  int64_t depth = args_.depth;
  if (depth == 0) {
    const int context = args_.model.context > 0 ? args_.model.context : model_->facts().context;
    depth = std::min(std::ssize(tokens_) - decoded, int64_t{context} - args_.steps);
  }
  if (depth < 1 || depth + decoded > std::ssize(tokens_)) {
    return Status::OutOfRange(fmt::format(
        "--depth and --steps ask for {} tokens of text, but --file has {} behind --skip {}",
        std::max<int64_t>(depth, 1) + decoded, tokens_.size(), args_.skip));
  }
  tokens_.resize(static_cast<size_t>(depth + decoded));
  info_.depth = static_cast<int>(depth);
  info_.steps = args_.steps;
  return Status::Ok();
}

Status Trace::OpenSession() {
  SessionOptions options;
  TACTIC_RETURN_IF_ERROR(ResolveSession(args_.model, *model_, &options));
  for (const ggml_type type : {options.type_k, options.type_v}) {
    if (type == GGML_TYPE_F16 || type == GGML_TYPE_BF16) continue;
    return Status::InvalidArgument(
        fmt::format("--kv-type is {}, expected f16 or bf16 for a trace", ggml_type_name(type)));
  }
  const int64_t needed = info_.tokens();
  TACTIC_RETURN_IF_ERROR(
      ResolveContext(args_.model, *model_, needed, "--depth and --steps need", &options));
  // As in `bench`, with which saved prompts are shared.
  options.keep_window = true;
  info_.rope_freq_base = options.rope_freq_base > 0 ? options.rope_freq_base
                                                    : static_cast<float>(model_->facts().rope_base);
  llama::CaptureOptions capture;
  TACTIC_RETURN_IF_ERROR(ParseLayers(args_.layers, model_->facts().layers, &capture.layers));
  TACTIC_RETURN_IF_ERROR(llama::Capture::Create(capture, &capture_));
  options.capture = capture_.get();
  return Session::Open(*model_, options, nullptr, &session_);
}

Status Trace::Probe() {
  capture_->Start(0);
  capture_->BeginStep();
  TACTIC_RETURN_IF_ERROR(session_->Step(0));
  capture_->Stop();
  const Status problem = capture_->Problem();
  if (!problem.ok()) {
    return Status::Unsupported(fmt::format("the attention of model '{}' cannot be captured: {}",
                                           model_->path(), problem.message()));
  }
  session_->Clear();
  Describe();
  return Status::Ok();
}

void Trace::Describe() {
  info_.layers.clear();
  info_.sliding_layers.clear();
  for (const llama::CapturedLayer& layer : capture_->layers()) {
    if (layer.slides) {
      info_.sliding_layers.push_back(layer.layer);
      continue;
    }
    info_.layers.push_back(
        {layer.layer, layer.shape, layer.scale, layer.softcap, layer.keys.type, layer.values.type});
  }
}

Status Trace::CheckDisk() const {
  const fs::path folder = fs::absolute(args_.output).parent_path();
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  const int64_t bytes = TraceBytes(info_);
  if (error || static_cast<int64_t>(space.available) >= bytes) return Status::Ok();
  return Status::ResourceExhausted(fmt::format(
      "--output needs {}, but '{}' has {} left", FormatBytes(static_cast<double>(bytes)),
      folder.string(), FormatBytes(static_cast<double>(space.available))));
}

Status Trace::Read() {
  const std::span<const llama_token> text(tokens_.data(), static_cast<size_t>(info_.depth));
  // A saved state has no logits: what generates reads its last token itself.
  const std::span<const llama_token> last = text.last(args_.generate ? 1 : 0);
  const std::span<const llama_token> before = text.first(text.size() - last.size());
  int from_cache = 0;
  {
    Progress progress("reading", info_.depth, show_progress_);
    if (!before.empty()) {
      TACTIC_RETURN_IF_ERROR(
          ResolveCache(args_.cache).Fill(before, session_.get(), &progress, &from_cache));
    }
    TACTIC_RETURN_IF_ERROR(session_->Read(last, &progress));
  }
  spdlog::info("cache filled with {} tokens, {} of them from a saved state", info_.depth,
               from_cache);
  return Status::Ok();
}

Status Trace::Steps() {
  const Sampler sampler;
  Progress progress("capturing", args_.steps, show_progress_);
  capture_->Start(info_.depth);
  if (args_.generate) tokens_.push_back(sampler.Sample(session_->get()));
  for (int step = 0; step < args_.steps; ++step) {
    const llama_token token = tokens_[static_cast<size_t>(info_.depth + step)];
    if (args_.generate && model_->IsEndOfGeneration(token)) break;
    capture_->BeginStep();
    TACTIC_RETURN_IF_ERROR(session_->Step(token));
    progress.Update(step + 1);
    if (args_.generate) tokens_.push_back(sampler.Sample(session_->get()));
  }
  capture_->Stop();
  if (capture_->steps() == 0) {
    return Status::Unsupported(
        "the model ends its answer before the first token, expected at least one to capture");
  }
  TACTIC_RETURN_IF_ERROR(capture_->Problem());
  info_.steps = capture_->steps();
  if (info_.steps < args_.steps) spdlog::info("the answer ends after {} tokens", info_.steps);
  Describe();
  if (!info_.sliding_layers.empty()) {
    spdlog::warn("layers {} slide over a window of the sequence and are left out",
                 fmt::join(info_.sliding_layers, ", "));
  }
  if (info_.layers.empty()) {
    return Status::Unsupported(
        fmt::format("no layer of --layers {} sees the whole sequence, so there is nothing to write",
                    args_.layers));
  }
  return Status::Ok();
}

Status Trace::Write() {
  std::unique_ptr<TraceWriter> writer;
  TACTIC_RETURN_IF_ERROR(TraceWriter::Open(args_.output, info_, &writer));
  for (const llama::CapturedLayer& layer : capture_->layers()) {
    if (layer.slides) continue;
    TACTIC_RETURN_IF_ERROR(writer->WriteLayer(layer.keys, layer.values, layer.q));
  }
  return writer->Finish(tokens_);
}

void Trace::PrintSummary(FILE* out) const {
  std::error_code ignored;
  fmt::print(out, "{}: {} layers, {} tokens read and {} {}, {}\n", args_.output,
             info_.layers.size(), info_.depth, info_.steps,
             info_.generated ? "generated" : "decoded",
             FormatBytes(static_cast<double>(fs::file_size(args_.output, ignored))));
}

nlohmann::json Trace::Json() const {
  std::vector<int> layers;
  for (const TraceLayer& layer : info_.layers) layers.push_back(layer.layer);
  return {
      {"command", "trace"},
      {"output", args_.output},
      {"model", model_->path()},
      {"lora", model_->lora_path()},
      {"rope_freq_base", info_.rope_freq_base},
      {"file", args_.file.empty() ? kDefaultBook : args_.file},
      {"skip", info_.skip},
      {"depth", info_.depth},
      {"steps", info_.steps},
      {"generated", info_.generated},
      {"layers", layers},
      {"sliding_layers", info_.sliding_layers},
      {"threads", session_->options().threads},
      {"kv_type_k", ggml_type_name(session_->options().type_k)},
      {"kv_type_v", ggml_type_name(session_->options().type_v)},
      {"llama_version", LlamaBuild()},
  };
}

// A trace is renamed into its place, which would replace a device or a pipe.
Status CheckOutput(const std::string& path) {
  TACTIC_RETURN_IF_ERROR(CheckWritable(path, "--output"));
  std::error_code ignored;
  if (!fs::exists(path, ignored) || fs::is_regular_file(path, ignored)) return Status::Ok();
  return Status::InvalidArgument(fmt::format("--output: '{}' is not a regular file", path));
}

Status RunTrace(const TraceArgs& args, bool show_progress) {
  TACTIC_RETURN_IF_ERROR(CheckOutput(args.output));
  Report report;
  TACTIC_RETURN_IF_ERROR(Report::Open(args.json, &report));
  Trace trace(args, show_progress);
  TACTIC_RETURN_IF_ERROR(trace.Prepare());
  TACTIC_RETURN_IF_ERROR(trace.Read());
  TACTIC_RETURN_IF_ERROR(trace.Steps());
  TACTIC_RETURN_IF_ERROR(trace.Write());
  trace.PrintSummary(report.text());
  return report.WriteJson(trace.Json());
}

}  // namespace

void AddTrace(CLI::App* app, Command* command) {
  auto args = std::make_shared<TraceArgs>();
  CLI::App* sub =
      app->add_subcommand("trace", "Write queries, keys and values of a real run to a file");
  AddModelArgs(sub, &args->model);
  sub->add_option("-o,--output", args->output, "where to: a safetensors file")
      ->required()
      ->type_name("FILE");
  sub->add_option("-f,--file", args->file, "the text [the bundled book]")->type_name("FILE");
  sub->add_option("--skip", args->skip, "tokens of the text to leave out at its start")
      ->check(CLI::Range(0, 1 << 28))
      ->capture_default_str()
      ->type_name("N");
  sub->add_option("--depth", args->depth,
                  "tokens to read before the first step; 0: as much of the text as fits")
      ->check(CLI::Range(0, 1 << 28))
      ->capture_default_str()
      ->type_name("N");
  sub->add_option("--steps", args->steps, "decode steps to capture")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str()
      ->type_name("N");
  sub->add_flag("--generate", args->generate,
                "decode what the model says, not what the text goes on with");
  sub->add_option("--layers", args->layers, "layers to capture: all, or e.g. 0,3,5-9")
      ->capture_default_str();
  AddCacheArgs(sub, &args->cache);
  AddJsonArg(sub, &args->json);
  sub->callback([args, command] {
    *command = [args] { return RunTrace(*args, spdlog::should_log(spdlog::level::info)); };
  });
}

}  // namespace tactic::app
