#include "bench/synthetic/text.h"

#include <algorithm>
#include <cmath>

namespace tactic::synthetic {
namespace {

constexpr int kPassageLeast = 32, kPassageMost = 256;  // tokens
constexpr double kNewTopic = 0.5;                      // chance; else an old one comes back

}  // namespace

Passages::Passages(int64_t tokens, std::mt19937_64& random) {
  std::uniform_real_distribution<double> uniform;
  std::uniform_int_distribution<int> length(kPassageLeast, kPassageMost);
  for (int64_t begin = 0; begin < tokens;) {
    const bool is_new = topics == 0 || uniform(random) < kNewTopic;
    const size_t topic = is_new ? topics++ : random() % topics;
    const int64_t end = std::min(tokens, begin + length(random));
    all.push_back({begin, end, topic});
    begin = end;
  }
}

std::vector<int64_t> HeavyTokens(int64_t tokens, std::mt19937_64& random) {
  std::vector<int64_t> heavy(kHeavy);
  for (int64_t& token : heavy) {
    token =
        kSinks + static_cast<int64_t>(random() % static_cast<uint64_t>(tokens - kSinks - kRecent));
  }
  return heavy;
}

Shares RandomShares(std::mt19937_64& random) {
  std::uniform_real_distribution<double> uniform;
  Shares shares{};
  shares.sink = 0.4 * uniform(random);
  shares.recent = 0.4 * uniform(random);
  shares.single = 0.08 * uniform(random);
  return shares;
}

double ShareOfTopics(const Shares& shares, double target) {
  return std::max(0.0, 1 - (1 - target) / shares.Topics());
}

double Solve(const std::function<double(double)>& f, double goal, double most) {
  double low = 0, high = most;
  for (int i = 0; i < 50; ++i) {
    const double middle = (low + high) / 2;
    (f(middle) < goal ? low : high) = middle;
  }
  return high;
}

std::vector<double> NeededTokens(size_t count, double mean, double spread, double most,
                                 std::mt19937_64& random) {
  std::normal_distribution<double> normal(0, spread);
  std::vector<double> drawn(count);
  for (double& x : drawn) x = std::exp(normal(random));
  const auto cut = [&](double x, double factor) {
    return std::clamp(x * factor, static_cast<double>(kSinks), most);
  };
  const auto mean_of = [&](double factor) {
    double sum = 0;
    for (const double x : drawn) sum += cut(x, factor);
    return sum / static_cast<double>(count);
  };
  const double least = *std::min_element(drawn.begin(), drawn.end());
  const double factor = Solve(mean_of, mean, most / least);
  for (double& x : drawn) x = cut(x, factor);
  return drawn;
}

}  // namespace tactic::synthetic
