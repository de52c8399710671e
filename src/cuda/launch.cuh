// Launching the kernels of a step, and choosing among their versions.
#ifndef TACTIC_SRC_CUDA_LAUNCH_CUH_
#define TACTIC_SRC_CUDA_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <string>

#include "src/cuda/dispatch.h"
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

// Whether the code of the kernel that runs on this GPU has WaitForPrevious: a GPU newer than all
// that the library was compiled for may run code of one that could not wait.
inline Status CanWait(void (*kernel)(Step), bool* can) {
  cudaFuncAttributes attributes = {};
  TACTIC_RETURN_IF_ERROR(
      FromCuda(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)),
               "attributes of a kernel"));
  constexpr int kFirstThatWaits = 90;
  *can = attributes.ptxVersion >= kFirstThatWaits;
  return Status::Ok();
}

// Blocks of kBlockThreads threads, with `shared` bytes of dynamic memory. They may begin while the
// kernel before it ends, where they wait for it (WaitForPrevious).
inline Status Launch(void (*kernel)(Step), const Step& step, dim3 grid, size_t shared,
                     Stream stream) {
  TACTIC_RETURN_IF_ERROR(FromCuda(
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
      "shared memory of a kernel"));
  bool can_wait = false;
  TACTIC_RETURN_IF_ERROR(CanWait(kernel, &can_wait));
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(kBlockThreads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = can_wait ? 1 : 0;
  return FromCuda(cudaLaunchKernelEx(&config, kernel, step), "launching a kernel");
}

// Calls f.operator()<heads>() for a group of at most so many heads.
template <class F>
Status DispatchHeads(const Step& step, const F& f) {
  if (step.group <= 4) return f.template operator()<4>();
  if (step.group <= 8) return f.template operator()<8>();
  return f.template operator()<16>();
}

// Calls f.operator()<tiles of heads>() for the step's group.
template <class F>
Status DispatchGroup(const Step& step, const F& f) {
  return step.group <= kTileHeads ? f.template operator()<1>() : f.template operator()<2>();
}

// Calls f.operator()<dim, tiles of heads>() for the step's shape.
template <class F>
Status DispatchShape(const Step& step, const F& f) {
  return DispatchDim(step.head_dim, [&]<int kDim>() {
    return DispatchGroup(
        step, [&]<int kHeadTiles>() { return f.template operator()<kDim, kHeadTiles>(); });
  });
}

// Calls f.operator()<Row, dim, tiles of heads>() also for the type of keys and values.
template <class F>
Status DispatchStep(const Step& step, Element type, const F& f) {
  return DispatchRows(type, step.head_dim, [&]<class Row, int kDim>() {
    return DispatchGroup(
        step, [&]<int kHeadTiles>() { return f.template operator()<Row, kDim, kHeadTiles>(); });
  });
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_LAUNCH_CUH_
