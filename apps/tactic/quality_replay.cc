#include "quality_replay.h"

#include <fmt/format.h>

#include <cmath>
#include <ctime>
#include <memory>
#include <numeric>

#include "interrupt.h"
#include "quality_exact.h"
#include "tactic/sequence_index.h"

namespace tactic::app {
namespace {

// How far a mass of the library's float kernels may be from the one in double before the results
// are called wrong. Both are sums over the same rows; 1e-5 is usual.
constexpr double kMassTolerance = 1e-3;

int64_t ThreadNanoseconds() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

// Mean of |q * scale|^2 over the query heads of each KV head in the first step.
std::vector<float> QueryNorms(const ReplayLayer& layer) {
  std::vector<float> norms;
  const float* q = layer.q;
  const int per_kv_head = layer.shape.group() * layer.shape.head_dim;
  for (int h = 0; h < layer.shape.kv_heads; ++h, q += per_kv_head) {
    double sum = 0;
    for (int i = 0; i < per_kv_head; ++i) sum += std::pow(double{q[i]} * layer.scale, 2);
    norms.push_back(static_cast<float>(sum / layer.shape.group()));
  }
  return norms;
}

// A policy in one layer.
class Player {
 public:
  Player(const ReplayLayer& layer, const QualityPolicy& policy, std::span<const uint32_t> cells)
      : layer_(layer), policy_(policy), cells_(cells) {
    out_.resize(static_cast<size_t>(layer.shape.q_heads * layer.shape.value_dim));
    if (policy.options.mode == Mode::kDense) return;  // has no use for an index
    index_ = std::make_unique<SequenceIndex>(layer.shape, policy.options);
    index_->SetQueryNorms(QueryNorms(layer));
  }

  void Append(int64_t n) {
    if (index_ == nullptr) return;
    index_->Append(n);
    const int units = index_->PlanBuild();
    for (int unit = 0; unit < units; ++unit) {
      index_->BuildUnit(unit, layer_.keys, layer_.values, cells_);
    }
  }

  int64_t IndexBytes() const {
    return index_ == nullptr ? 0 : static_cast<int64_t>(index_->MemoryBytes());
  }

  // Step `t` for every target; it is query `i` of `exact`. `optimal`: [q_heads][targets].
  Status Step(int t, const ExactAttention& exact, size_t i, std::span<const double> targets,
              std::span<const std::vector<int64_t>> optimal, std::vector<QualitySamples>* samples) {
    for (size_t k = 0; k < targets.size(); ++k) {
      TACTIC_RETURN_IF_ERROR(Decode(t, targets[k]));
      QualitySamples& at = (*samples)[k];
      const DecodeStats stats = step_.stats();
      const auto share = [&](int64_t bytes) {
        return static_cast<double>(bytes) / static_cast<double>(stats.bytes_dense);
      };
      at.reads.push_back({share(stats.bytes_read), share(stats.bytes_clusters),
                          share(stats.bytes_codes), share(stats.bytes_rows)});
      for (int h = 0; h < layer_.shape.kv_heads; ++h) {
        const std::vector<uint32_t> read = step_.SelectedCells(0, h);
        for (int g = 0; g < layer_.shape.group(); ++g) {
          const int head = h * layer_.shape.group() + g;
          QualityCase one;
          TACTIC_RETURN_IF_ERROR(Judge(t, targets[k], head, read, exact, i, &one));
          one.optimal_rows = optimal[static_cast<size_t>(head)][k];
          at.cases.push_back(one);
        }
      }
    }
    return Status::Ok();
  }

 private:
  Status Decode(int t, double target) {
    Options options = policy_.options;
    options.target = target;
    const LayerShape& shape = layer_.shape;
    DecodeRequest request;
    request.q = layer_.q + static_cast<ptrdiff_t>(t) * shape.q_heads * shape.head_dim;
    request.q_stride = static_cast<size_t>(shape.head_dim);
    request.keys = layer_.keys;
    request.values = layer_.values;
    request.cells = cells_.first(static_cast<size_t>(layer_.depth + t + 1));
    request.index = index_.get();
    request.out = out_.data();
    request.out_stride = static_cast<size_t>(shape.value_dim);
    const DecodeParams params = {layer_.scale, layer_.softcap, /*measure_mass=*/true};
    TACTIC_RETURN_IF_ERROR(step_.Plan(shape, options, params, {&request, 1}, /*threads=*/1));
    step_.Run();
    return Status::Ok();
  }

  // `read`: the cells that the head's group read.
  Status Judge(int t, double target, int head, std::span<const uint32_t> read,
               const ExactAttention& exact, size_t i, QualityCase* result) const {
    const HeadReport& report = step_.head_reports()[static_cast<size_t>(head)];
    const std::span<const double> masses = exact.Masses(i, head);
    // Evaluations that contradict themselves must not be printed.
    const auto wrong = [&](const std::string& what) {
      return Status::Internal(
          fmt::format("internal error: policy '{}' at target {}, step {}, query head {}: {}",
                      policy_.name, target, t, head, what));
    };
    double mass = 0;
    for (const uint32_t cell : read) {
      if (cell >= masses.size()) return wrong(fmt::format("cell {} is not visible", cell));
      mass += masses[cell];
    }
    if (!(std::fabs(mass - report.union_mass) <= kMassTolerance)) {
      return wrong(fmt::format("the library measured mass {} for what the group read, exactly {}",
                               report.union_mass, mass));
    }
    if (!(report.own_mass >= 0 && report.own_mass <= mass + kMassTolerance)) {
      return wrong(fmt::format("its own selection has mass {}, all that its group read {}",
                               report.own_mass, mass));
    }
    if (report.union_rows != std::ssize(read) || report.own_rows > report.union_rows) {
      return wrong(fmt::format("{} rows are its own and {} its group's, but {} were read",
                               report.own_rows, report.union_rows, read.size()));
    }
    const auto dim = static_cast<size_t>(layer_.shape.value_dim);
    result->own_mass = report.own_mass;
    result->union_mass = mass;
    result->output_error = RelativeError(
        std::span(out_).subspan(static_cast<size_t>(head) * dim, dim), exact.Out(i, head));
    result->p_hat = report.p_hat;
    result->code_error = report.code_error;
    result->own_rows = report.own_rows;
    result->union_rows = report.union_rows;
    result->visible_rows = std::ssize(masses);
    result->rounds = report.rounds;
    return Status::Ok();
  }

  const ReplayLayer& layer_;
  const QualityPolicy& policy_;
  const std::span<const uint32_t> cells_;
  std::unique_ptr<SequenceIndex> index_;
  DecodeStep step_;
  std::vector<float> out_;  // [q_heads][value_dim]
};

Status CheckFinite(const ExactAttention& exact, size_t i, int q_heads) {
  for (int head = 0; head < q_heads; ++head) {
    double sum = std::accumulate(exact.Masses(i, head).begin(), exact.Masses(i, head).end(), 0.0);
    for (const double x : exact.Out(i, head)) sum += x;
    if (!std::isfinite(sum)) {
      return Status::Unsupported("its queries, keys or values are not all finite");
    }
  }
  return Status::Ok();
}

std::vector<int> Measured(const StepChoice& choice, int steps) {
  std::vector<int> measured;
  const int end = choice.first > 0 ? std::min(choice.first, steps) : steps;
  for (int t = 0; t < end; t += choice.every) measured.push_back(t);
  return measured;
}

}  // namespace

int StepChoice::Count(int steps) const { return static_cast<int>(Measured(*this, steps).size()); }

Status ReplayLayerThrough(const ReplayLayer& layer, std::span<const QualityPolicy> policies,
                          std::span<const double> targets, const StepChoice& steps,
                          const std::function<void()>& on_step, std::vector<PolicyReplay>* result) {
  const LayerShape& shape = layer.shape;
  std::vector<uint32_t> cells(static_cast<size_t>(layer.depth + layer.steps));
  std::iota(cells.begin(), cells.end(), 0U);

  std::vector<std::unique_ptr<Player>> players;
  result->clear();
  for (const QualityPolicy& policy : policies) {
    if (Interrupted()) return InterruptedStatus();
    players.push_back(std::make_unique<Player>(layer, policy, cells));
    PolicyReplay& replay = result->emplace_back();
    replay.targets.resize(targets.size());
    const int64_t start = ThreadNanoseconds();
    players.back()->Append(layer.depth);
    replay.build_ns = ThreadNanoseconds() - start;
    replay.index_bytes = players.back()->IndexBytes();
    replay.kv_bytes =
        layer.depth * shape.kv_heads * int64_t{2} * (shape.head_dim + shape.value_dim);
  }

  ExactAttention exact(shape, layer.scale, layer.softcap, layer.keys, layer.values);
  const std::vector<int> measured = Measured(steps, layer.steps);
  int64_t size = layer.depth;  // of the indexes
  for (size_t begin = 0; begin < measured.size(); begin += ExactAttention::kBatch) {
    if (Interrupted()) return InterruptedStatus();
    const size_t count = std::min<size_t>(ExactAttention::kBatch, measured.size() - begin);
    std::vector<ExactQuery> batch;
    for (size_t i = 0; i < count; ++i) {
      const int t = measured[begin + i];
      batch.push_back({layer.q + static_cast<ptrdiff_t>(t) * shape.q_heads * shape.head_dim,
                       layer.depth + t + 1});
    }
    exact.Compute(batch);
    for (size_t i = 0; i < count; ++i) {
      if (Interrupted()) return InterruptedStatus();
      const int t = measured[begin + i];
      TACTIC_RETURN_IF_ERROR(CheckFinite(exact, i, shape.q_heads));
      std::vector<std::vector<int64_t>> optimal;
      for (int head = 0; head < shape.q_heads; ++head) {
        optimal.push_back(OptimalTokens(exact.Masses(i, head), targets));
      }
      // One position at a time, also through the steps that are not measured.
      for (; size < layer.depth + t + 1; ++size) {
        for (const auto& player : players) player->Append(1);
      }
      for (size_t p = 0; p < players.size(); ++p) {
        TACTIC_RETURN_IF_ERROR(
            players[p]->Step(t, exact, i, targets, optimal, &(*result)[p].targets));
      }
      if (on_step) on_step();
    }
  }
  return Status::Ok();
}

}  // namespace tactic::app
