// Stage scan (mode tactic): which clusters no head of the group needs, and estimated logits of the
// others' members from their codes.
#include "src/cuda/code_tile.cuh"
#include "src/cuda/heads.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {
namespace {

constexpr float kLargestHalf = 20 * kLog2e;  // of v / 2, in octaves
// Tiles whose codes a warp has under way at a time.
constexpr int kAhead = 4;

struct ScanShared {
  Filter filters[kMaxGroup];
  float by_warp[kBlockWarps][kMaxGroup];
  int scratch[kBlockWarps];
  int flags[2];
  uint16_t starts[kMaxSlots + 1];
};

__device__ __forceinline__ float2 MassAndToken(uint32_t bounds) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bounds));
}

// The heads of a lane: 2 t and 2 t + 1 of each tile of eight.
template <int kHeadTiles>
struct LaneHeads {
  float unit[kHeadTiles][2];    // of a product of bytes, in octaves
  float offset[kHeadTiles][2];  // that all products have
  float half[kHeadTiles][2];    // v / 2 of an error, over the square of the key's scale
  float anchor[kHeadTiles][2];

  __device__ __forceinline__ void Load(const Step& step, const Unit& unit_of, int bits) {
    const int64_t heads = int64_t{unit_of.number} * step.group;
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int head =
            min(n * kTileHeads + 2 * static_cast<int>(threadIdx.x & 3) + h, step.group - 1);
        const ScanQuery query = step.queries[heads + head];
        unit[n][h] = query.unit * kLog2e;
        offset[n][h] = -kLevelZero * query.unit * static_cast<float>(query.sum) * kLog2e;
        half[n][h] = CodeError(bits) * query.norm / 2 * kLog2e;
        anchor[n][h] = AnchorOf(step, unit_of, head);
      }
    }
  }
};

// Which of the segment's clusters are kept: thread c decides on cluster c. Leaves the mass of the
// others, and returns whether this one is.
__device__ bool FilterClusters(const Step& step, const Unit& unit, int64_t base, int clusters,
                               ScanShared& shared) {
  const int thread = threadIdx.x;
  const bool there = thread < clusters && shared.starts[thread + 1] > shared.starts[thread];
  const uint32_t* bounds = step.bounds + (base * step.slots + thread) * step.group;
  bool keep = false;
  if (there) {
    for (int g = 0; g < step.group; ++g) {
      const float2 of = MassAndToken(__ldcg(bounds + g));
      keep = keep || of.x > shared.filters[g].mass_above || of.y > shared.filters[g].token_above;
    }
  }
  if (thread < step.slots) step.kept[base * step.slots + thread] = keep ? 1 : 0;
  const int warps = (step.slots + 31) / 32;
  if (thread / 32 < warps) {
    for (int g = 0; g < step.group; ++g) {
      const float sum = WarpSum(there && !keep ? Exp2(MassAndToken(__ldcg(bounds + g)).x) : 0.0f);
      if (thread % 32 == 0) shared.by_warp[thread / 32][g] = sum;
    }
  }
  __syncthreads();
  if (thread < step.group) {
    float sum = 0;
    for (int w = 0; w < warps; ++w) sum += shared.by_warp[w][thread];
    step.skipped[base * step.group + thread] = sum;
  }
  return keep;
}

template <int kBits, int kDim, int kHeadTiles>
__global__ void __launch_bounds__(kBlockThreads) ScanKernel(const __grid_constant__ Step step) {
  extern __shared__ uint32_t bins[];  // [group][kBins], then tiles, then scores
  __shared__ ScanShared shared;
  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int r = lane >> 2;
  const int t = lane & 3;
  uint32_t* tiles = bins + step.group * kBins;  // cluster << 16 | block of the segment
  float* scores = reinterpret_cast<float*>(tiles + step.segment_size / kCodeBlock + step.slots);
  for (int i = thread; i < step.group * kBins; i += kBlockThreads) bins[i] = 0;
  const Unit unit = MakeUnit(step, blockIdx.y);
  WaitForPrevious();
  LetNextBegin();
  if (IsDense(step, unit)) return;
  const int64_t heads = int64_t{unit.number} * step.group;
  if (thread < step.group) shared.filters[thread] = step.filters[heads + thread];
  CodeQueryTile<kBits, kDim, kHeadTiles> q;
  q.Load(step.rotated + int64_t{unit.number} * kHeadTiles * CodeQueryWords(kDim, kBits) * 32, lane);
  LaneHeads<kHeadTiles> of;
  of.Load(step, unit, kBits);
  const DeviceIndex& index = *unit.index;
  constexpr int kBlock = static_cast<int>(CodeBlockBytes(kDim, kBits));
  for (int segment = blockIdx.x; segment < unit.segments; segment += gridDim.x) {
    const int64_t base = int64_t{unit.number} * step.segments + segment;
    const int clusters = segment < unit.closed ? step.slots : unit.pages;
    for (int i = thread; i <= clusters; i += kBlockThreads)
      shared.starts[i] = __ldg(index.starts + unit.Slot(segment, step.slots + 1) + i);
    for (int i = thread; i < clusters * step.group; i += kBlockThreads)
      scores[i] = __ldcg(step.scores + base * step.slots * step.group + i);
    __syncthreads();
    const bool keep = FilterClusters(step, unit, base, clusters, shared);
    int first = 0;
    int blocks = 0;
    if (keep) {
      first = shared.starts[thread] / kCodeBlock;
      blocks = (shared.starts[thread + 1] - 1) / kCodeBlock - first + 1;
    }
    int count;
    const int at = BlockScan(blocks, shared.scratch, &count);
    for (int b = 0; b < blocks; ++b)
      tiles[at + b] = static_cast<uint32_t>(thread) << 16 | static_cast<uint32_t>(first + b);
    __syncthreads();
    const uint8_t* codes =
        index.codes + unit.Slot(segment, step.segment_size) / kCodeBlock * kBlock;
    const uint8_t* scales = index.key_scales + unit.Slot(segment, step.segment_size);
    uint16_t* levels = step.levels + base * step.segment_size * step.group;
    for (int i = (thread >> 5) * kAhead; i < count; i += kBlockWarps * kAhead) {
      CodeTile<kBits, kDim> tile[kAhead];
      float scale[kAhead][2];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const uint32_t entry = tiles[min(i + a, count - 1)];
        const int cluster = entry >> 16;
        const int block = entry & 0xffffu;
        bool there[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int key = block * kCodeBlock + r + 8 * k;
          there[k] = i + a < count && key >= shared.starts[cluster] &&
                     key < shared.starts[cluster + 1];
          scale[a][k] = there[k] ? __uint_as_float(uint32_t{__ldg(scales + key)} << 20) *
                                       kByteFloatUnit
                                 : -1.0f;
        }
        tile[a].Load(codes + int64_t{block} * kBlock, lane, there);
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (i + a >= count) break;
        const uint32_t entry = tiles[i + a];
        const float* score = scores + static_cast<int>(entry >> 16) * step.group;
        int dots[kHeadTiles][4];
        q.Score(tile[a], dots);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float s = scale[a][k >> 1];
          if (s < 0) continue;  // not a member
          const int key = static_cast<int>(entry & 0xffffu) * kCodeBlock + r + 8 * (k >> 1);
          const int h = k & 1;
#pragma unroll
          for (int n = 0; n < kHeadTiles; ++n) {
            const int head = n * kTileHeads + 2 * t + h;
            if (head >= step.group) continue;
            const float residual =
                s * (static_cast<float>(dots[n][k]) * of.unit[n][h] + of.offset[n][h]);
            const float half = fminf(of.half[n][h] * s * s, kLargestHalf);
            const float x = Capped(score[head] + residual, step.softcap) + half - of.anchor[n][h];
            const int level = LevelOf(x);
            levels[key * step.group + head] = static_cast<uint16_t>(level);
            atomicAdd(bins + head * kBins + level / kLevelsPerBin, 1u);
          }
        }
      }
    }
    __syncthreads();
  }
  uint32_t* all = step.key_bins + heads * kBins;
  for (int i = thread; i < step.group * kBins; i += kBlockThreads) {
    if (bins[i] != 0) atomicAdd(all + i, bins[i]);
  }
  if (EndsLast(step, unit, shared.flags)) PlanUnit(step, unit, 0, shared.flags);
}

}  // namespace

Status LaunchScan(const Step& step, int bits, Stream stream) {
  const size_t words = static_cast<size_t>(step.group) * kBins + step.segment_size / kCodeBlock +
                       step.slots + static_cast<size_t>(step.slots) * step.group;
  const size_t shared = words * sizeof(uint32_t);
  return DispatchShape(step, [&]<int kDim, int kHeadTiles>() {
    if (bits == 2)
      return Launch(ScanKernel<2, kDim, kHeadTiles>, step, step.parts, shared, stream);
    if (bits == 3)
      return Launch(ScanKernel<3, kDim, kHeadTiles>, step, step.parts, shared, stream);
    return Launch(ScanKernel<4, kDim, kHeadTiles>, step, step.parts, shared, stream);
  });
}

}  // namespace tactic::cuda
