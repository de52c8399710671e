// The specification of mode tactic: one decode step of one KV head, top to bottom, in scalar double
// precision.
//
// Nothing here is fast and nothing is shared with the kernels it judges. It works on given clusters
// (oracle_codes.h), which an index may hold or Encode() make from their members.
// Positions are the tokens of one sequence, counted from 0; keys and values are plain vectors.
#ifndef TACTIC_SRC_REFERENCE_ORACLE_TACTIC_H_
#define TACTIC_SRC_REFERENCE_ORACLE_TACTIC_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "src/reference/oracle_codes.h"
#include "tactic/options.h"

namespace tactic::oracle {

// ---- Estimates ----------------------------------------------------------------------------------

// A query head as the codes see it: in 8 bits, after the rotation.
struct CodedQuery {
  Row q;        // times scale
  Row rotated;  // integers within 127 times a unit
  double norm = 0;
  double softcap = 0;
};

inline CodedQuery MakeCodedQuery(const Row& q, double scale, double softcap) {
  CodedQuery query;
  query.softcap = softcap;
  for (double x : q) query.q.push_back(x * scale);
  query.norm = Dot(query.q, query.q);
  query.rotated = Rotated(query.q);
  double most = 0;
  for (double x : query.rotated) most = std::max(most, std::fabs(x));
  if (most == 0) return query;
  for (double& x : query.rotated) x = std::round(x / (most / 127)) * (most / 127);
  return query;
}

inline double Capped(double x, double softcap) {
  return softcap > 0 ? softcap * std::tanh(x / softcap) : x;
}

constexpr double kLargestHalf = 20;  // of v / 2: a worse code says nothing

// A key's logit and half the variance of its error.
struct KeyEstimate {
  double logit;
  double half_variance;
  double Key() const { return logit + half_variance; }  // log of its estimated mass
};

inline KeyEstimate EstimateKey(const CodedQuery& query, const CodedCluster& cluster, size_t i) {
  const Code& code = cluster.codes[i];
  const double score = Dot(query.q, cluster.centroid);
  const double variance = ElementError(cluster.bits) * code.scale * code.scale * query.norm;
  return {Capped(score + code.scale * Dot(query.rotated, code.levels), query.softcap),
          std::min(variance / 2, kLargestHalf)};
}

// Logs of: the estimated mass of a cluster; what it has at least (Jensen: the mean of exp is not
// below exp of the mean); what a single member could have: at three standard deviations, more by
// how far the longest residual exceeds the others, and by that again where the query may share its
// direction, a cosine of 0.3 times that ratio.
struct ClusterEstimate {
  double mass;
  double floor;
  double token;
};

inline ClusterEstimate EstimateCluster(const CodedQuery& query, const CodedCluster& cluster) {
  const double score = Dot(query.q, cluster.centroid);
  double variance = 0;  // of the members' logits about the score
  for (size_t i = 0; i < query.q.size(); ++i) {
    const double spread = cluster.spreads[i * kSpreadRuns / query.q.size()];
    variance += query.q[i] * query.q[i] * spread * spread;
  }
  // log of the mean of exp over n draws of a Gaussian: v / 2, but no more than the largest of n
  // draws can give (random-energy model).
  const double log_size = std::log(static_cast<double>(cluster.members.size()));
  const double v = std::min(variance, 2 * kLargestHalf);
  const double excess = v < 2 * log_size ? v / 2 : std::sqrt(2 * v * log_size) - log_size;
  const double floor = Capped(score, query.softcap) + log_size;
  const double aligned = 0.1 * std::sqrt(static_cast<double>(query.q.size())) * cluster.longest;
  const double reach = 3 * std::sqrt(variance) * cluster.longest * std::max(1.0, aligned);
  return {floor + excess, floor, Capped(score + reach, query.softcap)};
}

// ---- The step -----------------------------------------------------------------------------------
// Masses are sums of exp(logit - reference), with a reference per query head.

// One query head of the group.
struct TacticHead {
  CodedQuery query;
  std::vector<ClusterEstimate> clusters;
  double reference = 0;
  double fixed = 0;     // mass of the forced rows
  double at_least = 0;  // of everything
  double error = 0;     // variance of a code's logit, mean over all codes
  double skipped = 0;   // estimated mass of skipped clusters
  double total = 0;     // estimated mass of all keys of the others
  struct Key {
    double key;  // log of the estimated mass, less the reference
    double half_variance;
    int64_t position;
    size_t cluster;
  };
  std::vector<Key> keys;  // of kept clusters, by descending key
};

inline TacticHead MakeTacticHead(const CodedQuery& query, const CodedIndex& index,
                                 const std::vector<double>& forced_logits) {
  TacticHead head;
  head.query = query;
  head.reference = -kInf;
  for (double logit : forced_logits) head.reference = std::max(head.reference, logit);
  for (const CodedCluster& cluster : index.clusters) {
    head.clusters.push_back(EstimateCluster(query, cluster));
    head.reference = std::max(head.reference, head.clusters.back().mass);
  }
  for (double logit : forced_logits) head.fixed += std::exp(logit - head.reference);
  head.at_least = head.fixed;
  for (const ClusterEstimate& cluster : head.clusters)
    head.at_least += std::exp(cluster.floor - head.reference);
  double codes = 0;
  for (const CodedCluster& cluster : index.clusters) {
    for (const Code& code : cluster.codes)
      head.error += ElementError(cluster.bits) * code.scale * code.scale * query.norm;
    codes += static_cast<double>(cluster.codes.size());
  }
  head.error /= std::max(1.0, codes);
  return head;
}

// Which clusters one head can leave out: the smallest, while their masses add up to at most
// skip_share of what may be missed; none with a token that may matter; no pages.
inline std::vector<bool> Skippable(const TacticHead& head, const CodedIndex& index,
                                   const Options& options) {
  const double rest = (1 - options.target) * head.at_least;
  std::vector<size_t> order(head.clusters.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return head.clusters[a].mass < head.clusters[b].mass; });
  std::vector<bool> skippable(order.size(), false);
  double sum = 0;
  for (size_t c : order) {
    sum += std::exp(head.clusters[c].mass - head.reference);
    if (sum > options.skip_share * rest) break;
    skippable[c] = !index.clusters[c].page &&
                   std::exp(head.clusters[c].token - head.reference) <= options.skip_token * rest;
  }
  return skippable;
}

// A cluster is skipped when every head of the group can leave it out. Fills in what the codes of
// the others say.
inline std::vector<bool> ScanGroup(const CodedIndex& index, const Options& options,
                                   std::vector<TacticHead>* heads) {
  std::vector<bool> kept(index.clusters.size(), false);
  for (const TacticHead& head : *heads) {
    const std::vector<bool> skippable = Skippable(head, index, options);
    for (size_t c = 0; c < kept.size(); ++c) kept[c] = kept[c] || !skippable[c];
  }
  for (TacticHead& head : *heads) {
    for (size_t c = 0; c < kept.size(); ++c) {
      const CodedCluster& cluster = index.clusters[c];
      if (!kept[c]) head.skipped += std::exp(head.clusters[c].mass - head.reference);
      for (size_t i = 0; kept[c] && i < cluster.members.size(); ++i) {
        const KeyEstimate estimate = EstimateKey(head.query, cluster, i);
        const double key = estimate.Key() - head.reference;
        head.keys.push_back({key, estimate.half_variance, cluster.members[i], c});
        head.total += std::exp(key);
      }
    }
    std::stable_sort(head.keys.begin(), head.keys.end(),
                     [](const auto& a, const auto& b) { return a.key > b.key; });
  }
  return kept;
}

// The smallest prefix of the head's keys with estimated mass `need`.
inline size_t Prefix(const TacticHead& head, double need) {
  size_t k = 0;
  for (double mass = 0; k < head.keys.size() && mass < need; ++k)
    mass += std::exp(head.keys[k].key);
  return k;
}

// What one head knows once it has read the keys of its first `rows` keys exactly.
struct Verified {
  double exact = 0;      // mass of forced rows and these
  double estimated = 0;  // what the codes said of these
  double unread = 0;     // estimate of everything else
  double cautious = 0;   // the same on the safe side
  double p_hat = 0;
};

// `logits` are exact ones, by position.
inline Verified Verify(const TacticHead& head, size_t rows, const std::vector<double>& logits,
                       const Options& options) {
  Verified v;
  v.exact = head.fixed;
  for (size_t i = 0; i < rows; ++i) {
    v.exact += std::exp(logits[head.keys[i].position] - head.reference);
    v.estimated += std::exp(head.keys[i].key);
  }
  const double keys = std::max(0.0, head.total - v.estimated);
  v.unread = keys + head.skipped;
  v.cautious = options.unread_margin * keys + options.skipped_margin * head.skipped;
  v.p_hat = v.exact / (v.exact + v.unread);
  return v;
}

inline bool ReachedTarget(const Verified& v, const Options& options) {
  return v.exact >= options.target * (v.exact + v.cautious);
}

// The estimated mass to read in all: x more is exact mass ratio * x, and takes margin * x from what
// is unread.
inline double NeededMass(const Verified& v, double ratio, const Options& options) {
  const double p = options.target;
  return v.estimated +
         (p * (v.exact + v.cautious) - v.exact) / (ratio * (1 - p) + p * options.unread_margin);
}

// What keys, chosen for a high estimate, keep of what their codes promise: as expected, on the safe
// side, and as observed.
constexpr double kLeastRatio = 0.2;
inline double FirstRatio(const TacticHead& head) {
  return std::max(kLeastRatio, std::exp(-1.5 * head.error));
}
inline double ObservedRatio(const TacticHead& head, const Verified& v) {
  return v.estimated > 0 ? std::clamp((v.exact - head.fixed) / v.estimated, kLeastRatio, 1.0) : 1;
}

// How many of its keys a head reads: to the target by the codes, then by what was read.
inline size_t SelectRows(const TacticHead& head, const std::vector<double>& logits,
                         const Options& options, int* rounds) {
  *rounds = 0;
  size_t rows =
      Prefix(head, NeededMass(Verify(head, 0, logits, options), FirstRatio(head), options));
  while (*rounds < options.rounds && rows < head.keys.size()) {
    const Verified v = Verify(head, rows, logits, options);
    if (ReachedTarget(v, options)) break;
    rows = std::max(rows, Prefix(head, NeededMass(v, ObservedRatio(head, v), options)));
    ++*rounds;
  }
  return rows;
}

// Whether the head, its rounds over, is so far from the target that its group reads all rows.
inline bool GaveUp(const Verified& v, const Options& options) {
  return options.rounds > 0 && v.p_hat < options.target - 0.1;
}

// Weights relative to the head's reference: unread keys with exp(logit), without v / 2, on the mean
// of their cluster's values; skipped clusters on the mean of their segment's. `read` is by
// position.
struct TailWeights {
  std::vector<double> clusters;
  std::vector<double> segments;
};
inline TailWeights Tail(const TacticHead& head, const CodedIndex& index,
                        const std::vector<bool>& kept, const std::vector<bool>& read) {
  TailWeights weights;
  weights.clusters.assign(index.clusters.size(), 0.0);
  weights.segments.assign(index.means.size(), 0.0);
  for (const TacticHead::Key& key : head.keys) {
    if (!read[key.position]) weights.clusters[key.cluster] += std::exp(key.key - key.half_variance);
  }
  for (size_t c = 0; c < kept.size(); ++c) {
    if (kept[c]) continue;
    weights.segments[index.clusters[c].segment] += std::exp(head.clusters[c].mass - head.reference);
  }
  return weights;
}

// Attention over rows that were read, joined by the tail.
inline Row WithTail(const Attention& read, const TacticHead& head, const CodedIndex& index,
                    const TailWeights& tail) {
  double sum = std::exp(read.lse - head.reference);
  Row out = read.out;
  for (double& x : out) x *= sum;
  const auto add = [&](double weight, const Row& mean) {
    sum += weight;
    for (size_t i = 0; i < out.size(); ++i) out[i] += weight * mean[i];
  };
  for (size_t c = 0; c < tail.clusters.size(); ++c) add(tail.clusters[c], index.clusters[c].mean);
  for (size_t s = 0; s < tail.segments.size(); ++s) add(tail.segments[s], index.means[s]);
  for (double& x : out) x /= sum;
  return out;
}

}  // namespace tactic::oracle

#endif  // TACTIC_SRC_REFERENCE_ORACLE_TACTIC_H_
