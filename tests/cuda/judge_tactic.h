// The stages of mode tactic: scan, verify, attend.
#ifndef TACTIC_TESTS_CUDA_JUDGE_TACTIC_H_
#define TACTIC_TESTS_CUDA_JUDGE_TACTIC_H_

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>

#include "src/cuda/code_tile.cuh"
#include "src/selection_rule.h"
#include "tests/cuda/judge.h"

namespace tactic::cuda {

class TacticJudge {
 public:
  TacticJudge(const UnitView& u, const HeadIndex& index, Verdict* verdict)
      : u_(u),
        step_(u.step),
        index_(index),
        clusters_(index.coded.clusters),
        v_(verdict),
        group_(u.step.group) {}

  void Judge() {
    anchors_ = JudgeRank(u_, index_, v_);
    ReadQueries();
    JudgeBounds();
    JudgeKept();
    JudgeLevels();
    JudgeThresholds();
    JudgeRows();
    JudgeUnread();
    JudgeOutputs();
  }

 private:
  // Level of member i of cluster c for head g.
  int Level(size_t c, size_t i, int g) const {
    const size_t key =
        static_cast<size_t>(clusters_[c].segment) * step_.segment_size + index_.first_key[c] + i;
    return levels_[key * step_.level_stride + g];
  }
  static double MassOfBin(int bin) {
    return std::exp2((bin + 0.5) / kBinsPerOctave - kBelowAnchor);
  }

  // As the device rounded them: another rounding of one element would show in every key.
  void ReadQueries() {
    const int dim = step_.head_dim;
    const int words = CodeQueryWords(dim, step_.bits);
    const int groups = CodeGroups(step_.bits);
    const auto packed = u_.Of(step_.rotated, size_t((group_ + 7) / 8) * words * 32);
    const auto facts = u_.Of(step_.queries, group_);
    for (int g = 0; g < group_; ++g) {
      oracle::CodedQuery query =
          oracle::MakeCodedQuery(u_.Query(g), u_.world.request.scale, u_.world.request.softcap);
      v_->Near(facts[g].norm, query.norm, 1e-4 * query.norm, "norm of a query");
      int sum = 0;
      std::vector<int> seen(dim, 0);
      for (int w = 0; w < words; ++w) {
        for (int t = 0; t < 4; ++t) {
          const uint32_t word = packed[(g / 8 * words + w) * 32 + g % 8 * 4 + t];
          for (int j = 0; j < 4; ++j) {
            const int x = CodeElement(step_.bits, t + 4 * (w / groups), w % groups, j);
            const auto byte = static_cast<int8_t>(word >> 8 * j);
            if (x >= dim) {
              v_->That(byte == 0, "elements beyond the query are zero");
              continue;
            }
            ++seen[x];
            const double got = double{facts[g].unit} * byte;
            v_->Near(got, query.rotated[x], 1.01 * facts[g].unit, "rotated query");
            query.rotated[x] = got;
            sum += byte;
          }
        }
      }
      v_->That(seen == std::vector<int>(dim, 1), "every element is there once");
      v_->That(facts[g].sum == sum, "sum of a query's bytes");
      queries_.push_back(query);
    }
  }

  void JudgeBounds() {
    const auto bounds = u_.Of(step_.bounds, size_t(step_.segments) * step_.slots * group_);
    const auto floors = u_.Of(step_.part_floors, size_t(step_.rank_parts) * group_);
    for (int g = 0; g < group_; ++g) {
      double floor = 0;
      double got = 0;
      masses_.emplace_back();
      tokens_.emplace_back();
      for (size_t c = 0; c < clusters_.size(); ++c) {
        const uint32_t both = bounds[index_.slot_of[c] * group_ + g];
        const double mass = HalfToFloat(static_cast<uint16_t>(both));
        const double token = HalfToFloat(static_cast<uint16_t>(both >> 16));
        const oracle::ClusterEstimate want = oracle::EstimateCluster(queries_[g], clusters_[c]);
        const double want_mass = want.mass / kOctave - anchors_[g];
        const double want_token = want.token / kOctave - anchors_[g];
        v_->Near(mass, want_mass, 0.15 + std::fabs(want_mass) / 256, "mass of a cluster");
        if (!clusters_[c].page) {
          v_->That(token >= want_token - 0.03 - std::fabs(want_token) / 512,
                   "a token's bound is no lower than the oracle's");
          const double spread = want_token + anchors_[g];
          v_->Near(token, want_token, 0.1 + 0.02 * std::fabs(spread) + std::fabs(want_token) / 64,
                   "a token's bound");
        }
        floor += std::exp2(want.floor / kOctave - anchors_[g]);
        masses_[g].push_back(mass);
        tokens_[g].push_back(token);
      }
      for (int p = 0; p < step_.rank_parts; ++p) got += floors[p * group_ + g];
      v_->Near(got, floor, 4e-3 * floor, "least mass of all clusters");
      const auto forced = u_.Of(step_.part_forced, size_t(step_.rank_parts) * group_);
      fixed_.push_back(0);
      for (int p = 0; p < step_.rank_parts; ++p) fixed_[g] += forced[p * group_ + g];
      rest_.push_back((1 - u_.options.target) * (fixed_[g] + got));
    }
  }

  void JudgeKept() {
    const auto skipped = u_.Of(step_.skipped, size_t(step_.segments) * group_);
    std::vector<std::vector<double>> sums(group_, std::vector<double>(index_.segments, 0.0));
    const auto listed = u_.Of(step_.kept_list, size_t(step_.segments) * step_.slots);
    const auto counts = u_.Of(step_.kept_counts, step_.spans);
    std::vector<bool> kept(size_t(step_.segments) * step_.slots);
    int64_t all_listed = 0;
    for (int j = 0; j < SpansOf(step_, index_); ++j) {
      const auto begin = listed.begin() + int64_t{j} * step_.span_slots;
      const auto end = begin + counts[j];
      v_->That(std::adjacent_find(begin, end, std::greater_equal<>()) == end,
               "kept clusters of span " + std::to_string(j) + " ascend");
      for (auto c = begin; c != end; ++c) kept[j * step_.span_slots + *c] = true;
      all_listed += counts[j];
    }
    for (const int slot : index_.slot_of) kept_.push_back(kept[slot]);
    v_->That(std::count(kept_.begin(), kept_.end(), true) == all_listed,
             "no cluster without members is kept");
    for (int g = 0; g < group_; ++g) {
      double all = 0;
      for (size_t c = 0; c < clusters_.size(); ++c) {
        if (kept_[c]) continue;
        const double mass = std::exp2(masses_[g][c]);
        sums[g][clusters_[c].segment] += mass;
        all += mass;
        v_->That(!clusters_[c].page, "pages are kept");
        v_->That(std::exp2(tokens_[g][c]) <= u_.options.skip_token * rest_[g] * 1.02,
                 "no skipped cluster has a token that may matter");
      }
      v_->That(all <= u_.options.skip_share * rest_[g] * 1.02, "skipped clusters are negligible");
      skipped_.push_back(0);
      for (int j = 0; j < index_.segments; ++j) {
        v_->Near(skipped[j * group_ + g], sums[g][j], 2e-3 * sums[g][j] + 1e-30,
                 "skipped mass of a segment");
        skipped_[g] += skipped[j * group_ + g];
      }
    }
    // Not everything is kept for nothing: the oracle's choice, with its budget cut to a third.
    Options strict = u_.options;
    strict.skip_share /= 3;
    strict.skip_token /= 1.5;
    std::vector<bool> must(clusters_.size(), false);
    for (int g = 0; g < group_; ++g) {
      const oracle::TacticHead head =
          oracle::MakeTacticHead(queries_[g], index_.coded, {anchors_[g] * kOctave});
      oracle::TacticHead scaled = head;
      scaled.at_least = (fixed_[g] * std::exp((anchors_[g] * kOctave) - head.reference)) +
                        head.at_least - head.fixed;
      const auto skippable = oracle::Skippable(scaled, index_.coded, strict);
      for (size_t c = 0; c < must.size(); ++c) must[c] = must[c] || !skippable[c];
    }
    for (size_t c = 0; c < must.size(); ++c)
      v_->That(kept_[c] <= must[c], "a cluster is kept that nobody needs");
  }

  void JudgeLevels() {
    levels_ = u_.Of(step_.levels, size_t(step_.spans) * step_.span_keys * step_.level_stride);
    bins_.assign(group_, std::vector<int>(kBins, 0));
    for (size_t c = 0; c < clusters_.size(); ++c) {
      if (!kept_[c]) continue;
      for (size_t i = 0; i < clusters_[c].members.size(); ++i) {
        for (int g = 0; g < group_; ++g) {
          const double want =
              oracle::EstimateKey(queries_[g], clusters_[c], i).Key() / kOctave - anchors_[g];
          const int level = Level(c, i, g);
          const double at =
              std::min(std::max(want + kBelowAnchor, 0.0) * kLevelsPerOctave, double{kLastLevel});
          v_->Near(level + 0.5, at, 3 + 0.1 * std::fabs(want), "level of a key");
          ++bins_[g][level / kLevelsPerBin];
        }
      }
    }
  }

  double MassFrom(int g, int level) const {
    double mass = 0;
    for (int b = kBins - 1; b * kLevelsPerBin >= level; --b) mass += bins_[g][b] * MassOfBin(b);
    return mass;
  }

  // Exact mass of head g's kept keys with levels in [low, high).
  double ExactBetween(int g, int low, int high) const {
    double mass = 0;
    for (size_t c = 0; c < clusters_.size(); ++c) {
      for (size_t i = 0; kept_[c] && i < clusters_[c].members.size(); ++i) {
        if (Level(c, i, g) >= low && Level(c, i, g) < high)
          mass += std::exp2(u_.logits[g][clusters_[c].members[i]] - anchors_[g]);
      }
    }
    return mass;
  }

  // Variance of a code's logit, mean over segments.
  double MeanError(int g) const {
    const double sum = std::accumulate(index_.errors.begin(), index_.errors.end(), 0.0);
    return sum / index_.segments * queries_[g].norm;
  }

  // Where a head's selection ends: as the rule has it, from the levels that the device found.
  void JudgeThresholds() {
    const auto masses = u_.Of(step_.masses, group_);
    const Options& o = u_.options;
    const double p = o.target;
    for (int g = 0; g < group_; ++g) {
      const HeadMass& m = masses[g];
      const double total = MassFrom(g, 0);
      const auto unread = [&](double estimated) {
        return o.unread_margin * std::max(kResolution * total, total - estimated) +
               o.skipped_margin * skipped_[g];
      };
      // The rule, in exact arithmetic.
      int low = kLastLevel + 1;
      double estimated = 0;
      double exact = fixed_[g];
      for (int round = 0; round <= o.rounds; ++round) {
        if (exact >= p * (exact + unread(estimated)) || low == 0) break;
        double ratio = round == 0 ? std::exp(-kGpuCaution * MeanError(g)) : 1;
        if (estimated > 0) ratio = std::min((exact - fixed_[g]) / estimated, 1.0);
        ratio = std::max<double>(ratio, kLeastRatio);
        const double need = estimated + (p * (exact + unread(estimated)) - exact) /
                                            (ratio * (1 - p) + p * o.unread_margin);
        int next = low;
        while (next > 0 && MassFrom(g, next) < need)
          next = (next - 1) / kLevelsPerBin * kLevelsPerBin;
        exact += ExactBetween(g, next, low);
        low = next;
        estimated = MassFrom(g, low);
      }
      v_->Near(m.estimated, estimated, 0.02 * total, "estimated mass of a selection");
      // What the device says of its own.
      v_->Near(m.total, total, 1e-3 * total, "estimated mass of all keys");
      v_->Near(m.fixed, fixed_[g], 1e-4 * fixed_[g], "mass of forced rows");
      v_->Near(m.skipped, skipped_[g], 1e-3 * skipped_[g] + 1e-30, "skipped mass");
      v_->Near(m.estimated, MassFrom(g, m.low), 1e-3 * total, "estimated mass of own rows");
      int rows = 0;
      for (int b = m.low / kLevelsPerBin; b < kBins; ++b) rows += bins_[g][b];
      v_->That(m.rows == rows, "own rows");
      exact_.push_back(fixed_[g] + ExactBetween(g, m.low, kLastLevel + 1));
      v_->Near(m.exact, exact_[g], 5e-3 * exact_[g], "exact mass of own rows");
      v_->That(exact_[g] >= p * (exact_[g] + unread(m.estimated)) * (1 - 2e-3) || m.low == 0 ||
                   m.rounds >= o.rounds,
               "a head stops short of its target");
      v_->That(m.rounds <= o.rounds, "rounds");
      thresholds_.push_back(m.low);
    }
  }

  bool Chosen(size_t c, size_t i) const {
    bool chosen = false;
    for (int g = 0; g < group_; ++g) chosen = chosen || Level(c, i, g) >= thresholds_[g];
    return chosen;
  }

  void JudgeRows() {
    std::vector<std::set<int64_t>> want(SpansOf(step_, index_));
    for (size_t c = 0; c < clusters_.size(); ++c) {
      for (size_t i = 0; kept_[c] && i < clusters_[c].members.size(); ++i) {
        if (Chosen(c, i))
          want[clusters_[c].segment / step_.span_segments].insert(clusters_[c].members[i]);
      }
    }
    const auto listed = [&](uint32_t row, size_t span, const auto& found) {
      found(static_cast<int64_t>(span) * step_.span_keys + PlaceOfRow(row), SlotOfRow(row));
    };
    const auto counts = u_.Of(step_.counts, step_.spans);
    const auto all = u_.Of(step_.rows, size_t(step_.spans) * step_.span_keys);
    const auto entries = [&](size_t j) {
      const auto begin = all.begin() + j * step_.span_keys;
      return std::vector<uint32_t>(begin, begin + counts[j]);
    };
    rows_ = JudgeListed(u_, index_, want, entries, listed, v_);
  }

  void JudgeUnread() {
    if (step_.tail == 0) return;
    const auto unread = u_.Of(step_.unread, size_t(step_.segments) * step_.slots * group_);
    for (int g = 0; g < group_; ++g) {
      weights_.emplace_back(clusters_.size(), 0.0);
      for (size_t c = 0; c < clusters_.size(); ++c) {
        if (!kept_[c]) continue;
        for (size_t i = 0; i < clusters_[c].members.size(); ++i) {
          if (Chosen(c, i)) continue;
          const double half = oracle::EstimateKey(queries_[g], clusters_[c], i).half_variance;
          weights_[g][c] +=
              std::exp2((Level(c, i, g) + 0.5) / kLevelsPerOctave - kBelowAnchor - half / kOctave);
        }
        v_->Near(unread[index_.slot_of[c] * group_ + g], weights_[g][c],
                 1e-3 * weights_[g][c] + 1e-30, "unread mass of a cluster");
      }
    }
  }

  void JudgeOutputs() {
    const auto skipped = u_.Of(step_.skipped, size_t(step_.segments) * group_);
    for (int g = 0; g < group_; ++g) {
      const double lse = u_.LseOf(g, rows_);
      double sum = 0;
      oracle::Row out(u_.values[0].size(), 0.0);
      const auto add = [&](double weight, const oracle::Row& value) {
        sum += weight;
        for (size_t x = 0; x < out.size(); ++x) out[x] += weight * value[x];
      };
      for (int64_t p : rows_) add(std::exp2(u_.logits[g][p] - lse), u_.values[p]);
      if (step_.tail != 0) {
        const double relative = std::exp2(anchors_[g] - lse);
        for (size_t c = 0; c < clusters_.size(); ++c)
          add(weights_[g][c] * relative, clusters_[c].mean);
        for (int j = 0; j < index_.segments; ++j)
          add(skipped[j * group_ + g] * relative, index_.coded.means[j]);
      }
      for (double& x : out) x /= sum;
      JudgeOutput(u_, g, out, v_);
      const DeviceReport& r = u_.reports[g];
      const double estimated = MassFrom(g, thresholds_[g]);
      const double believed =
          exact_[g] / (exact_[g] + std::max(0.0, MassFrom(g, 0) - estimated) + skipped_[g]);
      v_->Near(r.p_hat, believed, 5e-3, "p_hat");
      v_->Near(r.union_lse, lse * kOctave, 3e-3, "lse of the union");
      v_->Near(r.own_lse, (anchors_[g] + std::log2(exact_[g])) * kOctave, 5e-3, "own lse");
      v_->That(r.union_rows == static_cast<int>(rows_.size()), "rows of the union");
    }
  }

  const UnitView& u_;
  const Step& step_;
  const HeadIndex& index_;
  const std::vector<oracle::CodedCluster>& clusters_;
  Verdict* const v_;
  const int group_;
  std::vector<double> anchors_, fixed_, rest_, skipped_, exact_;
  std::vector<oracle::CodedQuery> queries_;
  std::vector<std::vector<double>> masses_, tokens_;  // [group][cluster]
  std::vector<bool> kept_;
  std::vector<uint16_t> levels_;
  std::vector<std::vector<int>> bins_;
  std::vector<int> thresholds_;
  std::vector<int64_t> rows_;
  std::vector<std::vector<double>> weights_;
};

}  // namespace tactic::cuda

#endif  // TACTIC_TESTS_CUDA_JUDGE_TACTIC_H_
