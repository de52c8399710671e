// Random: whole numbers that are the same for a seed with every standard library.
#ifndef TACTIC_APPS_RANDOM_H_
#define TACTIC_APPS_RANDOM_H_

#include <cstdint>
#include <random>
#include <utility>
#include <vector>

namespace tactic::app {

// std::uniform_int_distribution differs between standard libraries; this does not.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  // REQUIRES: bound > 0.
  int64_t Below(int64_t bound) {
    return static_cast<int64_t>(engine_() % static_cast<uint64_t>(bound));
  }
  template <typename T>
  void Shuffle(std::vector<T>* values) {
    for (size_t i = values->size(); i > 1; --i) {
      std::swap((*values)[i - 1], (*values)[static_cast<size_t>(Below(static_cast<int64_t>(i)))]);
    }
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace tactic::app

#endif  // TACTIC_APPS_RANDOM_H_
