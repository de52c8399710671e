// Stage scan (mode tactic): which clusters no head of the group needs, and estimated logits of the
// others' members from their codes.
//
// Products of codes and queries are integers on tensor cores (m16n8k32, unsigned levels times signed
// query bytes): exactly those of the CPU. A code row (codes.h) has four bytes of each of 16 keys;
// permutations of bytes turn two to four bits into levels, four elements at a time, and the query is
// laid out once in the order in which they come.
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {
namespace {

constexpr float kLargestHalf = 20;  // of v / 2, in nats

__device__ __forceinline__ void MultiplyBytes(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                              uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Levels of a code book as bytes of registers, by code. The negative of a level is kTop minus it.
inline constexpr uint32_t kTop = 0x7f7f7f7f;
__device__ __forceinline__ constexpr uint32_t Bytes(int a, int b, int c, int d) {
  return static_cast<uint32_t>(a) | static_cast<uint32_t>(b) << 8 | static_cast<uint32_t>(c) << 16 |
         static_cast<uint32_t>(d) << 24;
}

// How codes of kBits are read: a lane holds, of a key, the words of code rows t, t + 4, ...; each
// gives kGroups registers of four levels. Element(row, i, j): which element byte j of register i is.
template <int kBits, int kDim>
struct CodeTile;

template <int kDim>
struct CodeTile<2, kDim> {
  static constexpr int kRows = static_cast<int>(CodeRows(kDim, 2));
  static constexpr int kGroups = 4;
  static constexpr int kWords = (kRows + 3) / 4;
  uint32_t low[kWords];
  uint32_t high[kWords];

  static __device__ __forceinline__ int Element(int row, int i, int j) {
    // Register i: nibbles of the word shifted by 2 (i / 2), lower or upper half.
    const int byte = i % 2 * 2 + j / 2;
    const int quad = 4 * row + i / 2 + j % 2 * 2;
    return 4 * quad + byte;
  }
  __device__ __forceinline__ void Load(const uint8_t* block, int lane, bool low_there,
                                       bool high_there) {
    const int t = lane & 3;
    const uint8_t* at = block + 4 * (lane >> 2);
#pragma unroll
    for (int m = 0; m < kWords; ++m) {
      const bool there = t + 4 * m < kRows;
      low[m] = there && low_there ? Load4(at + (t + 4 * m) * kCodeRow) : 0;
      high[m] = there && high_there ? Load4(at + 32 + (t + 4 * m) * kCodeRow) : 0;
    }
  }
  __device__ __forceinline__ void Open(uint32_t word, uint32_t (&levels)[4]) const {
    constexpr CodeBook kBook = kCodeBooks[2];
    constexpr uint32_t kTable = Bytes(127 - kBook.level[1], 127 - kBook.level[0], kBook.level[0],
                                      kBook.level[1]);
    const uint32_t even = word & 0x33333333u;
    const uint32_t odd = word >> 2 & 0x33333333u;
    levels[0] = __byte_perm(kTable, 0, even);
    levels[1] = __byte_perm(kTable, 0, even >> 16);
    levels[2] = __byte_perm(kTable, 0, odd);
    levels[3] = __byte_perm(kTable, 0, odd >> 16);
  }
  __device__ __forceinline__ void OpenLow(int m, uint32_t (&levels)[4]) const {
    Open(low[m], levels);
  }
  __device__ __forceinline__ void OpenHigh(int m, uint32_t (&levels)[4]) const {
    Open(high[m], levels);
  }
};

template <int kDim>
struct CodeTile<3, kDim> {
  static constexpr int kRows = (kDim / 4 + 3) / 4;  // of magnitudes; signs follow
  static constexpr int kGroups = 4;
  static constexpr int kWords = (kRows + 3) / 4;
  uint32_t low[kWords], low_signs[kWords];
  uint32_t high[kWords], high_signs[kWords];

  static __device__ __forceinline__ int Element(int row, int i, int j) {
    return CodeTile<2, kDim>::Element(row, i, j);
  }
  __device__ __forceinline__ void Load(const uint8_t* block, int lane, bool low_there,
                                       bool high_there) {
    const int t = lane & 3;
    const uint8_t* at = block + 4 * (lane >> 2);
#pragma unroll
    for (int m = 0; m < kWords; ++m) {
      const int row = t + 4 * m;
      const bool there = row < kRows;
      const uint8_t* signs = at + (kRows + row / 2) * kCodeRow;
      // A row of signs serves two of magnitudes: the second has the upper half of each byte.
      const int shift = row % 2 * 4;
      low[m] = there && low_there ? Load4(at + row * kCodeRow) : 0;
      high[m] = there && high_there ? Load4(at + 32 + row * kCodeRow) : 0;
      low_signs[m] = there && low_there ? Load4(signs) >> shift : 0;
      high_signs[m] = there && high_there ? Load4(signs + 32) >> shift : 0;
    }
  }
  __device__ __forceinline__ void Open(uint32_t word, uint32_t signs,
                                       uint32_t (&levels)[4]) const {
    constexpr CodeBook kBook = kCodeBooks[3];
    constexpr uint32_t kPositive =
        Bytes(kBook.level[0], kBook.level[1], kBook.level[2], kBook.level[3]);
    constexpr uint32_t kNegative = kTop - kPositive;
    // Bit k of a byte of signs goes on top of the magnitude of quad k.
    const uint32_t even =
        (word & 0x33333333u) | (signs << 2 & 0x04040404u) | (signs << 4 & 0x40404040u);
    const uint32_t odd =
        (word >> 2 & 0x33333333u) | (signs << 1 & 0x04040404u) | (signs << 3 & 0x40404040u);
    levels[0] = __byte_perm(kPositive, kNegative, even);
    levels[1] = __byte_perm(kPositive, kNegative, even >> 16);
    levels[2] = __byte_perm(kPositive, kNegative, odd);
    levels[3] = __byte_perm(kPositive, kNegative, odd >> 16);
  }
  __device__ __forceinline__ void OpenLow(int m, uint32_t (&levels)[4]) const {
    Open(low[m], low_signs[m], levels);
  }
  __device__ __forceinline__ void OpenHigh(int m, uint32_t (&levels)[4]) const {
    Open(high[m], high_signs[m], levels);
  }
};

template <int kDim>
struct CodeTile<4, kDim> {
  static constexpr int kRows = static_cast<int>(CodeRows(kDim, 4));
  static constexpr int kGroups = 2;
  static constexpr int kWords = (kRows + 3) / 4;
  uint32_t low[kWords];
  uint32_t high[kWords];

  static __device__ __forceinline__ int Element(int row, int i, int j) {
    return 4 * (2 * row + j % 2) + i * 2 + j / 2;
  }
  __device__ __forceinline__ void Load(const uint8_t* block, int lane, bool low_there,
                                       bool high_there) {
    const int t = lane & 3;
    const uint8_t* at = block + 4 * (lane >> 2);
#pragma unroll
    for (int m = 0; m < kWords; ++m) {
      const bool there = t + 4 * m < kRows;
      low[m] = there && low_there ? Load4(at + (t + 4 * m) * kCodeRow) : 0;
      high[m] = there && high_there ? Load4(at + 32 + (t + 4 * m) * kCodeRow) : 0;
    }
  }
  // A selector whose top bit is set gives the sign of the byte it selects, which is 0 for every
  // level: so each half of the codes has a table of its own, and their results are joined.
  static __device__ __forceinline__ uint32_t Sixteen(uint32_t codes) {
    constexpr CodeBook kBook = kCodeBooks[4];
    constexpr uint32_t kHigh0 =
        Bytes(kBook.level[0], kBook.level[1], kBook.level[2], kBook.level[3]);
    constexpr uint32_t kHigh1 =
        Bytes(kBook.level[4], kBook.level[5], kBook.level[6], kBook.level[7]);
    constexpr uint32_t kLow0 =
        kTop - Bytes(kBook.level[7], kBook.level[6], kBook.level[5], kBook.level[4]);
    constexpr uint32_t kLow1 =
        kTop - Bytes(kBook.level[3], kBook.level[2], kBook.level[1], kBook.level[0]);
    uint32_t low, high;
    asm("prmt.b32 %0,%1,%2,%3;" : "=r"(low) : "r"(kLow0), "r"(kLow1), "r"(codes));
    asm("prmt.b32 %0,%1,%2,%3;" : "=r"(high) : "r"(kHigh0), "r"(kHigh1), "r"(codes ^ 0x8888u));
    return low | high;
  }
  __device__ __forceinline__ void OpenLow(int m, uint32_t (&levels)[2]) const {
    levels[0] = Sixteen(low[m] & 0xffffu);
    levels[1] = Sixteen(low[m] >> 16);
  }
  __device__ __forceinline__ void OpenHigh(int m, uint32_t (&levels)[2]) const {
    levels[0] = Sixteen(high[m] & 0xffffu);
    levels[1] = Sixteen(high[m] >> 16);
  }
};

// The rotated queries in the order of a CodeTile's levels.
template <int kBits, int kDim, int kHeadTiles>
struct CodeQueryTile {
  using Tile = CodeTile<kBits, kDim>;
  uint32_t b[kHeadTiles][Tile::kWords][Tile::kGroups];

  __device__ __forceinline__ void Load(const int8_t* rotated, int group, int lane) {
    const int r = lane >> 2;
    const int t = lane & 3;
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      const int head = n * kTileHeads + r;
#pragma unroll
      for (int m = 0; m < Tile::kWords; ++m) {
#pragma unroll
        for (int i = 0; i < Tile::kGroups; ++i) {
          uint32_t word = 0;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int x = Tile::Element(t + 4 * m, i, j);
            if (head < group && x < kDim)
              word |= static_cast<uint32_t>(static_cast<uint8_t>(rotated[head * kDim + x])) << 8 * j;
          }
          b[n][m][i] = word;
        }
      }
    }
  }

  __device__ __forceinline__ void Score(const Tile& tile, int (&dots)[kHeadTiles][4]) const {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) dots[n][0] = dots[n][1] = dots[n][2] = dots[n][3] = 0;
#pragma unroll
    for (int m = 0; m < Tile::kWords; ++m) {
      uint32_t low[Tile::kGroups];
      uint32_t high[Tile::kGroups];
      tile.OpenLow(m, low);
      tile.OpenHigh(m, high);
#pragma unroll
      for (int i = 0; i < Tile::kGroups; i += 2) {
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n)
          MultiplyBytes(dots[n], low[i], high[i], low[i + 1], high[i + 1], b[n][m][i],
                        b[n][m][i + 1]);
      }
    }
  }
};

struct ScanShared {
  float mass_above[kMaxGroup];  // clusters with more are kept, in octaves over the anchor
  float token_above[kMaxGroup];
  int scratch[kBlockWarps];
  float skipped[kBlockWarps][kMaxGroup];
  int kept[kMaxSlots];
};

// From how much estimated mass on a cluster is kept: the smallest are skipped while, taken at the
// upper end of their bins, they add up to no more than the budget. One warp.
__device__ void FindSkipped(const Step& step, const Unit& unit, int g, ScanShared& shared) {
  const int lane = threadIdx.x & 31;
  const int64_t parts = int64_t{unit.number} * step.parts * step.group + g;
  const float at_least = SumOver(step.part_forced + parts, step.parts, step.group) +
                         SumOver(step.part_floors + parts, step.parts, step.group);
  const float rest = (1 - step.target) * at_least;
  constexpr int kPerLane = kMassBins / 32;
  const uint32_t* bins =
      step.cluster_bins + (int64_t{unit.number} * step.group + g) * kBins + lane * kPerLane;
  float masses[kPerLane];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    sum += static_cast<float>(__ldcg(bins + i)) * Exp2(LogitAboveMassBin(lane * kPerLane + i));
    masses[i] = sum;
  }
  const float before = WarpScan(sum, lane) - sum;
  int skipped = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) skipped += before + masses[i] <= step.skip_share * rest;
  skipped = WarpSum(skipped);
  if (lane == 0) {
    shared.mass_above[g] =
        skipped > 0 ? LogitAboveMassBin(skipped - 1) : -2 * kBelowAnchor;
    shared.token_above[g] = log2f(step.skip_token * rest);
  }
}

__device__ __forceinline__ float2 MassAndToken(uint32_t bounds) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bounds));
}

// Estimated logits of one cluster's members: levels to device memory, counts to the bins.
template <int kBits, int kDim, int kHeadTiles>
__device__ void ScanCluster(const Step& step, const Unit& unit, int segment, int cluster,
                            const CodeQueryTile<kBits, kDim, kHeadTiles>& q,
                            const float (&units)[kHeadTiles][2],
                            const float (&offsets)[kHeadTiles][2],
                            const float (&half_variances)[kHeadTiles][2],
                            const float (&anchors)[kHeadTiles][2], uint32_t* bins) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  const int t = lane & 3;
  const DeviceIndex& index = *unit.index;
  const uint16_t* starts = index.starts + unit.Slot(segment, step.slots + 1) + cluster;
  const int begin = __ldg(starts);
  const int end = __ldg(starts + 1);
  const uint8_t* scales = index.key_scales + unit.Slot(segment, step.segment_size);
  constexpr int kBlock = static_cast<int>(CodeBlockBytes(kDim, kBits));
  const uint8_t* codes =
      index.codes + unit.Slot(segment, step.segment_size) / kCodeBlock * kBlock;
  const int64_t unit_base = int64_t{unit.number} * step.segments;
  const float* scores =
      step.scores + ((unit_base + segment) * step.slots + cluster) * step.group;
  uint16_t* levels =
      step.levels + (unit_base + segment) * step.segment_size * step.group;
  float score[kHeadTiles][2];
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = n * kTileHeads + 2 * t + h;
      score[n][h] = head < step.group ? __ldcg(scores + head) : 0;
    }
  }
  for (int block = begin / kCodeBlock; block * kCodeBlock < end; ++block) {
    const int key[2] = {block * kCodeBlock + r, block * kCodeBlock + r + 8};
    const bool there[2] = {key[0] >= begin && key[0] < end, key[1] >= begin && key[1] < end};
    CodeTile<kBits, kDim> tile;
    tile.Load(codes + int64_t{block} * kBlock, lane, there[0], there[1]);
    float scale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      scale[i] = there[i] ? __uint_as_float(uint32_t{__ldg(scales + key[i])} << 20) *
                                kByteFloatUnit
                          : 0.0f;
    }
    int dots[kHeadTiles][4];
    q.Score(tile, dots);
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int i = k >> 1;
        const int h = k & 1;
        const int head = n * kTileHeads + 2 * t + h;
        if (!there[i] || head >= step.group) continue;
        const float residual =
            scale[i] * (static_cast<float>(dots[n][k]) * units[n][h] + offsets[n][h]);
        const float half =
            fminf(half_variances[n][h] * scale[i] * scale[i], kLargestHalf * kLog2e);
        const float x = Capped(score[n][h] + residual, step.softcap) + half - anchors[n][h];
        const int level = LevelOf(x);
        levels[key[i] * step.group + head] = static_cast<uint16_t>(level);
        atomicAdd(bins + head * kBins + level / kLevelsPerBin, 1u);
      }
    }
  }
}

template <int kBits, int kDim, int kHeadTiles>
__global__ void __launch_bounds__(kBlockThreads) ScanKernel(const __grid_constant__ Step step) {
  extern __shared__ uint32_t bins[];  // [group][kBins]
  __shared__ ScanShared shared;
  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int warp = thread >> 5;
  for (int i = thread; i < step.group * kBins; i += kBlockThreads) bins[i] = 0;
  WaitForPrevious();
  LetNextBegin();
  const Unit unit = MakeUnit(step, blockIdx.y);
  if (IsDense(step, unit)) return;
  for (int g = warp; g < step.group; g += kBlockWarps) FindSkipped(step, unit, g, shared);
  const int64_t heads = int64_t{unit.number} * step.group;
  CodeQueryTile<kBits, kDim, kHeadTiles> q;
  q.Load(step.rotated + heads * kDim, step.group, lane);
  float units[kHeadTiles][2];
  float offsets[kHeadTiles][2];
  float half_variances[kHeadTiles][2];
  float anchors[kHeadTiles][2];
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = min(n * kTileHeads + 2 * (lane & 3) + h, step.group - 1);
      const ScanQuery query = step.queries[heads + head];
      units[n][h] = query.unit * kLog2e;
      offsets[n][h] = -kLevelZero * query.unit * static_cast<float>(query.sum) * kLog2e;
      half_variances[n][h] = CodeError(kBits) * query.norm / 2 * kLog2e;
      anchors[n][h] = AnchorOf(step, unit, head);
    }
  }
  __syncthreads();
  const uint16_t* all_starts = unit.index->starts;
  for (int segment = blockIdx.x; segment < unit.segments; segment += gridDim.x) {
    const int64_t base = int64_t{unit.number} * step.segments + segment;
    const uint16_t* starts = all_starts + unit.Slot(segment, step.slots + 1);
    const int clusters = segment < unit.closed ? step.slots : unit.pages;
    // One thread for each cluster.
    bool keep = false;
    const bool there = thread < clusters && __ldg(starts + thread + 1) > __ldg(starts + thread);
    const uint32_t* bounds = step.bounds + (base * step.slots + thread) * step.group;
    if (there) {
      for (int g = 0; g < step.group; ++g) {
        const float2 of = MassAndToken(bounds[g]);
        keep = keep || of.x > shared.mass_above[g] || of.y > shared.token_above[g];
      }
    }
    if (thread < step.slots) step.kept[base * step.slots + thread] = keep ? 1 : 0;
    for (int g = 0; g < step.group; ++g) {
      const float sum = WarpSum(there && !keep ? Exp2(MassAndToken(bounds[g]).x) : 0.0f);
      if (lane == 0) shared.skipped[warp][g] = sum;
    }
    int count;
    const int at = BlockScan(keep ? 1 : 0, shared.scratch, &count);
    if (keep) shared.kept[at] = thread;
    __syncthreads();
    if (thread < step.group) {
      float sum = 0;
      for (int w = 0; w < kBlockWarps; ++w) sum += shared.skipped[w][thread];
      step.skipped[base * step.group + thread] = sum;
    }
    for (int i = warp; i < count; i += kBlockWarps) {
      ScanCluster<kBits, kDim, kHeadTiles>(step, unit, segment, shared.kept[i], q, units, offsets,
                                           half_variances, anchors, bins);
    }
    __syncthreads();
  }
  uint32_t* all = step.key_bins + heads * kBins;
  for (int i = thread; i < step.group * kBins; i += kBlockThreads) {
    if (bins[i] != 0) atomicAdd(all + i, bins[i]);
  }
}

}  // namespace

Status LaunchScan(const Step& step, int bits, Stream stream) {
  const size_t shared = static_cast<size_t>(step.group) * kBins * sizeof(uint32_t);
  return DispatchShape(step, [&]<int kDim, int kHeadTiles>() {
    if (bits == 2) return Launch(ScanKernel<2, kDim, kHeadTiles>, step, step.parts,
                  shared, stream);
    if (bits == 3) return Launch(ScanKernel<3, kDim, kHeadTiles>, step, step.parts,
                  shared, stream);
    return Launch(ScanKernel<4, kDim, kHeadTiles>, step, step.parts,
                  shared, stream);
  });
}

}  // namespace tactic::cuda
