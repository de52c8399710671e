// Stage select of mode paper: the prefix of clusters that reaches the target, of all heads together
// (section 4.5 of the paper).
//
// The logits of the clusters of heads are where stage sample put them. What lies beyond the heads
// is scored when it is attended to.
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/step.cuh"
#include "src/cuda/tile_list.cuh"

namespace tactic::cuda {
namespace {

template <int kHeads>
__global__ void __launch_bounds__(kBlockThreads, 6) CutKernel(const __grid_constant__ Step step) {
  __shared__ PaperRanks ranks[kMaxGroup];
  __shared__ uint64_t scratch[kBlockWarps];
  const int thread = threadIdx.x;
  // What rank has left is there already (of what is read densely, too).
  const SpanScores<kHeads> scores(step, blockIdx.y, blockIdx.x);
  const Unit unit = ReadUnit(step, blockIdx.y);
  SpanCluster<kHeads> cluster(step, unit, blockIdx.x, scores);
  WaitForPrevious();
  LetNextBegin();
  if (IsDense(step, unit)) return;
  if (thread < step.group) ranks[thread] = step.ranks[int64_t{unit.number} * step.group + thread];
  __syncthreads();
  for (int span = blockIdx.x; span < unit.spans; span += gridDim.x) {
    uint32_t owners = 0;
    bool head = false;
#pragma unroll
    for (int g = 0; g < kHeads; ++g) {
      if (g >= step.group) break;
      owners |= (cluster.bins[g] >= ranks[g].cut_bin ? 1u : 0u) << g;
      head = head || cluster.bins[g] >= ranks[g].head_bin;
    }
    const Listing as = owners == 0 ? Listing::kNot : head ? Listing::kScored : Listing::kFresh;
    ListTiles(step, unit, span, cluster.members, as, false, head, owners, scratch,
              step.selected + unit.number);
    const int next = span + gridDim.x;
    cluster = SpanCluster<kHeads>(step, unit, next, SpanScores<kHeads>(step, unit.number, next));
  }
}

}  // namespace

Status LaunchCut(const Step& step, Stream stream) {
  return DispatchHeads(step, [&]<int kHeads>() {
    return Launch(CutKernel<kHeads>, step, UnitGrid(step, step.parts), 0, stream);
  });
}

}  // namespace tactic::cuda
