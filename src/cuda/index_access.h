// What tests see of an Index.
#ifndef TACTIC_SRC_CUDA_INDEX_ACCESS_H_
#define TACTIC_SRC_CUDA_INDEX_ACCESS_H_

#include "src/cuda/layout.h"
#include "tactic/cuda.h"

namespace tactic::cuda {

struct IndexAccess {
  // A copy, in host memory, of what device_view() points at: its pointers are the device's.
  // `closed` and `pages` are those that the calls so far lead to; `unfit` is in device memory
  // alone.
  static const DeviceIndex& host_view(const Index& index);
};

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_INDEX_ACCESS_H_
