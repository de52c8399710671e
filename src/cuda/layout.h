// What lies in device memory: the index of a sequence, and the buffers of a decode step.
//
// Plain structs that host and device share. Logits and masses are in octaves (logarithms to base
// 2): the exponential a GPU has is exp2.
#ifndef TACTIC_SRC_CUDA_LAYOUT_H_
#define TACTIC_SRC_CUDA_LAYOUT_H_

#include <cstddef>
#include <cstdint>

#include "src/codes.h"
#include "tactic/cuda.h"

namespace tactic::cuda {

inline constexpr float kLog2e = 1.44269504f;
inline constexpr int kRuns = 16;  // of a residual's elements, as in segment.h

// What the filter reads of a cluster.
struct ClusterFacts {
  uint8_t spreads[kRuns];  // ByteFloat: root mean square of an element of a run of the residuals
  uint8_t longest;         // ByteFloat: the longest residual over the root mean square one
  uint8_t unused;
  uint16_t scale;  // f16, of the centroid's bytes
};
static_assert(sizeof(ClusterFacts) == 20);

// The index of one sequence in one layer. Every segment has room for `slots` clusters, of which the
// unused ones, the last, have no members; so everything has its place however keys fall.
//
// Segment j is of positions [j S, (j + 1) S) without the sinks. `member`s are listed by cluster,
// then ascending; their codes are in that order, in the blocks of codes.h. Segments [0, closed) are
// clustered; of segment `closed`, mode tactic has the first `pages` runs of Options::kPage
// positions, each a cluster.
struct DeviceIndex {
  int kv_heads = 0;
  int head_dim = 0;
  int segment_size = 0;  // S
  int slots = 0;
  int segments = 0;  // room for
  int bits = 0;      // of a code's elements; 0: no codes (mode paper)
  int sinks = 0;

  int closed = 0;
  int pages = 0;
  int unfit[64] = {};  // [kv_head]: a key or value was not finite or too large for a code

  int8_t* centroids = nullptr;    // [kv_head][segment][slot][head_dim]
  ClusterFacts* facts = nullptr;  // [kv_head][segment][slot]
  uint16_t* starts = nullptr;     // [kv_head][segment][slots + 1]
  uint16_t* members = nullptr;    // [kv_head][segment][S]: offsets from j S
  uint8_t* key_scales = nullptr;  // [kv_head][segment][S]: ByteFloat
  uint8_t* codes = nullptr;       // [kv_head][segment][S / 16][CodeBlockBytes]
  int8_t* means = nullptr;  // [kv_head][segment][slots + 1][head_dim], of values; last: of all
  uint16_t* mean_scales = nullptr;  // [kv_head][segment][slots + 1], f16
  float* errors = nullptr;  // [kv_head][segment]: variance of a code's element, mean over the keys
};

inline constexpr int kMaxKvHeads = 64;

// --- a step ---

// Keys and clusters are sorted by their logit relative to an anchor, a logit of the query that is
// typical of its largest: levels of 1/512 octave from 32 octaves below it to 32 above, and bins of
// 32 levels, 1/16 octave. What is lower is negligible; a unit that has something higher is read
// densely.
inline constexpr float kBelowAnchor = 32;
inline constexpr int kLevelsPerOctave = 512;
inline constexpr int kLastLevel = 64 * kLevelsPerOctave - 1;
inline constexpr int kLevelsPerBin = 32;
inline constexpr int kBins = (kLastLevel + 1) / kLevelsPerBin;
inline constexpr int kBinsPerOctave = kLevelsPerOctave / kLevelsPerBin;
// Coarser, for masses of clusters.
inline constexpr int kMassBins = 256;
inline constexpr int kMassBinsPerOctave = kMassBins / 64;

inline constexpr int kMaxGroup = 16;
inline constexpr int kMaxSlots = 256;

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_LAYOUT_H_
