// The signs of the rotation (Rotate in codes.h) as the kernels take them.
#ifndef TACTIC_SRC_CUDA_SIGNS_H_
#define TACTIC_SRC_CUDA_SIGNS_H_

#include <cstdint>

#include "src/random.h"

namespace tactic::cuda {

// Bit x % 32 of signs[x / 32] flips element x. REQUIRES: head_dim <= 256.
inline void RotationSigns(int head_dim, uint32_t (&signs)[8]) {
  for (uint32_t& word : signs) word = 0;
  Random random(0x7AC71C);  // codes.h
  for (int x = 0; x < head_dim; ++x)
    signs[x / 32] |= static_cast<uint32_t>(random.Next() >> 63) << (x % 32);
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_SIGNS_H_
