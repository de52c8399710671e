#include "bench/huge_halves.h"

#include <sys/mman.h>

#include <new>

namespace tactic::bench {

HugeHalves::HugeHalves(size_t count) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t bytes = (count * sizeof(uint16_t) + kHugePage - 1) / kHugePage * kHugePage;
  data_.reset(static_cast<uint16_t*>(std::aligned_alloc(kHugePage, bytes)));
  if (data_ == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
}

}  // namespace tactic::bench
