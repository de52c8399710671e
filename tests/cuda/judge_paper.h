// The stages of mode paper: sample, cut, attend.
#ifndef TACTIC_TESTS_CUDA_JUDGE_PAPER_H_
#define TACTIC_TESTS_CUDA_JUDGE_PAPER_H_

#include <map>

#include "tests/cuda/judge.h"

namespace tactic::cuda {

struct PaperTally {
  double rows = 0;         // own, of clusters
  double oracle_rows = 0;  // of the published rule, on the same clusters
};

class PaperJudge {
 public:
  PaperJudge(const UnitView& u, const HeadIndex& index, Verdict* verdict, PaperTally* tally)
      : u_(u),
        step_(u.step),
        index_(index),
        clusters_(index.coded.clusters),
        v_(verdict),
        tally_(tally),
        group_(u.step.group) {}

  void Judge() {
    anchors_ = JudgeRank(u_, index_, v_);
    const auto scores = u_.Of(step_.scores, size_t(step_.segments) * step_.slots * group_);
    for (int g = 0; g < group_; ++g) {
      bins_.emplace_back();
      for (int slot : index_.slot_of) bins_[g].push_back(BinOf(scores[slot * group_ + g]));
    }
    ranks_ = u_.Of(step_.ranks, group_);
    for (int g = 0; g < group_; ++g) JudgeCut(g);
    JudgeRows();
    JudgeOutputs();
  }

 private:
  static int BinOf(float x) {
    const float level = (x + kBelowAnchor) * kLevelsPerOctave;
    return static_cast<int>(std::fmin(std::fmax(level, 0.0f), float{kLastLevel})) / kLevelsPerBin;
  }
  double Size(size_t c) const { return static_cast<double>(clusters_[c].members.size()); }
  double RowsFrom(int g, int bin) const {
    double rows = 0;
    for (size_t c = 0; c < clusters_.size(); ++c) rows += bins_[g][c] >= bin ? Size(c) : 0;
    return rows;
  }
  double MassOf(int g, size_t c) const {
    double mass = 0;
    for (int64_t p : clusters_[c].members) mass += std::exp2(u_.logits[g][p] - anchors_[g]);
    return mass;
  }
  double MassFrom(int g, int bin) const {
    double mass = 0;
    for (size_t c = 0; c < clusters_.size(); ++c) mass += bins_[g][c] >= bin ? MassOf(g, c) : 0;
    return mass;
  }

  // Head, curve and cut, from the bins that the device put clusters into.
  void JudgeCut(int g) {
    const PaperRanks& r = ranks_[g];
    const Options& o = u_.options;
    const double all = RowsFrom(g, 0);
    v_->That(r.all_rows == all, "rows of all clusters");
    if (o.target >= 1) {
      v_->That(r.cut_bin == 0 && r.own_rows == all, "everything is read");
      return;
    }
    const double head = std::ceil(o.head_share * all);
    // Or with the last bin that is not negligible: a sharp head once took in everything below it.
    v_->That(r.head_bin > 0 || r.window_stride[0] == 0, "no head has the lowest bin");
    v_->That((RowsFrom(g, r.head_bin) >= head - 1 || r.head_bin == 1) &&
                 RowsFrom(g, r.head_bin + 1) <= head,
             "the head ends in its bin");
    v_->That(r.head_rows == RowsFrom(g, r.head_bin), "rows of the head");
    double y[2];
    for (int w = 0; w < 2; ++w) {
      const double at = (w == 0 ? o.near_window : o.far_window) * all;
      v_->That(RowsFrom(g, r.window_bin[w]) >= at - 1 && RowsFrom(g, r.window_bin[w] + 1) <= at + 1,
               "a window is where it belongs");
      double sum = 0;
      double count = 0;
      for (size_t c = 0; c < clusters_.size(); ++c) {
        const auto hash = static_cast<uint32_t>(index_.slot_of[c]) * 2654435761u >> 16;
        if (bins_[g][c] != r.window_bin[w] || hash % r.window_stride[w] != 0) continue;
        sum += MassOf(g, c);
        count += Size(c);
      }
      y[w] = count > 0 ? sum / count
                       : std::exp2((r.window_bin[w] + 0.5) / kBinsPerOctave - kBelowAnchor);
    }
    double fixed = 0;
    for (int64_t p : ForcedRows(u_, index_)) fixed += std::exp2(u_.logits[g][p] - anchors_[g]);
    const double n = 1 / r.window_rank[0];
    const double f = 1 / r.window_rank[1];
    double a = n > f ? (y[0] - y[1]) / (n - f) : 0;
    double b = y[1] - a * f;
    if (!(a > 0)) a = 0, b = (y[0] + y[1]) / 2;
    if (b < 0) b = 0, a = y[0] / n;
    const double in_head = MassFrom(g, r.head_bin);
    const double h = std::max(1, r.head_rows);
    const auto curve = [&](double x) {
      return fixed + in_head + a * std::log(x / h) + b * (x - h);
    };
    const double goal = o.target * curve(all);
    // The mass that the rule gives to clusters of a bin and above.
    const auto mass_from = [&](int bin) {
      if (bin >= r.head_bin) return fixed + MassFrom(g, bin);
      return curve(RowsFrom(g, bin));
    };
    const double slack = 5e-3 * goal + 1e-2 * fixed * (fixed > 0.98 * goal);
    v_->That(r.cut_bin == 0 || mass_from(r.cut_bin) >= goal - slack, "the cut reaches the target");
    // The cut is in the highest bin with clusters that will do; rows are whole numbers on the
    // curve.
    int next = r.cut_bin + 1;
    while (next < kBins && RowsFrom(g, next) == RowsFrom(g, r.cut_bin)) ++next;
    const double above = next < kBins ? mass_from(next) : fixed;
    v_->That(above <= goal + slack || r.cut_bin == kBins,
             "the cut reads no bin too many: " + std::to_string(above / goal) + " of the goal");
    v_->That(r.own_rows == RowsFrom(g, r.cut_bin), "own rows");

    std::vector<oracle::Cluster> plain;
    for (const oracle::CodedCluster& c : clusters_) plain.push_back({c.centroid, c.members});
    const auto order = oracle::Order(u_.Query(g), plain);
    const oracle::Budget budget =
        oracle::PaperBudget(u_.Query(g), u_.keys, order, ForcedRows(u_, index_), o,
                            u_.world.request.scale, u_.world.request.softcap);
    tally_->rows += r.own_rows;
    tally_->oracle_rows += static_cast<double>(budget.ranks);
  }

  void JudgeRows() {
    std::vector<std::set<int64_t>> want(SpansOf(step_, index_));
    for (size_t c = 0; c < clusters_.size(); ++c) {
      bool chosen = false;
      for (int g = 0; g < group_; ++g) chosen = chosen || bins_[g][c] >= ranks_[g].cut_bin;
      if (!chosen) continue;
      want[clusters_[c].segment / step_.span_segments].insert(clusters_[c].members.begin(),
                                                              clusters_[c].members.end());
    }
    std::map<int, size_t> cluster_at;  // by slot
    for (size_t c = 0; c < clusters_.size(); ++c) cluster_at[index_.slot_of[c]] = c;
    const auto listed = [&](uint32_t entry, size_t span, const auto& found) {
      const ListedTile tile = {entry};
      const auto at = cluster_at.find(static_cast<int>(span) * step_.span_slots + tile.Cluster());
      v_->That(at != cluster_at.end(), "a tile is of a cluster");
      if (at == cluster_at.end()) return;
      const auto& members = clusters_[at->second].members;
      const int begin =
          index_.first_key[at->second] + tile.Cluster() / step_.slots * step_.segment_size;
      const auto first = static_cast<size_t>(tile.First() - begin);
      v_->That(tile.First() >= begin && first + tile.Rows() <= members.size(),
               "a tile is within its cluster");
      if (first + tile.Rows() > members.size()) return;
      for (int i = 0; i < tile.Rows(); ++i)
        found(members[first + i], tile.OfHeads() ? tile.First() + i : -1);
    };
    const auto counts = u_.Of(step_.counts, step_.spans);
    const auto fresh = u_.Of(step_.fresh_counts, step_.spans);
    const auto all = u_.Of(step_.rows, size_t(step_.spans) * step_.span_keys);
    const auto entries = [&](size_t j) {
      const auto begin = all.begin() + j * step_.span_keys;
      std::vector<uint32_t> of(begin, begin + counts[j]);
      const auto end = begin + step_.span_keys;
      of.insert(of.end(), end - fresh[j], end);
      for (size_t i = 0; i < of.size(); ++i) {
        v_->That(ListedTile{of[i]}.OfHeads() == (i < static_cast<size_t>(counts[j])),
                 "tiles of heads come first");
      }
      return of;
    };
    rows_ = JudgeListed(u_, index_, want, entries, listed, v_);
  }

  void JudgeOutputs() {
    for (int g = 0; g < group_; ++g) {
      const double lse = u_.LseOf(g, rows_);
      oracle::Row out(u_.values[0].size(), 0.0);
      for (int64_t p : rows_) {
        const double w = std::exp2(u_.logits[g][p] - lse);
        for (size_t x = 0; x < out.size(); ++x) out[x] += w * u_.values[p][x];
      }
      JudgeOutput(u_, g, out, v_);
      std::vector<int64_t> own = ForcedRows(u_, index_);
      for (size_t c = 0; c < clusters_.size(); ++c) {
        if (bins_[g][c] >= ranks_[g].cut_bin)
          own.insert(own.end(), clusters_[c].members.begin(), clusters_[c].members.end());
      }
      const DeviceReport& r = u_.reports[g];
      v_->Near(r.union_lse, lse * kOctave, 3e-3, "lse of the union");
      v_->Near(r.own_lse, u_.LseOf(g, own) * kOctave, 5e-3, "own lse");
      v_->That(r.own_rows == static_cast<int>(own.size()), "own rows of the report");
      v_->That(r.union_rows == static_cast<int>(rows_.size()), "rows of the union");
    }
  }

  const UnitView& u_;
  const Step& step_;
  const HeadIndex& index_;
  const std::vector<oracle::CodedCluster>& clusters_;
  Verdict* const v_;
  PaperTally* const tally_;
  const int group_;
  std::vector<double> anchors_;
  std::vector<std::vector<int>> bins_;
  std::vector<PaperRanks> ranks_;
  std::vector<int64_t> rows_;
};

}  // namespace tactic::cuda

#endif  // TACTIC_TESTS_CUDA_JUDGE_PAPER_H_
