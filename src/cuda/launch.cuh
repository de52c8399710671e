// Launching the kernels of a step, and choosing among their versions.
#ifndef TACTIC_SRC_CUDA_LAUNCH_CUH_
#define TACTIC_SRC_CUDA_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <string>

#include "src/cuda/step.cuh"
#include "src/cuda/tile.cuh"
#include "tactic/status.h"

namespace tactic::cuda {

inline Status FromCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return Status::Ok();
  const std::string text = std::string(what) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorMemoryAllocation) return Status::ResourceExhausted(text);
  return Status::Internal(text);
}

// A grid of `parts` blocks for each unit.
inline dim3 UnitGrid(const Step& step, int parts) {
  return dim3(parts, step.batch * step.kv_heads);
}

// Blocks of kBlockThreads threads, with `shared` bytes of dynamic memory. They may begin while the kernel before it ends (WaitForPrevious).
inline Status Launch(void (*kernel)(Step), const Step& step, dim3 grid, size_t shared,
                     Stream stream) {
  TACTIC_RETURN_IF_ERROR(FromCuda(
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
      "shared memory of a kernel"));
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(kBlockThreads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return FromCuda(cudaLaunchKernelEx(&config, kernel, step), "launching a kernel");
}

// Calls f.operator()<dim, tiles of heads>() for the step's shape.
template <class F>
Status DispatchShape(const Step& step, const F& f) {
  const bool one = step.group <= kTileHeads;
  switch (step.head_dim) {
    case 64:
      return one ? f.template operator()<64, 1>() : f.template operator()<64, 2>();
    case 96:
      return one ? f.template operator()<96, 1>() : f.template operator()<96, 2>();
    case 128:
      return one ? f.template operator()<128, 1>() : f.template operator()<128, 2>();
    case 256:
      return one ? f.template operator()<256, 1>() : f.template operator()<256, 2>();
    default:
      return Status::Internal("head_dim without a kernel");
  }
}

// Calls f.operator()<Row, dim, tiles of heads>() also for the type of keys and values.
template <class F>
Status DispatchStep(const Step& step, Element type, const F& f) {
  return DispatchShape(step, [&]<int kDim, int kHeadTiles>() {
    switch (type) {
      case Element::kBF16:
        return f.template operator()<RowBF16, kDim, kHeadTiles>();
      case Element::kF16:
        return f.template operator()<RowF16, kDim, kHeadTiles>();
      default:
        return f.template operator()<RowE4M3, kDim, kHeadTiles>();
    }
  });
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_LAUNCH_CUH_
