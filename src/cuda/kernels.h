// The stages of a step, each one launch, but sample two. All are enqueued on the stream; `type` is
// of keys and values.
//
//   mode dense   attend
//   mode paper   rank, sample, cut, attend
//   mode tactic  rank, scan, verify, extend for every round, attend
#ifndef TACTIC_SRC_CUDA_KERNELS_H_
#define TACTIC_SRC_CUDA_KERNELS_H_

#include "src/cuda/step.h"
#include "tactic/status.h"

namespace tactic::cuda {

Status LaunchRank(const Step& step, Element type, Stream stream);

// Mode tactic.
Status LaunchScan(const Step& step, Stream stream);
// Round 0 reads the first choice, later ones what fell short.
Status LaunchVerify(const Step& step, Element type, int round, Stream stream);

// Mode paper.
// Blocks of sample's scores that fit on a multiprocessor.
inline constexpr int kSampleBlocks = 3;
Status LaunchSample(const Step& step, Element type, Stream stream);
Status LaunchCut(const Step& step, Stream stream);

// Tiles of 16 rows that are worth a block of attend beyond those that run at once: its start, and a
// state to merge. With 64, on an H200, 127K tokens alone take 146 us instead of 137, 8 times 31K
// 259 instead of 254, and more of either nearly the same.
inline constexpr int kLeastTiles = 192;
// Of a selection, so many at least: a tile for every warp. More blocks leave more states to merge.
inline constexpr int kTilesEach = 8;
Status LaunchAttend(const Step& step, Element type, Stream stream);

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_KERNELS_H_
