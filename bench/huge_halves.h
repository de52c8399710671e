// Memory for keys and values as an engine's cache has it.
#ifndef TACTIC_BENCH_HUGE_HALVES_H_
#define TACTIC_BENCH_HUGE_HALVES_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace tactic::bench {

// Halves in huge pages, as the engine's cache is (llama/src/huge_pages.h).
class HugeHalves {
 public:
  explicit HugeHalves(size_t count);
  uint16_t* data() { return data_.get(); }
  const uint16_t* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(uint16_t* data) const { std::free(data); }
  };
  std::unique_ptr<uint16_t, Free> data_;
};

}  // namespace tactic::bench

#endif  // TACTIC_BENCH_HUGE_HALVES_H_
