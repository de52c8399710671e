// A decode step as its kernels see it: the request, and buffers in device memory.
//
// A *unit* is one KV head of one sequence, number sequence * kv_heads + head; a *span* is one or
// some of its segments, as the step chooses (decoder.cu): at most a cluster for each thread of a
// block. Every stage but the last is a grid of blocks for each unit, its *parts*, which share the
// unit's spans: block p takes p, p + parts, and so on. What the next stage has to know (thresholds)
// is found by the block of a unit that ends last, from integer counts and from sums that are stored
// part by part and added in order, so a step gives the same bits every time.
#ifndef TACTIC_SRC_CUDA_STEP_H_
#define TACTIC_SRC_CUDA_STEP_H_

#include <cstdint>

#include "src/cuda/cache.cuh"
#include "src/cuda/layout.h"
#include "tactic/cuda.h"

namespace tactic::cuda {

// What of a query the scan of codes needs beside its bytes.
struct ScanQuery {
  float unit;   // rotated and scaled query = unit * bytes
  float norm;   // |q * scale|^2
  int32_t sum;  // of the bytes
};

// Which clusters a query head needs (mode tactic): those with more estimated mass, or with a token
// that may have more, than these; in octaves over the anchor.
struct Filter {
  float mass_above;
  float token_above;
};

// What is known of a query head (mode tactic); masses relative to the anchor.
struct HeadMass {
  float fixed;      // of the forced rows, exact
  float skipped;    // estimated, of skipped clusters
  float total;      // estimated, of all scanned keys
  float exact;      // of forced rows and own ones
  float estimated;  // of own rows, what the codes said
  int32_t rows;     // own, without the forced ones
  int32_t rounds;   // times the selection was extended
  // Keys of levels in [low, high) are read next; those above were before.
  int32_t low;
  int32_t high;
};

// Mode paper: what the order of clusters says of one query head. Bins count from the lowest logit.
struct PaperRanks {
  int32_t head_bin;  // clusters of this bin and above are the head
  int32_t head_rows;
  int32_t all_rows;
  int32_t window_bin[2];     // near, far
  int32_t window_stride[2];  // one in so many clusters of the bin is sampled; 0: there is no fit
  float window_rank[2];
  int32_t cut_bin;  // clusters of this bin and above are the head's own selection
  int32_t own_rows;
  float own_mass;  // of what was sampled, and of the forced rows
};

// Of the sampled members of a window: their mass, in units of the window's bin (mass_curve.cuh).
struct WindowSum {
  uint64_t units;
  uint64_t rows;
};

// Mode paper: what the spans of a unit list.
struct ListSize {
  int32_t rows;
  int32_t scored;  // tiles of clusters of heads; stage sample: all tiles
  int32_t fresh;   // others, which are scored when they are attended to
};

// What a unit is, and what of it is indexed. Rank finds out and leaves it for the stages after it.
struct Unit {
  int32_t number;
  int32_t sequence;
  int32_t head;       // KV head
  int32_t tokens;     // visible
  int32_t segments;   // to be looked at: closed ones and, last, the open one when it has pages
  int32_t closed;     // of them
  int32_t pages;      // of the open one
  int32_t coded_end;  // positions below are in clusters, but for the sinks
  int32_t forced;     // rows that are read whatever the query
  int32_t spans;      // to be looked at
  int32_t readable;   // 0: everything is to be read
  HeadRows rows;
  // The index's arrays, from the KV head's first segment on.
  const int8_t* centroids;
  const ClusterFacts* facts;
  const uint16_t* starts;
  const uint16_t* members;
  const uint8_t* key_scales;
  const uint8_t* codes;
  const int8_t* means;
  const uint16_t* mean_scales;
  const float* errors;

#ifdef __CUDACC__
  // Clusters of span `span` that there may be.
  __device__ __forceinline__ int SpanClusters(int span, int slots, int span_slots) const {
    return min(span_slots, closed * slots + pages - span * span_slots);
  }
  __device__ __forceinline__ int ForcedRow(int i, int sinks) const {
    return i < sinks ? i : coded_end + (i - sinks);
  }
#endif
};

#ifdef __CUDACC__
// Mode tactic: a row of a span's list: its place in the span, and that of its logits among the
// span's.
__host__ __device__ __forceinline__ uint32_t ListedRow(int slot, int place) {
  return static_cast<uint32_t>(slot << 16 | place);
}
__host__ __device__ __forceinline__ int PlaceOfRow(uint32_t row) {
  return static_cast<int>(row & 0xffffu);
}
__host__ __device__ __forceinline__ int SlotOfRow(uint32_t row) {
  return static_cast<int>(row >> 16);
}

// Mode paper: up to 16 rows of a span's list, neighbours among its members and of one cluster. In
// 32 bits: the first's number among the span's members, the cluster's, how many they are, whether
// they stand for a window of any head's, and whether they belong to the clusters of heads, whose
// logits are kept: at the numbers of members.
struct ListedTile {
  uint32_t word;

  __host__ __device__ __forceinline__ static ListedTile Of(int first, int cluster, int rows,
                                                           bool of_windows, bool of_heads) {
    return {static_cast<uint32_t>(first | cluster << 16 | (rows - 1) << 24) |
            (of_windows ? 1u << 30 : 0u) | (of_heads ? 1u << 31 : 0u)};
  }
  __host__ __device__ __forceinline__ int First() const { return static_cast<int>(word & 0xffffu); }
  __host__ __device__ __forceinline__ int Cluster() const {
    return static_cast<int>(word >> 16 & 0xffu);
  }
  __host__ __device__ __forceinline__ int Rows() const {
    return static_cast<int>(word >> 24 & 0xfu) + 1;
  }
  __host__ __device__ __forceinline__ bool OfWindows() const { return (word >> 30 & 1) != 0; }
  __host__ __device__ __forceinline__ bool OfHeads() const { return word >> 31 != 0; }
};
static_assert(kMaxSlots == 256);
#endif

// Of logits in octaves: cap * tanh(x / cap).
struct Softcap {
  float cap;   // 0: none
  float rate;  // 2 log2(e) / cap
};

struct Step {
  // --- the request ---
  int batch;
  int kv_heads;
  int group;
  int head_dim;
  int rank_parts;
  int parts;          // of the stages between rank and attend
  int sample_blocks;  // of the grid that scores samples
  int attend_wave;    // blocks of attend that run at once
  int attend_blocks;  // of its grid
  const void* q;
  Element q_type;
  void* out;
  Element out_type;
  CacheView cache;
  float key_unit;    // logits in octaves = products of stored numbers * key_unit
  float value_unit;  // values = stored numbers * value_unit
  float scale;       // of the request, times log2(e)
  Softcap softcap;
  uint32_t signs[8];  // of the rotation (codes.h): bit x % 32 of word x / 32 flips element x
  const int32_t* lengths;
  const DeviceIndex* const* indexes;  // or null: everything is read

  // --- options ---
  Mode mode;
  float target;
  int sinks;
  int recent;
  int segment_size;
  int slots;
  int dense_below;
  float skip_share, skip_token, unread_margin, skipped_margin;
  int rounds;
  int round;  // mode tactic: of this launch of verify
  int tail;
  int bits;
  float dense_share;
  float head_share, near_window, far_window, window_share;

  // --- buffers; [unit] first, then as said ---
  int segments;       // room for; whole spans, however wide
  int spans;          // room for
  int span_segments;  // of a span
  int span_slots;
  uint32_t slots_inverse;  // of `slots`, times 2^31, rounded up
  int span_keys;           // positions of a span
  int level_stride;        // the group, rounded up to an even number: levels are read in pairs
  int forced_room;         // rows
  uint32_t* anchors;       // [group]: float bits
  uint8_t* dense;          // 1: the unit is read densely
  Unit* units;
  float* scores;     // [segment * slots][group]: logits of centroids, in octaves
  uint32_t* bounds;  // [segment * slots][group]: two f16, estimated mass and largest token, both in
                     // octaves over the anchor
  uint32_t* cluster_bins;  // [group][kBins]: mode paper: tokens by their cluster's logit; mode
                           // tactic: clusters by estimated mass, the first kMassBins only
  float* part_forced;      // [rank part][group]: mass of forced rows, relative to the anchor
  float* part_floors;      // [rank part][group]: of clusters, at least
  uint32_t* finished;      // parts of the stage that have ended
  // Forced rows, then for every span the rows chosen of it.
  int32_t* forced_rows;  // [forced_room]: positions
  float* forced_logits;  // [forced_room][group]
  uint32_t* rows;        // [span * span_keys]: ListedRow; mode paper: ListedTile, fresh ones from
                         // the span's end on backwards
  float* logits;         // [span * span_keys][group]
  int32_t* counts;       // [span]: of what is listed, without fresh tiles
  int32_t* tiles;        // of 16 rows, or of means, that attend has to do
  // Mode tactic.
  ScanQuery* queries;    // [group]
  uint32_t* rotated;     // [tile of 8 heads][CodeQueryWords][32]: code_tile.cuh
  Filter* filters;       // [group]
  HeadMass* masses;      // [group]
  uint8_t* reading;      // 1: verify has something to read
  uint16_t* tags;        // [span * span_keys]: of a listed row, its place among the span's members
  uint16_t* levels;      // [span * span_keys][level_stride]
  uint8_t* kept_list;    // [segment * slots]: clusters of a span that are kept, one after the other
  int32_t* kept_counts;  // [span]: how many
  uint32_t* scan_tiles;  // [span][TilesOfSpan()]: ScanTile, of the clusters that are kept
  int32_t* scan_counts;  // [span]: how many
  uint32_t* key_bins;    // [group][kBins]: keys
  float* skipped;        // [segment][group]: mass of clusters that were skipped
  float* unread;         // [segment * slots][group]: mass of members that are not read
  float* exact;          // [span][group]: own mass found in the last round
  // Mode paper.
  uint64_t* bin_masses;   // [group][kBins]: of the clusters of heads, see mass_curve.cuh
  PaperRanks* ranks;      // [group]
  WindowSum* windows;     // [group][2]
  uint16_t* owners;       // [span * span_keys]: heads whose own a fresh tile is, a bit each
  int32_t* fresh_counts;  // [span]
  ListSize* sampled;      // of the unit
  ListSize* selected;     // of the unit, without the forced rows
  // attend
  float* states;          // [block of attend + unit][group][kStateSize], not by unit
  DeviceReport* reports;  // [group]
  int32_t* listed;        // [2]: forced rows, and spans whose rows are listed; 0 when dense
};

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_STEP_H_
