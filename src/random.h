// Seeded random sampling that is the same on every machine and standard library.
#ifndef TACTIC_SRC_RANDOM_H_
#define TACTIC_SRC_RANDOM_H_

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace tactic {

// SplitMix64 (Steele, Lea, Flood 2014): every seed gives an independent stream.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // Uniform in [0, n). REQUIRES: 0 < n <= 2^32. The bias of the multiplication is below 2^-32.
  uint32_t Below(uint32_t n) { return static_cast<uint32_t>(((Next() >> 32) * n) >> 32); }

 private:
  uint64_t state_;
};

// `count` distinct numbers of [0, n), in random order. REQUIRES: count <= n.
inline std::vector<uint32_t> SampleDistinct(uint32_t n, uint32_t count, uint64_t seed) {
  Random random(seed);
  std::vector<uint32_t> all(n);
  std::iota(all.begin(), all.end(), 0u);
  for (uint32_t i = 0; i < count; ++i) std::swap(all[i], all[i + random.Below(n - i)]);
  all.resize(count);
  return all;
}

}  // namespace tactic

#endif  // TACTIC_SRC_RANDOM_H_
