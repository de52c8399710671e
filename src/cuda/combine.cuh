// Stage combine: softmax states merged, the output, and what a head did.
#ifndef TACTIC_SRC_CUDA_COMBINE_CUH_
#define TACTIC_SRC_CUDA_COMBINE_CUH_

#include "src/cuda/heads.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {

struct MergedHead {
  float max;
  float weights;
  float rows;  // weights without the tail's
  float own;   // see SoftmaxTile::Store
};

// Merges `count` states, which are `stride` floats apart, of every head of the group; done(g, x,
// sum, merged) gets elements x and x + 1 of the sums. kGlobal: they are other blocks', in device
// memory. `factors`: group * count floats of shared memory. All threads of the block.
template <int kDim, bool kGlobal, class Done>
__device__ void MergeStates(const float* states, int count, int64_t stride, int group,
                            float* factors, MergedHead* merged, const Done& done) {
  constexpr int kSize = kStateSize<kDim>;
  const int lane = threadIdx.x & 31;
  for (int g = threadIdx.x >> 5; g < group; g += kBlockWarps) {
    const float* of = states + g * kSize + kDim;
    MergedHead mine = {kNothing, 0, 0, 0};  // of this lane's states
    for (int k = lane; k < count; k += 32) {
      const auto* at = reinterpret_cast<const float4*>(of + k * stride);
      const float4 state = kGlobal ? __ldcg(at) : *at;
      factors[g * count + k] = state.x;
      const float max = fmaxf(mine.max, state.x);
      const float before = Exp2(mine.max - max);
      const float f = Exp2(state.x - max);
      mine = {max, before * mine.weights + f * state.y, before * mine.rows + f * state.z,
              mine.own + state.w};
    }
    const float max = WarpMax(mine.max);
    for (int k = lane; k < count; k += 32)
      factors[g * count + k] = Exp2(factors[g * count + k] - max);
    const float f = Exp2(mine.max - max);
    const float weights = WarpSum(f * mine.weights);
    const float rows = WarpSum(f * mine.rows);
    const float own = WarpSum(mine.own);
    if (lane == 0) merged[g] = {max, weights, rows, own};
  }
  __syncthreads();
  // Two elements to a thread.
  for (int i = 2 * threadIdx.x; i < group * kDim; i += 2 * kBlockThreads) {
    const int g = i / kDim;
    const int x = i % kDim;
    const float* of = states + g * kSize + x;
    float2 sum = {0, 0};
#pragma unroll 16
    for (int k = 0; k < count; ++k) {
      const auto* at = reinterpret_cast<const float2*>(of + k * stride);
      const float2 mine = kGlobal ? __ldcg(at) : *at;
      const float f = factors[g * count + k];
      sum.x += f * mine.x;
      sum.y += f * mine.y;
    }
    done(g, x, sum, merged[g]);
  }
  __syncthreads();
}

// What a head of a unit that was not read densely is known to have selected.
__device__ inline void ReportOwn(const Step& step, const Unit& unit, int g,
                                 const MergedHead& merged, DeviceReport* report) {
  const int64_t head = static_cast<int64_t>(unit.number) * step.group + g;
  float exact = 0;
  if (step.mode == Mode::kTactic) {
    const HeadMass& m = step.masses[head];
    exact = m.exact;
    report->own_rows = m.rows + unit.forced;
    report->p_hat = Believed(m);
    report->rounds = m.rounds;
  } else {
    exact = step.ranks[head].own_mass + merged.own;
    report->own_rows = step.ranks[head].own_rows + unit.forced;
    report->p_hat = -1;
  }
  report->own_lse = (AnchorOf(step, unit, g) + log2f(exact)) * kLn2;
}

// Elements x and x + 1 of the output, and once for a head its report.
template <int kDim>
__device__ void Finish(const Step& step, const Unit& unit, bool dense, int union_rows, int g, int x,
                       float2 sum, const MergedHead& merged) {
  const int64_t head = static_cast<int64_t>(unit.number) * step.group + g;
  const float scale = merged.weights > 0 ? 1 / merged.weights : 0.0f;
  WriteElement(step.out, step.out_type, head * kDim + x, sum.x * scale);
  WriteElement(step.out, step.out_type, head * kDim + x + 1, sum.y * scale);
  if (x != 0) return;
  DeviceReport report;
  report.union_rows = union_rows;
  report.union_lse = (merged.max + log2f(merged.rows)) * kLn2;
  report.own_rows = report.union_rows;
  report.own_lse = report.union_lse;
  report.p_hat = 1;
  report.rounds = 0;
  if (!dense) ReportOwn(step, unit, g, merged, &report);
  step.reports[head] = report;
  if (g != 0) return;
  step.listed[2 * unit.number] = dense ? 0 : unit.forced;
  step.listed[2 * unit.number + 1] = dense ? 0 : unit.spans;
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_COMBINE_CUH_
