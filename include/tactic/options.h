// Options: every parameter of the algorithm, with its default, its range and where the default
// comes from.
//
// "section n" is a section of the Tactic paper (arXiv 2502.12216). A plain aggregate: copy it,
// change it, Validate() it.
#ifndef TACTIC_OPTIONS_H_
#define TACTIC_OPTIONS_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "tactic/status.h"

namespace tactic {

// Which tokens a decode step reads.
enum class Mode : uint8_t {
  kDense,   // all of them, exactly
  kPaper,   // the published algorithm: cluster order, fitted mass curve, prefix that reaches the
            // target
  kTactic,  // verified selection: clusters say where to look, codes of the keys which tokens
            // matter; what is read is checked against the target, what is not is represented by
            // means
};

// "dense", "paper" or "tactic"; the names that programs, bindings and reports use.
const char* ModeName(Mode mode);
Status ParseMode(std::string_view name, Mode* mode);

// How closed segments are divided (mode tactic).
enum class IndexKind : uint8_t {
  kClusters,  // K-means
  kPages,     // runs of Options::kPage consecutive positions: no clustering, every code is read
};

// "clusters" or "pages".
const char* IndexKindName(IndexKind kind);
Status ParseIndexKind(std::string_view name, IndexKind* kind);

// A default-constructed Options is mode tactic with its measured defaults; the fields of one mode
// are ignored by the others. Where defaults differ between modes, For() gives those of a mode.
struct Options {
  Mode mode = Mode::kTactic;

  // The defaults of `mode`.
  static Options For(Mode mode);

  // P: the share of a query head's softmax mass that its selection must reach. Range (0, 1]; 1
  // reads every token.
  double target = 0.9;

  // --- index (section 4.2) ---
  // Mean number of keys per cluster. Range [2, 1024]. Mode tactic: 32, since the codes tell members
  // apart (16 costs a tenth more bytes, 64 misses more). Mode paper: 16; the paper uses 32 on
  // average in 4.2, 16 in its experiments; measured at 8K tokens 16 reads a tenth less and reaches
  // the target more often (docs/algorithm.md).
  int cluster_size = 32;
  // Upper bound of K-means iterations; it stops earlier once no key changes its cluster. Range [1,
  // 1000]. Paper: 10. Mode tactic: 8; 4 miss more (docs/algorithm.md).
  int kmeans_iterations = 8;
  // Positions that are clustered together. 0: as many as possible (65,536), which up to that length
  // is the paper's single clustering of the whole context. Otherwise in [cluster_size, 65,536]:
  // clustering cost becomes linear in the context. Longer segments order tokens better, and leave
  // more of the newest ones to be read exactly until a segment is full.
  int segment_size = 1024;
  // With segment_size 0: positions after which new keys are clustered into the whole. Range [1,
  // 65,536]. Paper: 2048.
  int update_interval = 2048;
  // Seed of the randomly sampled initial centroids (mode paper; mode tactic starts from keys at
  // even distances).
  uint64_t seed = 1;

  // --- always attended ---
  // The first `sinks` and the newest `recent` positions, exactly; their mass counts towards the
  // target. Range [0, 65,536] each. Mode tactic: 4 and 64, which the codes do not need but which
  // cost next to nothing. Mode paper: 16 and 128, measured to lift the cases that reach P from
  // 64-73 to 76-91 %; 0 and 0 is the literal paper.
  int sinks = 4;
  int recent = 64;

  // --- codes (mode tactic; docs/algorithm.md) ---
  IndexKind index = IndexKind::kClusters;
  // Bits per element of a key's code: 2, 3 or 4. 0: for each segment and KV head the smallest whose
  // predicted error of a logit is at most bits_error.
  int bits = 0;
  // Logits. Range (0, 100]. Copy heads have errors of 2-3 logits at 2 bits, most others of 0.5;
  // more bits where 2 would do read fewer rows and as many bytes (docs/algorithm.md).
  double bits_error = 1.2;

  // --- verified selection (mode tactic; docs/algorithm.md) ---
  // Clusters are skipped, smallest first, while their estimated masses add up to at most skip_share
  // (1 - P) of a lower bound of the total; never one of which a single token could, at three
  // standard deviations or as the residual that is longest and has the query's direction, hold more
  // than skip_token (1 - P) of it. Ranges [0, 1]; 0 and 0 read every code.
  double skip_share = 0.5;
  double skip_token = 0.01;
  // How much the estimated mass of unread tokens, resp. of skipped clusters, is taken to be larger
  // than it looks when the selection decides that it has read enough. Range [1, 10].
  double unread_margin = 1.1;
  double skipped_margin = 1.1;
  // How often a selection that fell short of its target, by the exact keys it read, is extended.
  // Range [0, 16]. 0: never, which is no verification.
  int rounds = 2;
  // Whether unread tokens count in the output, with the mean values of their clusters.
  bool tail = true;
  // A KV head one of whose query heads would read more than this share of the context reads all of
  // it. Range (0, 1].
  double dense_share = 0.8;

  // --- mass curve (section 4.4) ---
  // Share of ranks whose exponentials are computed exactly before the fit. Range (0, 0.5]. Paper:
  // 1-2 %.
  double head_share = 0.02;
  // Where the two windows lie and how wide each is, as shares of the ranks. Ranges (0, 1), ordered;
  // width (0, 0.1]. 10 % and 60 % are the paper's; the width is left open there (0.5 %: standard
  // error of the window mean ~8 % at 8K). On a GPU a window's sample ends at 256 tokens.
  double near_window = 0.10;
  double far_window = 0.60;
  double window_share = 0.005;

  // Sequences with fewer visible tokens than this are read densely. Range [0, 2^31). Below ~1K the
  // index costs more than it saves and the fit has too few ranks; where exactly depends on machine,
  // threads and shape, which Calibrate (calibrate.h) measures.
  int dense_below = 1024;

  // OK, or the first field that is out of its range, with its value and the range.
  Status Validate() const;

  // Largest number of positions of one segment: 65,536 when segment_size is 0.
  int MaxSegment() const { return segment_size == 0 ? kLargestSegment : segment_size; }

  static constexpr int kLargestSegment = 65536;  // members are 16-bit offsets
  // Positions that are coded together while their segment is still open (mode tactic).
  static constexpr int kPage = 32;
};

}  // namespace tactic

#endif  // TACTIC_OPTIONS_H_
