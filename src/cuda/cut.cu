// Stage select of mode paper: the prefix of clusters that reaches the target, of all heads together
// (section 4.5 of the paper).
//
// The logits of the clusters of heads are where stage sample put them, whose order is repeated
// here. What lies beyond the heads is scored when it is attended to.
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/span_list.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {
namespace {

template <int kHeads>
__global__ void __launch_bounds__(kBlockThreads, 6) CutKernel(const __grid_constant__ Step step) {
  __shared__ ListShared shared;
  const int thread = threadIdx.x;
  const Unit unit = ReadUnit(step, blockIdx.y);
  WaitForPrevious();
  LetNextBegin();
  if (IsDense(step, unit)) return;
  if (thread < step.group)
    shared.ranks[thread] = step.ranks[int64_t{unit.number} * step.group + thread];
  __syncthreads();
  for (int span = blockIdx.x; span < unit.spans; span += gridDim.x) {
    const SpanCluster<kHeads> cluster(step, unit, span);
    bool wanted = false;
    bool head = false;
    if (cluster.Rows() > 0) {
#pragma unroll
      for (int g = 0; g < kHeads; ++g) {
        if (g >= step.group) break;
        wanted = wanted || cluster.bins[g] >= shared.ranks[g].cut_bin;
        head = head || cluster.bins[g] >= shared.ranks[g].head_bin;
      }
    }
    const int rows = wanted ? cluster.Rows() : 0;
    uint64_t all;
    const uint64_t before =
        BlockScan(Counts(wanted ? 1 : 0, rows, head ? cluster.Rows() : 0, 0), shared.scratch, &all);
    if (rows > 0) {
      const uint32_t as = head ? ListedRow(CountOf<2>(before), 0) : FreshRow(thread, 0);
      shared.listed[CountOf<0>(before)] = {cluster.members.begin, rows, CountOf<1>(before), as,
                                           head ? 1 << 16 : 0};
    }
    __syncthreads();
    ListRows(step, unit, span, CountOf<0>(all), shared);
    if (thread == 0) {
      step.counts[int64_t{unit.number} * step.spans + span] = CountOf<1>(all);
      atomicAdd(step.selected_rows + unit.number, CountOf<1>(all));
    }
  }
}

}  // namespace

Status LaunchCut(const Step& step, Stream stream) {
  return DispatchHeads(step, [&]<int kHeads>() {
    return Launch(CutKernel<kHeads>, step, UnitGrid(step, step.parts), 0, stream);
  });
}

}  // namespace tactic::cuda
