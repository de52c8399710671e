#include "tactic/options.h"

#include "tactic/cuda.h"

namespace tactic::cuda {

Options OptionsFor(Mode mode) {
  Options options = Options::For(mode);
  options.segment_size = 2048;
  options.cluster_size = 32;
  if (mode == Mode::kTactic) options.bits = 2;
  return options;
}

}  // namespace tactic::cuda
