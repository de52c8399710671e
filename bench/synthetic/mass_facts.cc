#include "bench/synthetic/mass_facts.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <vector>

#include "bench/synthetic/text.h"
#include "bench/synthetic/tile.h"
#include "src/half.h"

namespace tactic::synthetic {

MassFacts FactsOf(std::span<const double> x) {
  const double most = *std::max_element(x.begin(), x.end());
  std::vector<double> mass(x.size());
  double all = 0;
  for (size_t t = 0; t < x.size(); ++t) all += mass[t] = std::exp(x[t] - most);
  for (double& m : mass) m /= all;

  MassFacts facts;
  facts.first = mass[0];
  facts.recent = std::accumulate(mass.end() - kRecent, mass.end(), 0.0);
  facts.largest = *std::max_element(mass.begin() + kSinks, mass.end() - kRecent);
  std::sort(mass.begin(), mass.end(), std::greater<>());
  for (double sum = 0; sum < kNeededMass; sum += mass[static_cast<size_t>(facts.needed++)]) {
  }
  constexpr int64_t kBeginning = 16;  // tokens whose keys are unlike all others
  const auto begin = x.begin() + kBeginning, end = x.end() - kRecent;
  const double mean = std::accumulate(begin, end, 0.0) / static_cast<double>(end - begin);
  double squares = 0, products = 0;
  for (auto i = begin; i + 1 < end; ++i) {
    squares += (*i - mean) * (*i - mean);
    products += (*i - mean) * (i[1] - mean);
  }
  facts.alike = products / squares;
  return facts;
}

std::vector<MassFacts> FactsOf(std::span<const float> queries, size_t dim, const KeyRows& keys,
                               std::span<const int64_t> visible) {
  const auto tokens = static_cast<size_t>(*std::max_element(visible.begin(), visible.end()));
  std::vector<std::vector<double>> logits(visible.size());
  std::vector<float> tile(dim * kTile);
  float of_tile[kTile];
  for (size_t begin = 0; begin < tokens; begin += kTile) {
    const size_t end = std::min(tokens, begin + kTile);
    for (size_t t = begin; t < end; ++t) {
      const auto* row = reinterpret_cast<const uint16_t*>(keys.data + t * keys.stride);
      for (size_t i = 0; i < dim; ++i)
        tile[i * kTile + t - begin] = keys.bf16 ? Bf16ToFloat(row[i]) : HalfToFloat(row[i]);
    }
    for (size_t j = 0; j < visible.size(); ++j) {
      ScoreTile(queries.data() + j * dim, tile.data(), dim, of_tile);
      logits[j].insert(logits[j].end(), of_tile, of_tile + (end - begin));
    }
  }
  std::vector<MassFacts> facts;
  for (size_t j = 0; j < visible.size(); ++j)
    facts.push_back(FactsOf(std::span(logits[j]).first(static_cast<size_t>(visible[j]))));
  return facts;
}

}  // namespace tactic::synthetic
