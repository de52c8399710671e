// Many arrays in one allocation.
#ifndef TACTIC_SRC_CUDA_CARVER_H_
#define TACTIC_SRC_CUDA_CARVER_H_

#include <cstddef>
#include <cstdint>

namespace tactic::cuda {

// Hands out consecutive pieces of one allocation; with a null base it only counts.
class Carver {
 public:
  explicit Carver(uint8_t* base) : base_(base) {}
  template <class T>
  void Take(T** out, size_t count) {
    constexpr size_t kAlign = 256;
    if (base_ != nullptr) *out = reinterpret_cast<T*>(base_ + used_);
    used_ += (count * sizeof(T) + kAlign - 1) / kAlign * kAlign;
  }
  size_t used() const { return used_; }

 private:
  uint8_t* base_;
  size_t used_ = 0;
};

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_CARVER_H_
