// What attention to a long text is made of, whoever makes keys for it: passages on topics that come
// back, and shares of the mass for a sink, a local window and heavy single tokens.
#ifndef TACTIC_BENCH_SYNTHETIC_TEXT_H_
#define TACTIC_BENCH_SYNTHETIC_TEXT_H_

#include <cstdint>
#include <functional>
#include <random>
#include <vector>

namespace tactic::synthetic {

inline constexpr int64_t kRecent = 64;  // tokens of the local window
inline constexpr int kHeavy = 4;        // heavy single tokens of a KV head
inline constexpr int64_t kSinks = 4;    // tokens at the start that are nothing else

// Tokens [begin, end) on one topic.
struct Passage {
  int64_t begin;
  int64_t end;
  size_t topic;
};

// A text: passages on an old or a new topic, which are numbered as they come.
struct Passages {
  Passages(int64_t tokens, std::mt19937_64& random);
  std::vector<Passage> all;
  size_t topics = 0;
};

// Where the heavy tokens are. REQUIRES: tokens > kSinks + kRecent.
std::vector<int64_t> HeavyTokens(int64_t tokens, std::mt19937_64& random);

// How much of the window's strength a token of that age has: 1 for the newest, 0 behind the window.
inline double Nearness(int64_t age) { return 1 - static_cast<double>(age) / kRecent; }

// Of the mass of one query head: what is not the topics'.
struct Shares {
  double sink, recent, single;
  double Topics() const { return 1 - sink - recent - single; }
};
Shares RandomShares(std::mt19937_64& random);

// The share of the topics' mass that has to be read for `target` of all, when everything else is.
double ShareOfTopics(const Shares& shares, double target);

// The smallest x in [0, most] for which f, which grows, is at least `goal`.
double Solve(const std::function<double(double)>& f, double goal, double most);

// `count` numbers of tokens that heads need: log-normal with `spread` as the standard deviation of
// the logarithm, cut to [kSinks, most], and scaled so that their mean is `mean` all the same.
// REQUIRES: kSinks <= mean <= most.
std::vector<double> NeededTokens(size_t count, double mean, double spread, double most,
                                 std::mt19937_64& random);

}  // namespace tactic::synthetic

#endif  // TACTIC_BENCH_SYNTHETIC_TEXT_H_
