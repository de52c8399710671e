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

// Merges `count` states, which are `stride` floats apart, of every head of the group. kGlobal: they
// are other blocks', in device memory. to(g) makes what gets the result of head g: done(x, sum,
// merged), called with elements x and x + 1 of the sums, for all of them in twos. All threads of
// the block.
//
// A warp does 64 elements of a head at a time, so nobody waits for other warps: each half of it
// reads every other state, and each of its lanes looks at the head of one. A unit may have more
// than a hundred states, of which 32 are under way at once, or 16 of long rows, whose blocks have
// work for every warp. Beyond the last state the last is read again, and weighs nothing.
template <int kDim, bool kGlobal, class To>
__device__ void MergeStates(const float* states, int count, int stride, int group, const To& to) {
  constexpr int kAtOnce = kGlobal ? (kDim <= 64 ? 32 : 16) : kBlockWarps;
  constexpr int kEach = kAtOnce / 2;  // of a half of the warp
  constexpr int kPieces = (kDim + 63) / 64;
  static_assert(kDim % 4 == 0 && kAtOnce <= 32);
  const int thread = OnlyHere(threadIdx.x);
  stride = OnlyHere(stride);
  group = OnlyHere(group);
  count = OnlyHere(count);
  const int half = thread >> 4 & 1;
  const int lane = thread & 15;
  const auto load = [](const float* from) {
    const auto* at = reinterpret_cast<const float4*>(from);
    return kGlobal ? __ldcg(at) : *at;
  };
  for (int task = thread >> 5; task < group * kPieces; task += kBlockWarps) {
    const int g = task / kPieces;
    const int x = task % kPieces * 64 + 4 * lane;
    const float* of = states + g * kStateSize<kDim>;
    const float* elements = of + min(x, kDim - 4);
    auto done = to(g);
    MergedHead all = {kNothing, 0, 0, 0};
    float4 sum = {0, 0, 0, 0};
    for (int first = half; first - half < count; first += kAtOnce) {
      // The lane's state is the half's number `lane`.
      float4 head = {kNothing, 0, 0, 0};
      const int mine = first + 2 * lane;
      if (lane < kEach && mine < count) head = load(of + mine * stride + kDim);
      float4 sums[kEach];
#pragma unroll
      for (int k = 0; k < kEach; ++k)
        sums[k] = load(elements + min(first + 2 * k, count - 1) * stride);
      const float max = fmaxf(all.max, WarpMax(head.x));
      const float before = Exp2(all.max - max);
      const float f = Exp2(head.x - max);
      // Of this lane's states: added up at the end.
      all = {max, before * all.weights + f * head.y, before * all.rows + f * head.z,
             all.own + head.w};
      sum = {before * sum.x, before * sum.y, before * sum.z, before * sum.w};
#pragma unroll
      for (int k = 0; k < kEach; ++k) {
        const float of_state = __shfl_sync(kAllLanes, f, k, 16);
        sum.x += of_state * sums[k].x;
        sum.y += of_state * sums[k].y;
        sum.z += of_state * sums[k].z;
        sum.w += of_state * sums[k].w;
      }
    }
    all = {all.max, WarpSum(all.weights), WarpSum(all.rows), WarpSum(all.own)};
    // A half ends two elements of the four.
    float2 ends = half == 0 ? float2{sum.x, sum.y} : float2{sum.z, sum.w};
    ends.x += __shfl_xor_sync(kAllLanes, half == 0 ? sum.z : sum.x, 16);
    ends.y += __shfl_xor_sync(kAllLanes, half == 0 ? sum.w : sum.y, 16);
    if (x < kDim) done(x + 2 * half, ends, all);
  }
  __syncthreads();
}

// What becomes of a unit's merged heads: the output, and what a head did.
struct Finish {
  const Step& step;
  const Unit& unit;
  bool dense;
  int union_rows;

  // One head's. What its report needs of other stages is on its way while states are merged.
  struct Head {
    const Finish& of;
    int g;
    float anchor = 0;
    float own_mass = 0;
    int own_rows = 0;
    float p_hat = -1;
    int rounds = 0;

    __device__ __forceinline__ Head(const Finish& of, int g) : of(of), g(g) {
      if (of.dense) return;
      const Step& step = of.step;
      const int64_t head = Number();
      anchor = AnchorOf(step, of.unit, g);
      if (step.mode == Mode::kTactic) {
        const HeadMass& m = step.masses[head];
        own_mass = m.exact;
        own_rows = m.rows;
        p_hat = Believed(m);
        rounds = m.rounds;
      } else {
        own_mass = step.ranks[head].own_mass;
        own_rows = step.ranks[head].own_rows;
      }
    }
    __device__ __forceinline__ int64_t Number() const {
      return int64_t{of.unit.number} * of.step.group + g;
    }

    // Elements x and x + 1.
    __device__ __forceinline__ void operator()(int x, float2 sum, const MergedHead& merged) const {
      const Step& step = of.step;
      const float scale = merged.weights > 0 ? 1 / merged.weights : 0.0f;
      const int64_t at = Number() * step.head_dim + x;
      WriteElement(step.out, step.out_type, at, sum.x * scale);
      WriteElement(step.out, step.out_type, at + 1, sum.y * scale);
      if (x != 0) return;
      DeviceReport report;
      report.union_rows = of.union_rows;
      report.union_lse = (merged.max + log2f(merged.rows)) * kLn2;
      report.own_rows = report.union_rows;
      report.own_lse = report.union_lse;
      report.p_hat = 1;
      report.rounds = 0;
      if (!of.dense) {
        report.own_rows = own_rows + of.unit.forced;
        // Mode paper knows of fresh rows only now.
        report.own_lse = (anchor + log2f(own_mass + merged.own)) * kLn2;
        report.p_hat = p_hat;
        report.rounds = rounds;
      }
      step.reports[Number()] = report;
      if (g != 0) return;
      step.listed[2 * of.unit.number] = of.dense ? 0 : of.unit.forced;
      step.listed[2 * of.unit.number + 1] = of.dense ? 0 : of.unit.spans;
    }
  };
  __device__ __forceinline__ Head operator()(int g) const { return Head(*this, g); }
};

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_COMBINE_CUH_
