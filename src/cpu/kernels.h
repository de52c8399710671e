// The CPU kernels: total functions on raw pointers. No allocation, no threads, no errors.
//
// Each is compiled once per instruction set from one source (Highway) and dispatched at the call;
// src/cpu/*-inl.h hold the code. Sizes are checked by the callers (shape.h, decode.cc): head_dim
// and value_dim are multiples of 8, of 32 for quantised rows.
#ifndef TACTIC_SRC_CPU_KERNELS_H_
#define TACTIC_SRC_CPU_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "tactic/rows_view.h"

namespace tactic::cpu {

// Rows of one KV head of which a list is read: cell c starts at data + c * stride.
struct HeadRows {
  const uint8_t* data;
  size_t stride;
  ElementType type;
  int dim;
};

// The query heads that share a KV head: [heads][dim], `stride` floats apart.
struct QueryHeads {
  const float* q;
  size_t stride;
  int heads;
  float scale;    // logits are q . k * scale
  float softcap;  // > 0: then softcap * tanh(logit / softcap)
};

// scores[h * score_stride + i] = logit of query head h and the key in cells[i].
void ScoreRows(const QueryHeads& query, const HeadRows& keys, const uint32_t* cells, size_t n,
               float* scores, size_t score_stride);

// Adds the rows in `cells` to the running softmax state of every query head (softmax_state.h);
// states lie `state_stride` floats apart.
void AttendRows(const QueryHeads& query, const HeadRows& keys, const HeadRows& values,
                const uint32_t* cells, size_t n, float* states, size_t state_stride);

// scores[h * score_stride + c] = q_h . centroid_c * scale for c in [0, padded). centroids: f16,
// [dim][padded]; padded is a multiple of kCentroidLanes. No softcap: it is monotone, and the order
// is all that is asked for.
inline constexpr int kCentroidLanes = 16;
void ScoreCentroids(const QueryHeads& query, int dim, const uint16_t* centroids, int padded,
                    float* scores, size_t score_stride);

// x[i] = exp(x[i] - shift) for i in [0, n).
void ExpShifted(float* x, size_t n, float shift);

// out[i][dim] = the row in cells[i] as f32.
void LoadRows(const HeadRows& rows, const uint32_t* cells, size_t n, float* out);

// labels[i] = the centroid nearest to x[i] (Euclidean; ties to the lowest number). x: [n][dim];
// centroids: f32, [dim][padded]; half_norms[c] = |centroid_c|^2 / 2, +inf for padding.
void AssignNearest(const float* x, size_t n, int dim, const float* centroids,
                   const float* half_norms, int padded, uint16_t* labels);

}  // namespace tactic::cpu

#endif  // TACTIC_SRC_CPU_KERNELS_H_
