// What the stages of a step left in device memory, for tests.
#ifndef TACTIC_SRC_CUDA_DECODER_ACCESS_H_
#define TACTIC_SRC_CUDA_DECODER_ACCESS_H_

#include "src/cuda/step.h"

namespace tactic::cuda {

struct DecoderAccess {
  static const Step& LastStep(const Decoder& decoder);
  // From now on spans are as wide as they may be, as in a large batch.
  static void WidenSpans(Decoder* decoder);
};

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_DECODER_ACCESS_H_
