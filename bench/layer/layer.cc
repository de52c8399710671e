// What one layer's decode step costs at any length: policies in turn (modes, with parameters as for
// `tactic quality`), on synthetic attention whose sparsity is the same at every length
// (synthetic.h). Prints a table to standard error and JSON to standard output, with the time of
// each phase by its name in tactic/decode.h.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "apps/tactic/quality_policy.h"
#include "bench/layer/synthetic.h"
#include "tactic/decode.h"
#include "tactic/isa.h"
#include "tactic/thread_team.h"

namespace tactic::bench {
namespace {

using nlohmann::json;

struct Settings {
  std::vector<int64_t> tokens = {16384, 131072};
  LayerShape shape = {32, 8, 128, 128};
  int64_t needed = 1800;
  double target = 0.9;
  int threads = 2;
  int queries = 8;
  int repeats = 3;
  std::vector<std::string> policies = {"dense", "paper", "tactic"};
  uint64_t seed = 1;
};

using Clock = std::chrono::steady_clock;

double Between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

double Seconds(const auto& f) {
  const auto begin = Clock::now();
  f();
  return Between(begin, Clock::now());
}

double Percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(std::lround(share * static_cast<double>(values.size() - 1)))];
}

void Check(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message());
}

// One policy on one layer.
class Player {
 public:
  Player(const app::QualityPolicy& policy, const Settings& settings, const SyntheticLayer& layer,
         ThreadTeam* team)
      : layer_(layer), team_(team), name_(policy.name), options_(policy.options) {
    options_.target = settings.target;
    cells_.resize(static_cast<size_t>(layer.tokens()));
    std::iota(cells_.begin(), cells_.end(), 0u);
    out_.resize(static_cast<size_t>(layer.shape().q_heads * layer.shape().value_dim));
    if (options_.mode == Mode::kDense) return;
    index_ = std::make_unique<SequenceIndex>(layer.shape(), options_);
    index_->SetQueryNorms(QueryNorms());
    index_->Append(layer.tokens());
    build_seconds_ = Seconds([&] {
      const int units = index_->PlanBuild();
      std::atomic<int> next = 0;
      team->Run([&](int) {
        for (int unit = next++; unit < units; unit = next++)
          index_->BuildUnit(unit, layer_.keys(), layer_.values(), cells_);
      });
    });
  }

  void Time(int query) {
    milliseconds_.push_back(1e3 * Seconds([&] { Step(query, false); }));
    for (int phase = 0; phase < kPhases; ++phase)
      phases_[phase].push_back(1e3 * Between(ends_[phase], ends_[phase + 1]));
  }

  // Quality, and what was read.
  void Measure(int query) {
    Step(query, true);
    const DecodeStats stats = step_.stats();
    bytes_ += stats.bytes_read;
    dense_bytes_ += stats.bytes_dense;
    rows_ += stats.rows_read;
    for (int part = 0; part < 3; ++part) {
      parts_[part] += part == 0   ? stats.bytes_clusters
                      : part == 1 ? stats.bytes_codes
                                  : stats.bytes_rows;
    }
    for (const HeadReport& head : step_.head_reports()) {
      ++cases_;
      constexpr double kRounding = 1e-3;
      reached_ += head.own_mass >= options_.target - kRounding ? 1 : 0;
      least_ = std::min(least_, head.own_mass);
      own_rows_ += head.own_rows;
    }
  }

  double Median() const { return Percentile(milliseconds_, 0.5); }

  json Report(double first_median) const {
    const double steps = static_cast<double>(cases_) / layer_.shape().q_heads;
    const double bytes = static_cast<double>(bytes_) / steps;
    return {
        {"policy", name_},
        {"tokens", layer_.tokens()},
        {"ms_median", Median()},
        {"ms_p10", Percentile(milliseconds_, 0.1)},
        {"ms_p90", Percentile(milliseconds_, 0.9)},
        {"times", milliseconds_.size()},
        {"ms_rank", Percentile(phases_[0], 0.5)},
        {"ms_budget", Percentile(phases_[1], 0.5)},
        {"ms_select", Percentile(phases_[2], 0.5)},
        {"ms_attend", Percentile(phases_[3], 0.5)},
        {"ms_combine", Percentile(phases_[4], 0.5)},
        {"speedup", first_median / Median()},
        {"bytes_per_step", bytes},
        {"share_of_dense_bytes", static_cast<double>(bytes_) / static_cast<double>(dense_bytes_)},
        {"bytes_clusters", static_cast<double>(parts_[0]) / steps},
        {"bytes_codes", static_cast<double>(parts_[1]) / steps},
        {"bytes_rows", static_cast<double>(parts_[2]) / steps},
        {"gb_per_s", bytes / Median() / 1e6},
        {"cases", cases_},
        {"reached", static_cast<double>(reached_) / static_cast<double>(cases_)},
        {"least_mass", least_},
        {"own_rows", static_cast<double>(own_rows_) / static_cast<double>(cases_)},
        {"index_bytes", index_ ? index_->MemoryBytes() : 0},
        {"workspace_bytes", step_.WorkspaceBytes()},
        {"build_seconds", build_seconds_}};
  }

 private:
  void Step(int query, bool measure) {
    const LayerShape& shape = layer_.shape();
    const DecodeRequest request = {layer_.Query(query),
                                   static_cast<size_t>(shape.head_dim),
                                   layer_.keys(),
                                   layer_.values(),
                                   cells_,
                                   index_.get(),
                                   out_.data(),
                                   static_cast<size_t>(shape.value_dim)};
    Check(step_.Plan(shape, options_, {layer_.scale(), 0, measure}, {&request, 1}, team_->size()));
    team_->Run([&](int thread) {
      for (int phase = 0; phase < kPhases; ++phase) {
        if (thread == 0) ends_[phase] = Clock::now();
        step_.RunPhase(static_cast<Phase>(phase), thread);
        team_->Barrier();
      }
      if (thread == 0) ends_[kPhases] = Clock::now();
    });
  }

  std::vector<float> QueryNorms() const {
    const LayerShape& shape = layer_.shape();
    std::vector<float> norms;
    const float* q = layer_.Query(0);
    const int per_kv_head = shape.group() * shape.head_dim;
    for (int h = 0; h < shape.kv_heads; ++h, q += per_kv_head) {
      double sum = 0;
      for (int i = 0; i < per_kv_head; ++i) sum += std::pow(double{q[i]} * layer_.scale(), 2);
      norms.push_back(static_cast<float>(sum / shape.group()));
    }
    return norms;
  }

  const SyntheticLayer& layer_;
  ThreadTeam* team_;
  std::string name_;
  Options options_;
  std::vector<uint32_t> cells_;
  std::vector<float> out_;
  std::unique_ptr<SequenceIndex> index_;
  DecodeStep step_;
  double build_seconds_ = 0;
  std::vector<double> milliseconds_;
  Clock::time_point ends_[kPhases + 1];  // of the last step: its start, then of each phase
  std::vector<double> phases_[kPhases];
  int64_t bytes_ = 0, dense_bytes_ = 0, rows_ = 0, own_rows_ = 0, cases_ = 0, reached_ = 0;
  int64_t parts_[3] = {};  // of bytes_: clusters, codes, rows
  double least_ = 1;
};

json Run(const Settings& settings) {
  std::unique_ptr<ThreadTeam> team;
  Check(ThreadTeam::Create(settings.threads, &team));
  json results = json::array();
  std::fprintf(stderr, "%9s %-7s %10s %7s %7s %7s %8s %9s\n", "tokens", "policy", "ms", "speedup",
               "bytes", "GB/s", "reached", "own rows");
  for (const int64_t tokens : settings.tokens) {
    const SyntheticLayer layer(settings.shape, tokens, settings.needed, settings.queries,
                               settings.seed);
    double needed = 0;
    for (int query = 0; query < settings.queries; ++query) {
      for (int h = 0; h < settings.shape.q_heads; ++h)
        needed += static_cast<double>(FactsOf(layer, query, h).needed);
    }
    needed /= settings.queries * settings.shape.q_heads;
    std::fprintf(stderr, "%9lld tokens; 90 %% of the mass are in %.0f\n",
                 static_cast<long long>(tokens), needed);
    std::vector<std::unique_ptr<Player>> players;
    for (const std::string& spec : settings.policies) {
      app::QualityPolicy policy;
      Check(app::ParseQualityPolicy(spec, &policy));
      players.push_back(std::make_unique<Player>(policy, settings, layer, team.get()));
    }
    // Once for its quality, which also grows all buffers.
    for (const auto& player : players) {
      for (int query = 0; query < settings.queries; ++query) player->Measure(query);
    }
    for (int repeat = 0; repeat < settings.repeats; ++repeat) {
      for (int query = 0; query < settings.queries; ++query) {
        for (const auto& player : players) player->Time(query);
      }
    }
    for (const auto& player : players) {
      json r = player->Report(players[0]->Median());
      r["needed"] = needed;
      results.push_back(r);
      std::fprintf(stderr, "%9lld %-7s %10.2f %7.2f %7.3f %7.1f %7.2f%% %9.0f\n",
                   static_cast<long long>(tokens), r["policy"].get<std::string>().c_str(),
                   r["ms_median"].get<double>(), r["speedup"].get<double>(),
                   r["share_of_dense_bytes"].get<double>(), r["gb_per_s"].get<double>(),
                   100 * r["reached"].get<double>(), r["own_rows"].get<double>());
    }
  }
  const LayerShape& s = settings.shape;
  return {{"q_heads", s.q_heads},      {"kv_heads", s.kv_heads},    {"head_dim", s.head_dim},
          {"needed", settings.needed}, {"target", settings.target}, {"threads", settings.threads},
          {"seed", settings.seed},     {"isa", IsaName()},          {"results", results}};
}

}  // namespace
}  // namespace tactic::bench

int main(int argc, char** argv) {
  tactic::bench::Settings settings;
  CLI::App app("One layer's decode step on synthetic attention: dense, paper, tactic.", "layer");
  app.add_option("--tokens", settings.tokens, "Context lengths")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1024}, int64_t{1} << 24))
      ->capture_default_str();
  app.add_option("--q-heads", settings.shape.q_heads)->capture_default_str();
  app.add_option("--kv-heads", settings.shape.kv_heads)->capture_default_str();
  app.add_option("--head-dim", settings.shape.head_dim)->capture_default_str();
  app.add_option("--needed", settings.needed, "Tokens that have 90 % of the mass, on average")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("-P,--target", settings.target, "Share of the mass to reach")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("-t,--threads", settings.threads)
      ->check(CLI::Range(1, tactic::ThreadTeam::kMaxThreads))
      ->capture_default_str();
  app.add_option("--policies", settings.policies,
                 "Modes, with options as mode:key=value:...; speed-ups are over the first")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--queries", settings.queries, "Different queries")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--repeats", settings.repeats, "Times of each")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seed", settings.seed)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  settings.shape.value_dim = settings.shape.head_dim;
  try {
    tactic::bench::Check(settings.shape.Validate());
    for (const int64_t tokens : settings.tokens) {
      if (settings.needed >= tokens / 4)
        throw std::runtime_error("--needed " + std::to_string(settings.needed) +
                                 ": expected less than a quarter of --tokens " +
                                 std::to_string(tokens));
    }
    std::puts(tactic::bench::Run(settings).dump(1).c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "layer: %s\n", error.what());
    return 1;
  }
  return 0;
}
