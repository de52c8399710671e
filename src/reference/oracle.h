// The specification: one decode step of the paper's algorithm for one query head, top to bottom, in
// scalar double precision.
//
// Nothing here is fast and nothing is shared with the kernels it judges, not even the curve fit.
// Section numbers are those of arXiv 2502.12216. Positions are the tokens of one sequence, counted
// from 0; keys and values are plain vectors.
#ifndef TACTIC_SRC_REFERENCE_ORACLE_H_
#define TACTIC_SRC_REFERENCE_ORACLE_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "tactic/options.h"

namespace tactic::oracle {

using Row = std::vector<double>;
using Rows = std::vector<Row>;
constexpr double kInf = std::numeric_limits<double>::infinity();

inline double Dot(const Row& a, const Row& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

// Attention logit: q . k * scale, softly capped where the model asks for it.
inline double Logit(const Row& q, const Row& k, double scale, double softcap) {
  const double x = Dot(q, k) * scale;
  return softcap > 0 ? softcap * std::tanh(x / softcap) : x;
}

// ---- Attention (section 4.6)
// -------------------------------------------------------------------------------------------

struct Attention {
  Row out;             // softmax(q K) V over the rows
  double lse = -kInf;  // log of the sum of exp(logit)
};

inline Attention Attend(const Row& q, const Rows& keys, const Rows& values,
                        const std::vector<int64_t>& rows, double scale, double softcap) {
  Attention result;
  if (rows.empty()) return result;
  double max = -kInf;
  for (int64_t p : rows) max = std::max(max, Logit(q, keys[p], scale, softcap));
  double sum = 0;
  result.out.assign(values[rows[0]].size(), 0.0);
  for (int64_t p : rows) {
    const double w = std::exp(Logit(q, keys[p], scale, softcap) - max);
    sum += w;
    for (size_t i = 0; i < result.out.size(); ++i) result.out[i] += w * values[p][i];
  }
  for (double& x : result.out) x /= sum;
  result.lse = max + std::log(sum);
  return result;
}

// ---- Index: K-means (section 4.2)
// ------------------------------------------------------------------------------------

struct Cluster {
  Row centroid;
  std::vector<int64_t> members;  // positions, ascending
};

// Clusters the keys of positions [first, end), starting from the keys at first + initial[c]. Ties
// go to the lower number; an emptied cluster keeps its centroid and is dropped at the end.
inline std::vector<Cluster> KMeans(const Rows& keys, int64_t first, int64_t end,
                                   const std::vector<uint32_t>& initial, int iterations) {
  std::vector<Cluster> clusters(initial.size());
  for (size_t c = 0; c < initial.size(); ++c) clusters[c].centroid = keys[first + initial[c]];
  std::vector<size_t> label;
  for (int iteration = 0; iteration < iterations; ++iteration) {
    std::vector<size_t> next;
    for (int64_t p = first; p < end; ++p) {
      size_t nearest = 0;
      double nearest_distance = kInf;
      for (size_t c = 0; c < clusters.size(); ++c) {
        double distance = 0;
        for (size_t i = 0; i < keys[p].size(); ++i) {
          distance +=
              (keys[p][i] - clusters[c].centroid[i]) * (keys[p][i] - clusters[c].centroid[i]);
        }
        if (distance < nearest_distance) {
          nearest = c;
          nearest_distance = distance;
        }
      }
      next.push_back(nearest);
    }
    if (next == label) break;
    label = next;
    for (Cluster& cluster : clusters) cluster.members.clear();
    for (int64_t p = first; p < end; ++p) clusters[label[p - first]].members.push_back(p);
    for (Cluster& cluster : clusters) {
      if (cluster.members.empty()) continue;
      std::fill(cluster.centroid.begin(), cluster.centroid.end(), 0.0);
      for (int64_t p : cluster.members) {
        for (size_t i = 0; i < keys[p].size(); ++i) cluster.centroid[i] += keys[p][i];
      }
      for (double& x : cluster.centroid) x /= static_cast<double>(cluster.members.size());
    }
  }
  std::erase_if(clusters, [](const Cluster& cluster) { return cluster.members.empty(); });
  return clusters;
}

// ---- Order (section 4.3)
// ---------------------------------------------------------------------------------------------

// All members of all clusters: clusters by descending q . centroid (ties: as listed), members by
// position.
inline std::vector<int64_t> Order(const Row& q, const std::vector<Cluster>& clusters) {
  std::vector<double> score;
  for (const Cluster& cluster : clusters) score.push_back(Dot(q, cluster.centroid));
  std::vector<size_t> by_score(clusters.size());
  std::iota(by_score.begin(), by_score.end(), size_t{0});
  std::stable_sort(by_score.begin(), by_score.end(),
                   [&](size_t a, size_t b) { return score[a] > score[b]; });
  std::vector<int64_t> order;
  for (size_t c : by_score)
    order.insert(order.end(), clusters[c].members.begin(), clusters[c].members.end());
  return order;
}

// ---- Mass curve and budget (section 4.4)
// -----------------------------------------------------------------------------

struct Budget {
  int64_t ranks = 0;  // k: how much of the order is read
  double a = 0;       // y(x) = a / x + b after the head
  double b = 0;
  double total = 0;  // estimated mass, in units of exp(max)
};

// `forced` are the positions that are read anyway; their mass counts.
inline Budget PaperBudget(const Row& q, const Rows& keys, const std::vector<int64_t>& order,
                          const std::vector<int64_t>& forced, const Options& options, double scale,
                          double softcap) {
  Budget result;
  const auto n = static_cast<int64_t>(order.size());
  if (options.target >= 1 || n < 32) {  // a curve needs four windows' worth of ranks
    result.ranks = n;
    return result;
  }
  const auto head =
      std::clamp<int64_t>(static_cast<int64_t>(std::ceil(options.head_share * n)), 1, n);
  const auto width =
      std::min(n, std::max<int64_t>(8, static_cast<int64_t>(options.window_share * n)));
  const auto window_begin = [&](double at) {
    return std::clamp<int64_t>(static_cast<int64_t>(at * n) - width / 2, 0, n - width);
  };
  const int64_t near = window_begin(options.near_window);
  const int64_t far = window_begin(options.far_window);
  const auto logit = [&](int64_t p) { return Logit(q, keys[p], scale, softcap); };

  // One maximum for everything that is summed.
  double max = -kInf;
  for (int64_t p : forced) max = std::max(max, logit(p));
  for (int64_t x = 0; x < head; ++x) max = std::max(max, logit(order[x]));
  for (int64_t i = 0; i < width; ++i)
    max = std::max({max, logit(order[near + i]), logit(order[far + i])});

  double forced_mass = 0;
  for (int64_t p : forced) forced_mass += std::exp(logit(p) - max);
  std::vector<double> mass(n + 1, 0.0);  // of the first x ranks, by the curve after the head
  for (int64_t x = 0; x < head; ++x) mass[x + 1] = mass[x] + std::exp(logit(order[x]) - max);

  double y_near = 0, y_far = 0, inverse_near = 0, inverse_far = 0;
  for (int64_t i = 0; i < width; ++i) {
    y_near += std::exp(logit(order[near + i]) - max) / width;
    y_far += std::exp(logit(order[far + i]) - max) / width;
    inverse_near += 1.0 / (near + i + 1) / width;
    inverse_far += 1.0 / (far + i + 1) / width;
  }
  // Guards the text does not give: real means are noisy, and neither coefficient may be negative.
  result.a = inverse_near > inverse_far ? (y_near - y_far) / (inverse_near - inverse_far) : 0;
  result.b = y_far - result.a * inverse_far;
  if (!(result.a > 0)) {
    result.a = 0;
    result.b = (y_near + y_far) / 2;
  }
  if (result.b < 0) {
    result.b = 0;
    result.a = y_near / inverse_near;
  }
  for (int64_t x = head + 1; x <= n; ++x) {
    mass[x] =
        mass[head] + result.a * std::log(static_cast<double>(x) / head) + result.b * (x - head);
  }
  result.total = forced_mass + mass[n];
  while (result.ranks < n && forced_mass + mass[result.ranks] < options.target * result.total)
    ++result.ranks;
  return result;
}

// ---- GQA (section 4.5)
// -----------------------------------------------------------------------------------------------

// Positions one query head reads: the prefix of its order and the forced ones, ascending.
inline std::vector<int64_t> HeadRows(const std::vector<int64_t>& order, int64_t ranks,
                                     const std::vector<int64_t>& forced) {
  std::vector<int64_t> rows(order.begin(), order.begin() + ranks);
  rows.insert(rows.end(), forced.begin(), forced.end());
  std::sort(rows.begin(), rows.end());
  return rows;
}

// Positions a group reads: every head attends to all of them.
inline std::vector<int64_t> Union(const std::vector<std::vector<int64_t>>& heads) {
  std::vector<int64_t> rows;
  for (const auto& head : heads) rows.insert(rows.end(), head.begin(), head.end());
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  return rows;
}

}  // namespace tactic::oracle

#endif  // TACTIC_SRC_REFERENCE_ORACLE_H_
