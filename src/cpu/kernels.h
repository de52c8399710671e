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

// Memory that comes after a list of rows, as much as the list has; null where that is not known.
struct NextRows {
  const uint8_t* keys = nullptr;
  const uint8_t* values = nullptr;
};

// Adds the rows in `cells` to the running softmax state of every query head (softmax_state.h);
// states lie `state_stride` floats apart. `next` is brought into L2 meanwhile.
void AttendRows(const QueryHeads& query, const HeadRows& keys, const HeadRows& values,
                const uint32_t* cells, size_t n, float* states, size_t state_stride,
                const NextRows& next = {});

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

// --- prompts ---

// Tokens of a prompt that attend together, for the query heads of one KV head. Cell c's rows lie at
// data + c * stride.
struct PromptTile {
  const float* q;  // of (token t, head g) at q + t * q_token_stride + g * q_head_stride
  size_t q_token_stride;
  size_t q_head_stride;
  float* out;  // likewise
  size_t out_token_stride;
  size_t out_head_stride;
  HeadRows keys;
  HeadRows values;
  const uint16_t* mask;  // f16, [tokens][cells], mask_stride apart: added to logits
  size_t mask_stride;
  size_t tokens;
  size_t cells;
  int group;
  float scale;
  float softcap;
};

// Cells that are widened to f32 together: with 64 elements each, keys or values are 16 KB and stay
// in L1.
inline constexpr size_t kPromptCells = 64;
inline constexpr size_t kPromptLanes = 16;
inline constexpr size_t kPromptRowUnit = 12;

// Rows of a tile, padded.
constexpr size_t PromptRows(size_t tokens, int group) {
  return (tokens * static_cast<size_t>(group) + kPromptRowUnit - 1) / kPromptRowUnit *
         kPromptRowUnit;
}

// Where things lie in a tile's scratch, in floats.
struct PromptBuffers {
  size_t queries = 0;  // [rows][head_dim], scaled
  size_t keys;         // [head_dim][kPromptCells]
  size_t values;       // [kPromptCells][value_dim]
  size_t logits;       // [rows][kPromptCells]
  size_t max;          // [rows]
  size_t sums;         // [rows][kPromptLanes]
  size_t out;          // [rows][value_dim]
  size_t size;

  PromptBuffers(int head_dim, int value_dim, size_t rows)
      : keys(rows * static_cast<size_t>(head_dim)),
        values(keys + static_cast<size_t>(head_dim) * kPromptCells),
        logits(values + static_cast<size_t>(value_dim) * kPromptCells),
        max(logits + rows * kPromptCells),
        sums(max + rows),
        out(sums + rows * kPromptLanes),
        size(out + rows * static_cast<size_t>(value_dim)) {}
};

// out = softmax(scale q K + mask) V for every token and head of the tile, zero for a token that
// sees nothing. scratch: PromptBuffers::size floats.
void AttendPrompt(const PromptTile& tile, float* scratch);

// --- mode tactic ---

// A query head, scale included, as centroids are scored with: unit * (kHighPart * high + low), both
// parts in signed bytes of at most kSmallByte, which is off by unit / 2 at most.
inline constexpr int kSmallByte = 63;
inline constexpr int kHighPart = 64;
struct CentroidQuery {
  const int32_t* high;  // [dim / 4]: four signed bytes each
  const int32_t* low;
  float unit;
  int32_t sum;  // of kHighPart * high + low over the elements
};

// scores[h * score_stride + c] = q_h . centroid_c * scale for c in [0, padded). centroids: laid out
// by CentroidAt (src/codes.h), each in units of its f16 scale.
void ScoreByteCentroids(const CentroidQuery* queries, int heads, int dim, const int8_t* centroids,
                        const uint16_t* centroid_scales, int padded, float* scores,
                        size_t score_stride);

// What is known of clusters beside their scores; all [padded].
struct ClusterFacts {
  const uint8_t* spreads;  // [kRuns + 1][padded], Codes::spreads
  const float* log_sizes;  // log of the number of members; -inf: a slot that does not count
  int padded;
};

// For one query head whose scores are given, logs of: masses[c] the estimated mass of cluster c,
// floors[c] what it has at least (Jensen), tokens[c] what a single member could have
// (selection_rule.h). run_energy[r] = sum of (q * scale)^2 over run r of the head's elements, of
// which there are head_dim.
void EstimateClusters(const ClusterFacts& facts, const float* scores, const float* run_energy,
                      int head_dim, float softcap, float* masses, float* floors, float* tokens);

// Sum of those of x[0, n) that are at most `limit`. Here and below n is a multiple of
// kCentroidLanes.
float SumUpTo(const float* x, size_t n, float limit);

// Raises *most to the largest of masses[0, n). False when one is +inf or NaN.
bool LargestMass(const float* masses, size_t n, float* most);

// kept[c] |= 1 where masses[c] > mass or tokens[c] > token.
void KeepClusters(const float* masses, const float* tokens, size_t n, float mass, float token,
                  uint8_t* kept);

// Sums of masses[0, n): of all, and of those with kept[c] == 0.
struct MassSums {
  float all;
  float skipped;
};
MassSums SumMasses(const float* masses, const uint8_t* kept, size_t n);

// Codes of keys in blocks of kCodeBlock (src/codes.h).
struct CodedKeys {
  const uint8_t* planes;
  const uint8_t* scales;
  int bits;
  int dim;
};

// A query head as the codes are scanned with: the logit of a residual is t * (dot * factor +
// offset) with dot = sum over elements of stored level * packed element.
struct CodeQuery {
  const int32_t* packed;  // [CodeQueryDim(dim) / 4]: four signed bytes each
  float factor;
  float offset;
  float half_variance;  // of a logit's error: half_variance * t^2
  float reference;      // logits are returned less this
  uint32_t floor;       // level from which on keys are put into bins; >= 1
};

// v / 2 is taken to be at most this: a code that bad says nothing, and exponentials must not
// overflow. (At 3, the mass of a lost token was declared negligible.)
inline constexpr float kLargestHalfVariance = 20.0f;
// Exponents are cut here, so that sums over any context stay finite.
inline constexpr float kLargestExponent = 70.0f;

// What is believed of a key, l + v / 2 - reference, is kept in 16 bits: all heads' keys of a long
// context are read and written several times, and as floats they were more than the codes. Level x
// means a mass of 2^(x / 256 - 126), from which a few bit operations make a float; it is off by 1.4
// thousandths of a logit at most, where a code is off by half of one. Level 0 is a key that is
// skipped, or has less mass than any sum resolves; the last one is all above, so that sums over any
// context stay finite.
using KeyLevel = uint16_t;
inline constexpr float kKeyLevels = 369.329935f;   // a logit: 256 / ln 2
inline constexpr float kLowestKey = -87.3365448f;  // logits: -126 ln 2
inline constexpr KeyLevel kSkippedKey = 0;
inline constexpr KeyLevel kLastKey = (126 + 100) * 256;

// Keys of a query head with `low` <= level < `high`; none where both are equal. REQUIRES: low >= 1.
struct KeyRange {
  uint32_t low;
  uint32_t high;
};

// A histogram of keys: bin b holds the kBinLevels levels from floor + b * kBinLevels on, the last
// one all above.
inline constexpr int kMassBins = 256;
inline constexpr uint32_t kBinLevels = 64;
struct MassBins {
  float mass[kMassBins];
  uint32_t count[kMassBins];
};

// by_key[i] = scores[c] * kKeyLevels for the members i of cluster c in [starts[c], starts[c + 1]);
// -inf for the other keys, and what is no key, in blocks that have members of kept clusters. In
// blocks that have none, anything. kCodeBlock entries past the last block must be writable.
void SpreadScores(const uint32_t* starts, const uint8_t* kept, int clusters, const float* scores,
                  float* by_key);

// The keys of the blocks with numbers blocks[0, n), of which `first` is the first one of `codes`:
// keys[h * key_stride + i] becomes the level of key i, whose centroid's score is scores[h *
// score_stride + i - first * kCodeBlock] (SpreadScores). sums[h] += the masses that the levels
// mean; those of at least queries[h].floor are added to bins[h]. `heads` <= 32 queries.
void ScanCodes(const CodedKeys& codes, const CodeQuery* queries, int heads, float softcap,
               const uint32_t* blocks, size_t n, uint32_t first, const float* scores,
               size_t score_stride, KeyLevel* keys, size_t key_stride, float* sums, MassBins* bins);

// Adds the keys in the blocks listed whose level is at least `floor` >= 1 to the bins.
void AddToBins(const KeyLevel* keys, const uint32_t* blocks, size_t n, uint32_t floor,
               MassBins* bins);

// Appends to `numbers` the numbers i of the keys in the blocks listed for which keys[h * key_stride
// + i] is in ranges[h] for some head h and whose bit in `read` is not set, sets it, and returns how
// many. levels[h * level_stride + ...] are the keys of the rows appended. kCodeBlock more entries
// of both must be writable.
size_t SelectKeys(const KeyLevel* keys, size_t key_stride, int heads, const KeyRange* ranges,
                  const uint32_t* blocks, size_t n, uint64_t* read, uint32_t* numbers,
                  KeyLevel* levels, size_t level_stride);

// Over rows i in [0, n) with keys[i] in `range`: *exact += sum of exp(logits[i] - reference),
// *estimated += sum of the keys' masses. Returns how many there are.
size_t SumRange(const KeyLevel* keys, const float* logits, size_t n, KeyRange range,
                float reference, double* exact, double* estimated);

// masses[h * mass_stride + c] = sum of exp(l) over the members of cluster c whose bit in `read` is
// not set, l = key - v / 2 to the nearest level; 0 where kept[c] is 0. Members of cluster c are
// keys starts[c] .. starts[c
// + 1]. keys and scales must be readable to the end of the last block.
struct UnreadKeys {
  const KeyLevel* keys;
  size_t key_stride;
  const uint8_t* scales;
  const uint64_t* read;
  const uint32_t* starts;
  const uint8_t* kept;
  int clusters;
};
void UnreadMasses(const UnreadKeys& unread, int heads, const float* half_variances, float* masses,
                  size_t mass_stride);

// For each head, state += sum over c of weights[h * weight_stride + c] * means[c], relative to the
// state's maximum, which is already that of the weights. means: [n][dim], each in units of its f16
// scale.
void AddMeans(const float* weights, size_t weight_stride, int heads, const int8_t* means,
              const uint16_t* mean_scales, size_t n, int dim, float* states, size_t state_stride);

// As AttendRows, with the logits of the keys at hand: logits[h * logit_stride + i].
void AttendScored(const float* logits, size_t logit_stride, int heads, const HeadRows& values,
                  const uint32_t* cells, size_t n, float* states, size_t state_stride);

}  // namespace tactic::cpu

#endif  // TACTIC_SRC_CPU_KERNELS_H_
