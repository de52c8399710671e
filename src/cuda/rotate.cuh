// Queries as the codes are scanned with: scaled, rotated, in bytes.
#ifndef TACTIC_SRC_CUDA_ROTATE_CUH_
#define TACTIC_SRC_CUDA_ROTATE_CUH_

#include "src/cuda/code_tile.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {

inline constexpr int kMaxRotated = 256;  // elements of a query

// Query head g as the codes are scanned with, the bytes in x. One warp.
__device__ inline void RotateQuery(const Step& step, const Unit& unit, int g, float* x) {
  const int lane = threadIdx.x & 31;
  const float scale = step.scale * kLn2;
  float norm = 0;
  for (int i = lane; i < step.head_dim; i += 32) {
    const float value = QueryElement(step, unit, g, i) * scale;
    norm += value * value;
    x[i] = (step.signs[i / 32] >> (i % 32) & 1) != 0 ? -value : value;
  }
  for (int begin = 0; begin < step.head_dim;) {
    const int size = 1 << (31 - __clz(step.head_dim - begin));
    for (int half = 1; half < size; half *= 2) {
      __syncwarp();
      for (int i = lane; i < size / 2; i += 32) {
        float* a = x + begin + i / half * 2 * half + i % half;
        const float sum = a[0] + a[half];
        a[half] = a[0] - a[half];
        a[0] = sum;
      }
    }
    __syncwarp();
    const float unit_length = rsqrtf(static_cast<float>(size));
    for (int i = lane; i < size; i += 32) x[begin + i] *= unit_length;
    begin += size;
  }
  __syncwarp();
  float most = 0;
  for (int i = lane; i < step.head_dim; i += 32) most = fmaxf(most, fabsf(x[i]));
  const float one = WarpMax(most) / 127;
  const int64_t head = static_cast<int64_t>(unit.number) * step.group + g;
  int sum = 0;
  for (int i = lane; i < step.head_dim; i += 32) {
    x[i] = one > 0 ? roundf(x[i] / one) : 0.0f;
    sum += static_cast<int>(x[i]);
  }
  sum = WarpSum(sum);
  norm = WarpSum(norm);
  if (lane == 0) step.queries[head] = {one, norm, sum};
}

// All of the group's queries for the scan, in the order of its operands. `rotated`: shared memory.
// All threads of the block.
__device__ inline void RotateQueries(const Step& step, const Unit& unit,
                                     float (*rotated)[kMaxRotated]) {
  const int thread = threadIdx.x;
  for (int g = thread >> 5; g < step.group; g += kBlockWarps)
    RotateQuery(step, unit, g, rotated[g]);
  __syncthreads();
  const int words = CodeQueryWords(step.head_dim, step.bits);
  const int groups = CodeGroups(step.bits);
  const int tiles = (step.group + kTileHeads - 1) / kTileHeads;
  uint32_t* to = step.rotated + int64_t{unit.number} * tiles * words * 32;
  for (int i = thread; i < tiles * words * 32; i += kBlockThreads) {
    const int lane = i & 31;
    const int group = i / 32 % groups;
    const int row = (lane & 3) + 4 * (i / 32 % words / groups);
    const int head = i / 32 / words * kTileHeads + (lane >> 2);
    uint32_t word = 0;
    for (int j = 0; j < 4; ++j) {
      const int x = CodeElement(step.bits, row, group, j);
      if (head < step.group && x < step.head_dim)
        word |= static_cast<uint32_t>(static_cast<uint8_t>(static_cast<int8_t>(rotated[head][x])))
                << 8 * j;
    }
    to[i] = word;
  }
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_ROTATE_CUH_
