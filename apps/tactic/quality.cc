// `tactic quality`: what policies read of real keys and values, and what that does to attention,
// judged in double precision.
//
// Replays traces (`tactic trace`) through the library, layer by layer, without a model. How well
// each target was met, with how many tokens, at what error of the output: one record for each
// policy and target.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "arguments.h"
#include "atomic_file.h"
#include "interrupt.h"
#include "layer_list.h"
#include "progress.h"
#include "quality_report.h"
#include "report.h"
#include "tactic/thread_team.h"
#include "trace_file.h"

namespace tactic::app {
namespace {

constexpr int kLargestLayer = 4096;  // of any model

struct QualityArgs {
  std::vector<std::string> files;
  std::vector<std::string> policies = {"dense", "paper", "tactic"};
  std::vector<double> targets = {0.8, 0.9, 0.95};
  std::string layers = "all";
  StepChoice steps;
  int threads = 0;  // 0: all that this process may use
  std::string json;
  std::string csv;
};

class Quality {
 public:
  explicit Quality(const QualityArgs& args) : args_(args) {}

  // Checks the arguments and opens the traces.
  Status Prepare();
  // Replays every layer of every trace.
  Status Replay(bool show_progress);

  const QualityResults& results() const { return results_; }

 private:
  Status CheckArguments();
  // Lists the layers that will be replayed.
  Status ChooseLayers();
  ReplayLayer LayerOf(const ReplayedLayer& layer) const;

  const QualityArgs& args_;
  std::vector<std::unique_ptr<TraceFile>> traces_;
  QualityResults results_;
};

Status Quality::CheckArguments() {
  for (const std::string& spec : args_.policies) {
    QualityPolicy policy;
    TACTIC_RETURN_IF_ERROR(ParseQualityPolicy(spec, &policy));
    const auto same = [&](const QualityPolicy& other) { return other.name == spec; };
    if (std::none_of(results_.policies.begin(), results_.policies.end(), same)) {
      results_.policies.push_back(std::move(policy));
    }
  }
  const std::set<double> unique(args_.targets.begin(), args_.targets.end());
  for (const double target : unique) {
    Options options;
    options.target = target;
    TACTIC_RETURN_IF_ERROR(options.Validate());
    results_.targets.push_back(target);
  }
  results_.steps = args_.steps;
  return Status::Ok();
}

Status Quality::Prepare() {
  TACTIC_RETURN_IF_ERROR(CheckArguments());
  for (const std::string& path : args_.files) {
    if (std::count(args_.files.begin(), args_.files.end(), path) > 1) {
      return Status::InvalidArgument(
          fmt::format("'{}' is given more than once and would count as often", path));
    }
    std::unique_ptr<TraceFile> trace;
    TACTIC_RETURN_IF_ERROR(TraceFile::Open(path, &trace));
    results_.traces.push_back(trace.get());
    traces_.push_back(std::move(trace));
  }
  return ChooseLayers();
}

Status Quality::ChooseLayers() {
  std::vector<int> wanted;
  TACTIC_RETURN_IF_ERROR(ParseLayers(args_.layers, kLargestLayer, &wanted));
  for (size_t file = 0; file < traces_.size(); ++file) {
    std::set<int> missing(wanted.begin(), wanted.end());
    for (const TraceLayer& layer : traces_[file]->info().layers) {
      if (!wanted.empty() && missing.erase(layer.layer) == 0) continue;
      results_.layers.push_back({file, layer.layer, {}});
    }
    if (missing.empty()) continue;
    return Status::InvalidArgument(fmt::format("--layers asks for layer {}, which '{}' has not",
                                               *missing.begin(), traces_[file]->path()));
  }
  return Status::Ok();
}

ReplayLayer Quality::LayerOf(const ReplayedLayer& replayed) const {
  const TraceFile& trace = *traces_[replayed.file];
  const std::vector<TraceLayer>& layers = trace.info().layers;
  const auto at = std::find_if(layers.begin(), layers.end(),
                               [&](const TraceLayer& l) { return l.layer == replayed.layer; });
  const auto index = static_cast<size_t>(at - layers.begin());
  return {.shape = at->shape,
          .scale = at->scale,
          .softcap = at->softcap,
          .depth = trace.info().depth,
          .steps = trace.info().steps,
          .q = trace.Query(index, 0, 0),
          .keys = trace.Keys(index),
          .values = trace.Values(index)};
}

Status Quality::Replay(bool show_progress) {
  int64_t total = 0;
  for (const ReplayedLayer& layer : results_.layers) {
    total += args_.steps.Count(traces_[layer.file]->info().steps);
  }
  Progress progress("replaying", total, show_progress, "steps of a layer");
  std::mutex mutex;  // of progress and of done
  int64_t done = 0;
  const auto on_step = [&] {
    const std::scoped_lock lock(mutex);
    progress.Update(++done);
  };

  std::vector<Status> statuses(results_.layers.size());
  std::atomic<size_t> next = 0;
  std::atomic<bool> failed = false;
  // Layers are claimed in order, and each has its own place for results: which thread replays which
  // does not show.
  const auto work = [&](int /*thread*/) {
    for (size_t i = next.fetch_add(1); i < statuses.size() && !failed; i = next.fetch_add(1)) {
      ReplayedLayer& layer = results_.layers[i];
      try {
        statuses[i] = ReplayLayerThrough(LayerOf(layer), results_.policies, results_.targets,
                                         args_.steps, on_step, &layer.policies);
      } catch (const std::exception& error) {  // out of memory; must not leave the thread
        statuses[i] = Status::ResourceExhausted(error.what());
      }
      if (!statuses[i].ok()) failed = true;
    }
  };
  const int available = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const int threads = args_.threads > 0 ? args_.threads : available;
  std::unique_ptr<ThreadTeam> team;
  TACTIC_RETURN_IF_ERROR(
      ThreadTeam::Create(std::min(threads, static_cast<int>(statuses.size())), &team));
  team->Run(work);

  for (size_t i = 0; i < statuses.size(); ++i) {
    if (statuses[i].ok()) continue;
    if (Interrupted()) return statuses[i];
    const ReplayedLayer& layer = results_.layers[i];
    return {statuses[i].code(), fmt::format("'{}', layer {}: {}", traces_[layer.file]->path(),
                                            layer.layer, statuses[i].message())};
  }
  return Status::Ok();
}

Status RunQuality(const QualityArgs& args, bool show_progress) {
  Report report;
  TACTIC_RETURN_IF_ERROR(Report::Open(args.json, &report));
  if (!args.csv.empty()) TACTIC_RETURN_IF_ERROR(CheckWritable(args.csv, "--csv"));
  Quality quality(args);
  TACTIC_RETURN_IF_ERROR(quality.Prepare());
  TACTIC_RETURN_IF_ERROR(quality.Replay(show_progress));
  PrintQualityTable(quality.results(), report.text());
  if (!args.csv.empty()) {
    TACTIC_RETURN_IF_ERROR(WriteFile(args.csv, QualityCsv(quality.results()), "--csv"));
  }
  return report.WriteJson(QualityRecords(quality.results()));
}

}  // namespace

void AddQuality(CLI::App* app, Command* command) {
  auto args = std::make_shared<QualityArgs>();
  CLI::App* sub = app->add_subcommand(
      "quality", "Check what policies read of real keys and values against exact attention");
  sub->add_option("FILE", args->files, "traces, as `tactic trace` writes them")->required();
  sub->add_option("--policies", args->policies,
                  "modes with their parameters, e.g. dense,paper:sinks=0:recent=0,tactic:bits=2")
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("LIST");
  sub->add_option("--targets", args->targets, "shares of the attention mass to read, in (0, 1]")
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("LIST");
  sub->add_option("--layers", args->layers, "layers to replay, e.g. 0,3,5-9")
      ->capture_default_str()
      ->type_name("LIST");
  sub->add_option("--steps", args->steps.first, "measure only the first N steps; 0: all")
      ->check(CLI::Range(0, 1 << 28))
      ->type_name("N");
  sub->add_option("--every", args->steps.every, "measure only every K-th step")
      ->check(CLI::Range(1, 1 << 28))
      ->type_name("K");
  sub->add_option("-t,--threads", args->threads, "threads; 0: all that this process may use")
      ->check(CLI::Range(0, 1024))
      ->type_name("N");
  AddJsonArg(sub, &args->json);
  sub->add_option("--csv", args->csv, "also write them as CSV")->type_name("FILE");
  sub->callback([args, command] {
    *command = [args] { return RunQuality(*args, spdlog::should_log(spdlog::level::info)); };
  });
}

}  // namespace tactic::app
