// Memory: does a KV cache fit into this machine?
#ifndef TACTIC_APPS_MEMORY_H_
#define TACTIC_APPS_MEMORY_H_

#include <cstdint>
#include <string>

#include "tactic/status.h"

namespace tactic::app {

// Bytes that can be allocated without swapping (MemAvailable of /proc/meminfo); 0 when unknown.
int64_t AvailableMemory();

// ResourceExhausted when `bytes`, needed for `what`, exceed what is available. Both numbers are in
// the message. OK when the available memory is unknown.
Status CheckMemory(int64_t bytes, const std::string& what);

// "1.4 GiB"
std::string FormatBytes(double bytes);

}  // namespace tactic::app

#endif  // TACTIC_APPS_MEMORY_H_
