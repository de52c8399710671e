// Large pages for the KV cache. A decode step strides through all of it; with pages of 4 KiB most
// of that is a miss in the translation buffer too.
#ifndef TACTIC_LLAMA_SRC_HUGE_PAGES_H_
#define TACTIC_LLAMA_SRC_HUGE_PAGES_H_

#include <cstddef>

namespace tactic::llama {

// Asks the kernel to back [data, data + bytes) with huge pages, moving what is already there. A
// hint: where it cannot be followed (another system, an old kernel, no free huge pages) nothing
// changes.
void PreferHugePages(void* data, size_t bytes);

}  // namespace tactic::llama

#endif  // TACTIC_LLAMA_SRC_HUGE_PAGES_H_
