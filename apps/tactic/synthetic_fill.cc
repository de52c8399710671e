#include "synthetic_fill.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "bench/synthetic/mass_facts.h"
#include "bench/synthetic/planted_head.h"
#include "bench/synthetic/text.h"
#include "interrupt.h"
#include "state_blob.h"

namespace tactic::app {
namespace {

static_assert(kLeastSyntheticDepth >= synthetic::kLeastTokens);

// Standard deviation of the log of the tokens that a KV head needs, over layers and heads: SmolLM2
// at 8,000 tokens (bench/README.md).
constexpr double kHeadSpread = 1.48;
// Of a depth, how much heads may need on average, and each of them.
constexpr int kMeanPart = 10, kMostPart = 4;
// Steps whose queries count for the fit: more would be more than a key's elements can serve.
constexpr int kFitSteps = 24;
// Steps whose masses are reported.
constexpr int kFactSteps = 3;
// Of planted values relative to the model's own.
constexpr double kValueSize = 0.25;
// Queries change with what attention returns, and shares are not met exactly: a round more, with
// the queries as they are now and targets to make up for it, brings them nearer.
constexpr int kMostRounds = 3;
constexpr double kNearEnough = 0.1;  // of the tokens needed, relative

// Up to `most` of `count` steps, evenly spread.
std::vector<int> Spread(int count, int most) {
  std::vector<int> steps;
  const int n = std::min(count, most);
  for (int i = 0; i < n; ++i) steps.push_back(static_cast<int>(int64_t{i} * count / n));
  return steps;
}

float Element(const RowsView& rows, int head, int64_t cell, int i) {
  const auto* row = reinterpret_cast<const uint16_t*>(rows.Head(head) +
                                                      static_cast<size_t>(cell) * rows.row_stride);
  return rows.type == ElementType::kBF16 ? ggml_bf16_to_fp32({row[i]}) : ggml_fp16_to_fp32(row[i]);
}

// One KV head of a captured layer: its queries and what the model itself put into the cache.
class CapturedHead {
 public:
  CapturedHead(const llama::CapturedLayer& layer, int head, int depth)
      : layer_(layer), head_(head), depth_(depth) {}

  int steps() const {
    return static_cast<int>(layer_.q.size()) / (layer_.shape.q_heads * layer_.shape.head_dim);
  }

  // [steps][group][head_dim], times the scale.
  std::vector<float> Queries(std::span<const int> steps) const {
    const auto size = static_cast<size_t>(layer_.shape.group() * layer_.shape.head_dim);
    std::vector<float> x;
    for (const int step : steps) {
      const size_t at = static_cast<size_t>(step * layer_.shape.kv_heads + head_) * size;
      for (size_t i = 0; i < size; ++i) x.push_back(layer_.q[at + i] * layer_.scale);
    }
    return x;
  }

  // For each of `queries`: log of the sum of exp(logit) of the keys after `depth` that it sees.
  std::vector<double> Foreign(std::span<const int> steps, std::span<const float> queries) const {
    std::vector<double> logs;
    const auto dim = static_cast<size_t>(layer_.shape.head_dim);
    for (size_t j = 0; j * dim < queries.size(); ++j) {
      std::vector<double> logits;
      for (int t = 0; t <= steps[j / static_cast<size_t>(layer_.shape.group())]; ++t) {
        double& logit = logits.emplace_back();
        for (size_t i = 0; i < dim; ++i)
          logit += double{queries[j * dim + i]} *
                   Element(layer_.keys, head_, depth_ + t, static_cast<int>(i));
      }
      const double most = *std::max_element(logits.begin(), logits.end());
      double sum = 0;
      for (const double logit : logits) sum += std::exp(logit - most);
      logs.push_back(most + std::log(sum));
    }
    return logs;
  }

  // Root of the mean square of the elements of the model's own values.
  double ValueSize() const {
    double sum = 0;
    for (int t = 0; t < steps(); ++t) {
      for (int i = 0; i < layer_.shape.value_dim; ++i)
        sum += std::pow(Element(layer_.values, head_, depth_ + t, i), 2);
    }
    return std::sqrt(sum / (steps() * layer_.shape.value_dim));
  }

  std::vector<synthetic::MassFacts> Facts() const {
    const std::vector<int> steps = Spread(this->steps(), kFactSteps);
    std::vector<int64_t> visible;
    for (const int step : steps)
      visible.insert(visible.end(), static_cast<size_t>(layer_.shape.group()), depth_ + step + 1);
    return synthetic::FactsOf(
        Queries(steps), static_cast<size_t>(layer_.shape.head_dim),
        {layer_.keys.Head(head_), layer_.keys.row_stride, layer_.keys.type == ElementType::kBF16},
        visible);
  }

 private:
  const llama::CapturedLayer& layer_;
  int head_;
  int depth_;
};

class Filler {
 public:
  Filler(const SyntheticOptions& options, int depth, std::span<const llama_token> next,
         Session* session)
      : options_(options),
        depth_(depth),
        next_(next),
        session_(session),
        capture_(session->options().capture) {}

  Status Fill(SyntheticFacts* facts) {
    TACTIC_RETURN_IF_ERROR(session_->UsePolicy(llama::HookOptions::For(llama::Policy::kStock)));
    TACTIC_RETURN_IF_ERROR(MakeBlob());
    TACTIC_RETURN_IF_ERROR(Inject());
    TACTIC_RETURN_IF_ERROR(CaptureSteps());
    TACTIC_RETURN_IF_ERROR(CheckLayers());
    const double asked = std::min<double>(options_.needed, static_cast<double>(depth_) / kMeanPart);
    if (asked < options_.needed)
      spdlog::info("--fill-needed is {}, taken as {:.0f} at depth {}", options_.needed, asked,
                   depth_);
    std::mt19937_64 random(options_.seed);
    needed_ = synthetic::NeededTokens(Heads(), asked, kHeadSpread,
                                      static_cast<double>(depth_) / kMostPart, random);
    for (int round = 1; round <= kMostRounds; ++round) {
      TACTIC_RETURN_IF_ERROR(ForHeads([&](size_t layer, int head) { Plant(layer, head); }));
      TACTIC_RETURN_IF_ERROR(Inject());
      TACTIC_RETURN_IF_ERROR(CaptureSteps());
      TACTIC_RETURN_IF_ERROR(Measure(facts));
      facts->asked = asked;
      facts->rounds = round;
      spdlog::info(
          "depth {}: round {}, 90 % of the mass are in {:.0f} tokens, {:.0f} were asked for",
          depth_, round, facts->needed, asked);
      if (std::fabs(facts->needed / asked - 1) < kNearEnough) break;
      for (double& needed : needed_) {
        needed = std::clamp(needed * asked / facts->needed, double{synthetic::kSinks},
                            static_cast<double>(depth_) / kMostPart);
      }
    }
    return Status::Ok();
  }

 private:
  const std::vector<llama::CapturedLayer>& layers() const { return capture_->layers(); }
  size_t Heads() const { return layers().size() * KvHeads(); }
  size_t KvHeads() const { return static_cast<size_t>(layers().front().shape.kv_heads); }

  Status MakeBlob() {
    session_->Clear();
    TACTIC_RETURN_IF_ERROR(session_->Step(0));
    std::vector<uint8_t> sample(llama_state_get_size(session_->get()));
    llama_state_get_data(session_->get(), sample.data(), sample.size());
    TACTIC_RETURN_IF_ERROR(EmptyStateBlob(sample, static_cast<uint32_t>(depth_), &blob_));
    return ParseStateBlob(blob_, &caches_);
  }

  Status Inject() {
    session_->Clear();
    if (llama_state_set_data(session_->get(), blob_.data(), blob_.size()) != blob_.size())
      return Status::Unsupported("this libllama refuses an injected KV cache; use --fill real");
    session_->SetDepth(depth_);
    return Status::Ok();
  }

  Status CaptureSteps() {
    capture_->Start(depth_);
    Status status;
    for (size_t i = 0; i < next_.size() && status.ok(); ++i) {
      capture_->BeginStep();
      status = session_->Step(next_[i]);
    }
    capture_->Stop();
    TACTIC_RETURN_IF_ERROR(status);
    const Status problem = capture_->Problem();
    if (!problem.ok()) {
      return Status::Unsupported(
          fmt::format("the queries of model '{}' cannot be captured for --fill synthetic: {}",
                      session_->model().path(), problem.message()));
    }
    return session_->RollBack(depth_);
  }

  Status CheckLayers() const {
    bool plain = caches_.size() == 1 && caches_[0].keys.size() == layers().size();
    for (const llama::CapturedLayer& layer : layers()) {
      plain = plain && !layer.slides && layer.softcap == 0 &&
              layer.shape.kv_heads == layers().front().shape.kv_heads;
    }
    if (plain) return Status::Ok();
    return Status::Unsupported(fmt::format(
        "model '{}' has layers that slide, cap their logits or differ, expected plain attention in "
        "every layer for --fill synthetic; use --fill random",
        session_->model().path()));
  }

  // Calls f(layer, KV head) for all of them, on the session's threads.
  Status ForHeads(const std::function<void(size_t, int)>& f) const {
    std::atomic<size_t> next = 0;
    std::vector<std::jthread> threads;
    for (int i = 0; i < session_->options().threads; ++i) {
      threads.emplace_back([&] {
        for (size_t unit = next++; unit < Heads() && !Interrupted(); unit = next++)
          f(unit / KvHeads(), static_cast<int>(unit % KvHeads()));
      });
    }
    threads.clear();
    return Interrupted() ? InterruptedStatus() : Status::Ok();
  }

  void Plant(size_t index, int head) {
    const llama::CapturedLayer& layer = layers()[index];
    const size_t unit = index * KvHeads() + static_cast<size_t>(head);
    const CapturedHead captured(layer, head, depth_);
    const std::vector<int> steps = Spread(captured.steps(), kFitSteps);
    const std::vector<float> x = captured.Queries(steps);
    const std::vector<double> foreign = captured.Foreign(steps, x);
    synthetic::HeadText text;
    text.tokens = depth_;
    text.needed = needed_[unit];
    text.value_dim = layer.shape.value_dim;
    text.value_size = kValueSize * captured.ValueSize();
    text.seed = options_.seed * 1000003 + unit;
    synthetic::PlantHead(text, {x, layer.shape.group(), layer.shape.head_dim, foreign},
                         Output(caches_[0].keys[index], head, layer.shape.head_dim),
                         Output(caches_[0].values[index], head, layer.shape.value_dim));
  }

  synthetic::HeadOutput Output(const BlobTensor& tensor, int head, int dim) {
    const size_t at = tensor.data + sizeof(uint16_t) * static_cast<size_t>(head * dim);
    return {blob_.data() + at, tensor.row_bytes, tensor.type == GGML_TYPE_BF16};
  }

  Status Measure(SyntheticFacts* facts) const {
    std::vector<std::vector<synthetic::MassFacts>> all(Heads());
    TACTIC_RETURN_IF_ERROR(ForHeads([&](size_t layer, int head) {
      all[layer * KvHeads() + static_cast<size_t>(head)] =
          CapturedHead(layers()[layer], head, depth_).Facts();
    }));
    *facts = {};
    double logs = 0, squares = 0;
    for (const auto& of_head : all) {
      for (const synthetic::MassFacts& one : of_head) {
        ++facts->cases;
        facts->needed += static_cast<double>(one.needed);
        facts->first += one.first;
        facts->recent += one.recent;
        facts->largest += one.largest;
        facts->alike += one.alike;
        const double log = std::log(static_cast<double>(one.needed));
        logs += log;
        squares += log * log;
      }
    }
    const auto count = static_cast<double>(facts->cases);
    for (double* sum :
         {&facts->needed, &facts->first, &facts->recent, &facts->largest, &facts->alike})
      *sum /= count;
    facts->needed_log_sd = std::sqrt(std::max(0.0, squares / count - std::pow(logs / count, 2)));
    return Status::Ok();
  }

  const SyntheticOptions& options_;
  const int depth_;
  const std::span<const llama_token> next_;
  Session* const session_;
  llama::Capture* const capture_;
  std::vector<uint8_t> blob_;
  std::vector<BlobCache> caches_;  // of blob_
  std::vector<double> needed_;     // [layers][KV heads]
};

}  // namespace

nlohmann::json ToJson(const SyntheticFacts& facts) {
  return {{"needed_asked", facts.asked},
          {"needed_mean", facts.needed},
          {"needed_log_sd", facts.needed_log_sd},
          {"sink_mass_mean", facts.first},
          {"recent_mass_mean", facts.recent},
          {"largest_mass_mean", facts.largest},
          {"neighbour_correlation", facts.alike},
          {"cases", facts.cases},
          {"rounds", facts.rounds}};
}

Status FillSynthetic(const SyntheticOptions& options, int depth, std::span<const llama_token> next,
                     Session* session, SyntheticFacts* facts) {
  for (const ggml_type type : {session->options().type_k, session->options().type_v}) {
    if (type == GGML_TYPE_F16 || type == GGML_TYPE_BF16) continue;
    return Status::InvalidArgument(fmt::format(
        "--kv-type is {}, expected f16 or bf16 for --fill synthetic", ggml_type_name(type)));
  }
  return Filler(options, depth, next, session).Fill(facts);
}

}  // namespace tactic::app
