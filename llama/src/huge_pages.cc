#include "llama/src/huge_pages.h"

#ifdef __linux__
#include <sys/mman.h>

#include <cstdint>

namespace tactic::llama {

void PreferHugePages(void* data, size_t bytes) {
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1; older headers lack the name
  const uintptr_t begin =
      (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (begin >= end) return;
  void* pages = reinterpret_cast<void*>(begin);
  if (madvise(pages, end - begin, MADV_HUGEPAGE) == 0) (void)madvise(pages, end - begin, kCollapse);
}

}  // namespace tactic::llama

#else

namespace tactic::llama {

void PreferHugePages(void*, size_t) {}

}  // namespace tactic::llama

#endif
