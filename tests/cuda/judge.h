// Judges what the stages of a step left in device memory against the double oracle, stage by stage:
// each stage is held to what follows from the figures it was given, so that an error shows where it
// arises.
#ifndef TACTIC_TESTS_CUDA_JUDGE_H_
#define TACTIC_TESTS_CUDA_JUDGE_H_

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <set>
#include <string>
#include <vector>

#include "src/cuda/decoder_access.h"
#include "src/cuda/index_access.h"
#include "src/half.h"
#include "src/reference/oracle_tactic.h"
#include "tests/core/read_level.h"
#include "tests/cuda/world.h"

namespace tactic::cuda {

inline constexpr double kOctave = 0.6931471805599453;  // nats

// Counts checks; says what failed, the first few times.
class Verdict {
 public:
  void That(bool ok, const std::string& what) {
    ++checks_;
    if (ok) return;
    constexpr int kTold = 30;
    if (++failures_ <= kTold) std::printf("  FAILED %s: %s\n", where.c_str(), what.c_str());
  }
  void Near(double got, double want, double tolerance, const char* what) {
    const bool ok = std::fabs(got - want) <= tolerance;  // NaN is not
    if (ok)
      ++checks_;
    else
      That(false, std::string(what) + ": got " + std::to_string(got) + ", want " +
                      std::to_string(want) + " within " + std::to_string(tolerance));
  }
  int64_t checks() const { return checks_; }
  int64_t failures() const { return failures_; }
  std::string where;

 private:
  int64_t checks_ = 0;
  int64_t failures_ = 0;
};

// The clusters of one KV head, read back from an index.
struct HeadIndex {
  oracle::CodedIndex coded;    // clusters with members only
  std::vector<int> slot_of;    // [cluster]: segment * slots + slot
  std::vector<int> first_key;  // [cluster]: place of its first member in its segment
  std::vector<float> errors;   // [segment]: mean variance of a code's element
  int segments = 0;
  int coded_end = 0;
};

inline HeadIndex ReadIndex(const Index& index, int head, int tokens, const Options& options) {
  const DeviceIndex& view = IndexAccess::host_view(index);
  HeadIndex out;
  const int dim = view.head_dim;
  const int size = view.segment_size;
  const int usable = tokens - options.recent;
  const int closed = std::max(0, std::min(view.closed, usable / size));
  int pages = 0;
  if (closed == view.closed)
    pages = std::max(0, std::min(view.pages, (usable - closed * size) / Options::kPage));
  out.segments = closed + (pages > 0 ? 1 : 0);
  out.coded_end = closed * size + pages * Options::kPage;
  const size_t first = static_cast<size_t>(head) * view.segments;
  const size_t n = view.segments;
  const size_t slots = view.slots;
  const auto of = [&](const auto* from, size_t each) {
    return FromDevice(from + first * each, n * each);
  };
  const auto centroids = of(view.centroids, slots * dim);
  const auto facts = of(view.facts, slots);
  const auto starts = of(view.starts, slots + 1);
  const auto members = of(view.members, size);
  const size_t block = view.bits == 0 ? 0 : CodeBlockBytes(dim, view.bits);
  std::vector<uint8_t> scales, codes;
  std::vector<int8_t> means;
  std::vector<uint16_t> mean_scales;
  if (view.bits != 0) {
    scales = of(view.key_scales, size);
    codes = of(view.codes, size / kCodeBlock * block);
    means = of(view.means, (slots + 1) * dim);
    mean_scales = of(view.mean_scales, slots + 1);
    const auto errors = of(view.errors, 1);
    out.errors.assign(errors.begin(), errors.begin() + out.segments);
  }
  const auto mean = [&](size_t at) {
    oracle::Row row;
    if (view.bits == 0) return row;
    for (int x = 0; x < dim; ++x) row.push_back(HalfToFloat(mean_scales[at]) * means[at * dim + x]);
    return row;
  };
  for (int j = 0; j < out.segments; ++j) {
    const int clusters = j < closed ? static_cast<int>(slots) : pages;
    for (int c = 0; c < clusters; ++c) {
      const int begin = starts[j * (slots + 1) + c];
      const int end = starts[j * (slots + 1) + c + 1];
      if (begin == end) continue;
      oracle::CodedCluster cluster;
      cluster.bits = view.bits;
      cluster.page = j == closed;
      cluster.segment = j;
      const size_t at = j * slots + c;
      for (int x = 0; x < dim; ++x)
        cluster.centroid.push_back(HalfToFloat(facts[at].scale) * centroids[at * dim + x]);
      for (uint8_t spread : facts[at].spreads) cluster.spreads.push_back(ByteToFloat(spread));
      cluster.longest = ByteToFloat(facts[at].longest);
      cluster.mean = mean(j * (slots + 1) + c);
      for (int i = begin; i < end; ++i) {
        cluster.members.push_back(int64_t{j} * size + members[j * size + i]);
        if (view.bits == 0) continue;
        oracle::Code code;
        code.scale = ByteToFloat(scales[j * size + i]);
        const uint8_t* at_block =
            codes.data() + (static_cast<size_t>(j) * size / kCodeBlock + i / kCodeBlock) * block;
        for (int x = 0; x < dim; ++x)
          code.levels.push_back(ReadLevel(at_block, dim, view.bits, i % kCodeBlock, x));
        cluster.codes.push_back(code);
      }
      out.coded.clusters.push_back(cluster);
      out.slot_of.push_back(static_cast<int>(at));
      out.first_key.push_back(begin);
    }
    out.coded.means.push_back(mean(j * (slots + 1) + slots));
  }
  return out;
}

// One unit of a step, with what the oracle knows of it.
struct UnitView {
  const World& world;
  const Options& options;
  const Step& step;
  int sequence, head, tokens;
  const oracle::Rows& keys;
  const oracle::Rows& values;
  std::vector<std::vector<double>> logits;  // [group][position], octaves
  std::vector<double> dense_lse;            // octaves
  std::vector<DeviceReport> reports;
  std::vector<float> out;  // [group][dim]
  bool dense = false;

  UnitView(const World& w, const Options& o, const Step& s, int sequence, int head, int tokens)
      : world(w),
        options(o),
        step(s),
        sequence(sequence),
        head(head),
        tokens(tokens),
        keys(w.keys[sequence][head]),
        values(w.values[sequence][head]) {
    for (int g = 0; g < step.group; ++g) {
      std::vector<double> of;
      double max = -oracle::kInf;
      for (int p = 0; p < tokens; ++p) {
        of.push_back(oracle::Logit(Query(g), keys[p], w.request.scale, w.request.softcap) /
                     kOctave);
        max = std::max(max, of.back());
      }
      double sum = 0;
      for (double x : of) sum += std::exp2(x - max);
      dense_lse.push_back(max + std::log2(sum));
      logits.push_back(of);
    }
    const int64_t unit = Number();
    reports = FromDevice(step.reports + unit * step.group, step.group);
    const std::vector<float> all = w.Out();
    const size_t dim = w.spec.shape.head_dim;
    out.assign(all.begin() + unit * step.group * dim, all.begin() + (unit + 1) * step.group * dim);
    dense = step.mode == Mode::kDense || FromDevice(step.listed + 2 * unit, 2)[1] == 0;
  }
  int64_t Number() const { return int64_t{sequence} * step.kv_heads + head; }
  const oracle::Row& Query(int g) const { return world.Query(sequence, head * step.group + g); }
  template <class T>
  std::vector<T> Of(const T* array, size_t per_unit) const {
    return FromDevice(array + Number() * per_unit, per_unit);
  }
  double LseOf(int g, const std::vector<int64_t>& rows) const {
    double sum = 0;
    for (int64_t p : rows) sum += std::exp2(logits[g][p] - dense_lse[g]);
    return dense_lse[g] + std::log2(sum);
  }
};

// Outputs: weights are rounded to 8 (bf16) or 11 bits, as keys and values are.
inline void JudgeOutput(const UnitView& u, int g, const oracle::Row& want, Verdict* verdict) {
  double largest = 0;
  for (const oracle::Row& row : u.values)
    for (double x : row) largest = std::max(largest, std::fabs(x));
  const size_t dim = want.size();
  for (size_t x = 0; x < dim; ++x)
    verdict->Near(u.out[g * dim + x], want[x], 0.005 * largest, "output");
}

inline oracle::Row DenseOutput(const UnitView& u, int g) {
  oracle::Row out(u.values[0].size(), 0.0);
  for (int p = 0; p < u.tokens; ++p) {
    const double w = std::exp2(u.logits[g][p] - u.dense_lse[g]);
    for (size_t x = 0; x < out.size(); ++x) out[x] += w * u.values[p][x];
  }
  return out;
}

inline void JudgeDense(const UnitView& u, Verdict* verdict) {
  for (int g = 0; g < u.step.group; ++g) {
    JudgeOutput(u, g, DenseOutput(u, g), verdict);
    verdict->That(u.reports[g].union_rows == u.tokens, "a dense unit reads everything");
    verdict->Near(u.reports[g].union_lse, u.dense_lse[g] * kOctave, 2e-3, "lse of a dense unit");
  }
}

inline std::vector<int64_t> ForcedRows(const UnitView& u, const HeadIndex& index) {
  std::vector<int64_t> rows;
  for (int p = 0; p < u.options.sinks; ++p) rows.push_back(p);
  for (int p = index.coded_end; p < u.tokens; ++p) rows.push_back(p);
  return rows;
}

// Anchors, forced rows, scores. Returns the anchors.
inline std::vector<double> JudgeRank(const UnitView& u, const HeadIndex& index, Verdict* verdict) {
  const Step& step = u.step;
  const auto bits = u.Of(step.anchors, step.group);
  const auto forced = ForcedRows(u, index);
  const auto rows = u.Of(step.forced_rows, step.forced_room);
  const auto logits = u.Of(step.forced_logits, size_t(step.forced_room) * step.group);
  const auto parts = u.Of(step.part_forced, size_t(step.rank_parts) * step.group);
  const auto scores = u.Of(step.scores, size_t(step.segments) * step.slots * step.group);
  std::vector<double> anchors;
  for (size_t i = 0; i < forced.size(); ++i)
    verdict->That(rows[i] == forced[i], "forced row " + std::to_string(i));
  for (int g = 0; g < step.group; ++g) {
    double want = -oracle::kInf;
    for (int i = 0; i < 16; ++i) want = std::max(want, u.logits[g][i < 4 ? i : u.tokens - 16 + i]);
    float anchor;
    std::memcpy(&anchor, &bits[g], sizeof(anchor));
    // Or of one of some clusters.
    double most = want;
    for (const oracle::CodedCluster& cluster : index.coded.clusters) {
      most = std::max(
          most, oracle::Capped(oracle::Dot(u.Query(g), cluster.centroid) * u.world.request.scale,
                               u.world.request.softcap) /
                    kOctave);
    }
    const double slack = 2e-3 + 1e-4 * std::fabs(most);
    verdict->That(anchor >= want - slack && anchor <= most + slack, "anchor");
    anchors.push_back(anchor);
    double mass = 0;
    double got = 0;
    for (size_t i = 0; i < forced.size(); ++i) {
      verdict->Near(logits[i * step.group + g], u.logits[g][forced[i]], 2e-3, "forced logit");
      mass += std::exp2(u.logits[g][forced[i]] - anchor);
    }
    for (int p = 0; p < step.rank_parts; ++p) got += parts[p * step.group + g];
    verdict->Near(got, mass, 3e-3 * mass, "mass of forced rows");
    for (size_t c = 0; c < index.coded.clusters.size(); ++c) {
      double score = oracle::Dot(u.Query(g), index.coded.clusters[c].centroid) *
                     u.world.request.scale / kOctave;
      if (step.mode == Mode::kPaper)
        score = oracle::Capped(score, u.world.request.softcap / kOctave) - anchor;
      verdict->Near(scores[index.slot_of[c] * step.group + g], score,
                    3e-3 + 1e-4 * std::fabs(score), "score of a cluster");
    }
  }
  return anchors;
}

// Spans that a unit's clusters are in.
inline int SpansOf(const Step& step, const HeadIndex& index) {
  return (index.segments + step.span_segments - 1) / step.span_segments;
}

// The rows that a unit's spans list: of span j the set want[j]. Returns those that the unit reads,
// forced ones first. entries(j) are the span's; `listed(entry, j, found)` calls found(position,
// slot of the logits; -1: there are none) for the rows of one.
template <class Entries, class Listed>
std::vector<int64_t> JudgeListed(const UnitView& u, const HeadIndex& index,
                                 const std::vector<std::set<int64_t>>& want, const Entries& entries,
                                 const Listed& listed, Verdict* verdict) {
  const Step& step = u.step;
  const size_t room = size_t(step.spans) * step.span_keys;
  const auto logits = u.Of(step.logits, room * step.group);
  std::vector<int64_t> all = ForcedRows(u, index);
  for (size_t j = 0; j < want.size(); ++j) {
    const size_t at = j * step.span_keys;
    std::set<int64_t> got;
    size_t rows = 0;
    for (const uint32_t entry : entries(j)) {
      listed(entry, j, [&](int64_t position, int slot) {
        ++rows;
        if (!want[j].contains(position)) return;
        got.insert(position);
        for (int g = 0; g < step.group && slot >= 0; ++g) {
          verdict->Near(logits[(at + slot) * step.group + g], u.logits[g][position], 3e-3, "logit");
        }
      });
    }
    verdict->That(got == want[j] && got.size() == rows, "rows of span " + std::to_string(j));
    all.insert(all.end(), want[j].begin(), want[j].end());
  }
  return all;
}

struct Tally {
  int64_t heads = 0;
  int64_t reached = 0;
  int64_t own_rows = 0;
  int64_t union_rows = 0;
  int64_t tokens = 0;
  int64_t dense = 0;
  int64_t extended = 0;
  double least = 1;
  double worst_claim = 0;  // p_hat less the true mass, where it claims the target

  void Add(const UnitView& u) {
    for (int g = 0; g < u.step.group; ++g) {
      const DeviceReport& r = u.reports[g];
      const double mass = std::exp(r.own_lse - u.dense_lse[g] * kOctave);
      ++heads;
      reached += mass >= u.options.target - 1e-4;
      own_rows += r.own_rows;
      union_rows += r.union_rows;
      tokens += u.tokens;
      dense += u.dense;
      extended += r.rounds > 0;
      least = std::min(least, mass);
      if (r.p_hat >= u.options.target) worst_claim = std::max(worst_claim, r.p_hat - mass);
    }
  }
  void Print(const char* what) const {
    std::printf(
        "  %s: n %lld, reached %.2f %%, least %.3f, own %.3f, union %.3f of the rows, "
        "dense %.1f %%, extended %.0f %%, largest overclaim %.3f\n",
        what, static_cast<long long>(heads), 100.0 * reached / heads, least,
        static_cast<double>(own_rows) / tokens, static_cast<double>(union_rows) / tokens,
        100.0 * dense / heads, 100.0 * extended / heads, worst_claim);
  }
};

}  // namespace tactic::cuda

#endif  // TACTIC_TESTS_CUDA_JUDGE_H_
