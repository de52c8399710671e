#include "bench/synthetic/planted_head.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "bench/synthetic/mass_facts.h"
#include "bench/synthetic/ridge_fit.h"
#include "bench/synthetic/text.h"
#include "bench/synthetic/tile.h"
#include "src/half.h"

namespace tactic::synthetic {
namespace {

// Of the variance of logits. SmolLM2 reading 8,000 tokens (bench/README.md): logits of neighbours
// have a correlation of 0.76, those of two queries of a group 0.80.
constexpr double kOfTopic = 0.75;
constexpr double kOfGroup = 0.8;
// Standard deviation of the log of a query head's logits relative to its group's.
constexpr double kHeadSpread = 0.15;
// A window with less than this share is not held against the keys that are not ours.
constexpr double kLeastRecent = 0.05;
// Logits are that many standard deviations at most; real ones are 4.
constexpr double kMostSharpness = 60;

// Halves end at 65504: what queries of nearly nothing ask for must stay finite.
constexpr float kMostElement = 60000;
constexpr size_t kBins = 1024;
constexpr size_t kNoise = size_t{1} << 18;

// Logits of one query, counted, so that a sum over all tokens costs a sum over bins.
class Histogram {
 public:
  explicit Histogram(std::span<const float> x) {
    const auto [low, high] = std::minmax_element(x.begin(), x.end());
    most_ = *high;
    width_ = std::max(1e-6, (most_ - *low) / (kBins - 1));
    counts_.resize(kBins);
    for (const float v : x) ++counts_[static_cast<size_t>((most_ - v) / width_ + 0.5)];
  }

  double LogTotal(double sharpness) const {
    return sharpness * most_ + std::log(Masses(sharpness, nullptr));
  }

  // The fewest tokens that have `share` of the sum of exp(sharpness * x).
  double Fewest(double sharpness, double share) const {
    double masses[kBins];
    double left = share * Masses(sharpness, masses);
    double tokens = 0;
    for (size_t b = 0; b < kBins && left > 0; ++b) {
      if (counts_[b] == 0) continue;
      tokens += counts_[b] * std::min(1.0, left / masses[b]);
      left -= masses[b];
    }
    return tokens;
  }

 private:
  // Relative to the largest; `masses` may be null.
  double Masses(double sharpness, double* masses) const {
    const double step = std::exp(-sharpness * width_);
    double all = 0, factor = 1;
    for (size_t b = 0; b < kBins; ++b, factor *= step) {
      const double mass = counts_[b] * factor;
      if (masses != nullptr) masses[b] = mass;
      all += mass;
    }
    return all;
  }

  double most_, width_;
  std::vector<uint32_t> counts_;  // from the largest logit down
};

class Planter {
 public:
  Planter(const HeadText& text, const HeadQueries& queries)
      : text_(text),
        queries_(queries),
        n_(static_cast<size_t>(text.tokens)),
        dim_(static_cast<size_t>(queries.head_dim)),
        count_(queries.x.size() / dim_),
        random_(text.seed),
        fit_(queries.x, dim_),
        noise_(kNoise),
        passages_(text.tokens, random_),
        heavy_(HeavyTokens(text.tokens, random_)),
        tiles_((n_ + kTile - 1) / kTile * kTile * dim_),
        logits_(count_ * n_) {
    std::normal_distribution<double> normal;
    for (float& x : noise_) x = static_cast<float>(normal(random_));
    for (int g = 0; g < queries.group; ++g) {
      shares_.push_back(RandomShares(random_));
      strengths_.push_back(std::exp(kHeadSpread * normal(random_)));
    }
  }

  void Plant(const HeadOutput& keys, const HeadOutput& values) {
    DrawKeys();
    Sharpen();
    WriteKeys(keys);
    WriteValues(values);
  }

 private:
  const Shares& SharesOf(size_t query) const { return shares_[query % shares_.size()]; }
  std::span<const float> Logits(size_t query) const {
    return std::span(logits_).subspan(query * n_, n_);
  }
  const float* Noise(size_t n) { return noise_.data() + random_() % (noise_.size() - n); }

  // Keys whose logits have a standard deviation of 1, and these logits.
  void DrawKeys() {
    std::vector<double> wanted(count_);
    for (size_t j = 0; j < count_; ++j) wanted[j] = strengths_[j % strengths_.size()];
    const std::vector<double> shared = fit_.Fit(wanted);
    double energy = 0;
    for (const float x : queries_.x) energy += double{x} * x;
    energy = std::max(energy / static_cast<double>(count_), 1e-12);
    const auto own_size = static_cast<float>(std::sqrt((1 - kOfGroup) / energy));
    std::vector<float> along(dim_);
    for (size_t i = 0; i < dim_; ++i)
      along[i] = static_cast<float>(shared[i] * std::sqrt(kOfGroup));
    // A draw: dim + 1 normal numbers.
    const auto element = [&](const float* draw, size_t i) {
      return draw[dim_] * along[i] + own_size * draw[i];
    };

    const auto of_topic = static_cast<float>(std::sqrt(kOfTopic));
    const auto of_token = static_cast<float>(std::sqrt(1 - kOfTopic));
    std::vector<float> topics(passages_.topics * dim_);
    for (size_t topic = 0; topic < passages_.topics; ++topic) {
      const float* draw = Noise(dim_ + 1);
      for (size_t i = 0; i < dim_; ++i) topics[topic * dim_ + i] = of_topic * element(draw, i);
    }
    for (const Passage& passage : passages_.all) {
      const float* topic = topics.data() + passage.topic * dim_;
      for (auto t = static_cast<size_t>(passage.begin); t < static_cast<size_t>(passage.end); ++t) {
        const float* draw = Noise(dim_ + 1);
        float* key = Key(t);
        for (size_t i = 0; i < dim_; ++i) key[i * kTile] = topic[i] + of_token * element(draw, i);
      }
    }
    float logits[kTile];
    for (size_t begin = 0; begin < n_; begin += kTile) {
      for (size_t j = 0; j < count_; ++j) {
        ScoreTile(queries_.x.data() + j * dim_, Key(begin), dim_, logits);
        std::copy_n(logits, std::min(kTile, n_ - begin), logits_.data() + j * n_ + begin);
      }
    }
  }

  // Elements of a key are kTile apart.
  float* Key(size_t token) { return tiles_.data() + token / kTile * kTile * dim_ + token % kTile; }

  // Finds the sharpness, and what the topics' mass stands for all of it then.
  void Sharpen() {
    std::vector<Histogram> histograms;
    for (size_t j = 0; j < count_; ++j) histograms.emplace_back(Logits(j));
    const auto fewer = [&](double sharpness) {
      double sum = 0;
      for (size_t j = 0; j < count_; ++j)
        sum += histograms[j].Fewest(sharpness, ShareOfTopics(SharesOf(j), kNeededMass));
      return -sum / static_cast<double>(count_);
    };
    sharpness_ = Solve(fewer, -text_.needed, kMostSharpness);
    for (size_t j = 0; j < count_; ++j)
      log_totals_.push_back(histograms[j].LogTotal(sharpness_) - std::log(SharesOf(j).Topics()));
  }

  // What to add to the logits of `tokens` of query j, in proportion to by(token), so that they have
  // `share` of all mass.
  double Raise(size_t j, std::span<const int64_t> tokens, double share, const auto& by) const {
    const auto log_share = [&](double x) {
      double sum = 0;
      for (const int64_t t : tokens) {
        const double logit = sharpness_ * Logits(j)[static_cast<size_t>(t)];
        sum += std::exp(logit + x * by(t) - log_totals_[j]);
      }
      return std::log(sum);
    };
    constexpr double kMost = 100;
    return Solve(log_share, std::log(share), kMost);
  }

  void WriteKeys(const HeadOutput& out) {
    std::vector<int64_t> recent(kRecent);
    std::iota(recent.begin(), recent.end(), text_.tokens - kRecent);
    const auto nearness = [&](int64_t t) { return Nearness(text_.tokens - 1 - t); };
    std::vector<double> sink(count_), window(count_), single(count_), level(count_);
    for (size_t j = 0; j < count_; ++j) {
      const Shares& shares = SharesOf(j);
      const double foreign = queries_.foreign[j] - log_totals_[j];
      // The keys that are not ours are recent ones: half of that share is theirs at most. All of
      // ours are raised above them, if need be.
      level[j] = std::max(0.0, foreign - std::log(std::max(kLeastRecent, shares.recent) / 2));
      const double ours = std::max(shares.recent / 2, shares.recent - std::exp(foreign - level[j]));
      sink[j] = std::log(shares.sink) + log_totals_[j] + level[j];
      window[j] = Raise(j, recent, ours, nearness);
      single[j] = Raise(j, heavy_, shares.single, [](int64_t) { return 1.0; });
    }
    const std::vector<double> sink_key = fit_.Fit(sink), window_key = fit_.Fit(window),
                              single_key = fit_.Fit(single), level_key = fit_.Fit(level);
    std::vector<double> row(dim_);
    for (size_t t = 0; t < n_; ++t) {
      const float* key = Key(t);
      const auto token = static_cast<int64_t>(t);
      const double near = std::max(0.0, nearness(token));
      for (size_t i = 0; i < dim_; ++i)
        row[i] = sharpness_ * key[i * kTile] + level_key[i] + near * window_key[i];
      if (t == 0) row = sink_key;
      if (std::find(heavy_.begin(), heavy_.end(), token) != heavy_.end()) {
        for (size_t i = 0; i < dim_; ++i) row[i] += single_key[i];
      }
      Write(out, t, [&](size_t i) { return static_cast<float>(row[i]); }, dim_);
    }
  }

  void WriteValues(const HeadOutput& out) {
    const auto dim = static_cast<size_t>(text_.value_dim);
    const auto size = static_cast<float>(text_.value_size * std::sqrt(0.5));
    std::vector<const float*> means(passages_.topics);
    for (const float*& mean : means) mean = Noise(dim);
    for (const Passage& passage : passages_.all) {
      const float* mean = means[passage.topic];
      for (int64_t t = passage.begin; t < passage.end; ++t) {
        const float* noise = Noise(dim);
        Write(
            out, static_cast<size_t>(t), [&](size_t i) { return size * (mean[i] + noise[i]); },
            dim);
      }
    }
  }

  static void Write(const HeadOutput& out, size_t token, const auto& element, size_t dim) {
    auto* row = reinterpret_cast<uint16_t*>(out.data + token * out.stride);
    for (size_t i = 0; i < dim; ++i) {
      const float x = std::clamp(element(i), -kMostElement, kMostElement);
      row[i] = out.bf16 ? FloatToBf16(x) : FloatToHalf(x);
    }
  }

  const HeadText& text_;
  const HeadQueries& queries_;
  const size_t n_, dim_, count_;
  std::mt19937_64 random_;
  RidgeFit fit_;
  std::vector<float> noise_;  // draws begin anywhere in it
  Passages passages_;
  std::vector<int64_t> heavy_;
  std::vector<float> tiles_;       // [tiles][dim][kTile]: keys before they are sharpened
  std::vector<float> logits_;      // [queries][tokens], of these
  std::vector<Shares> shares_;     // [group]
  std::vector<double> strengths_;  // [group]
  double sharpness_ = 1;
  std::vector<double> log_totals_;  // [queries]: log of all mass, topics' and others'
};

}  // namespace

void PlantHead(const HeadText& text, const HeadQueries& queries, const HeadOutput& keys,
               const HeadOutput& values) {
  Planter(text, queries).Plant(keys, values);
}

}  // namespace tactic::synthetic
