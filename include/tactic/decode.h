// DecodeStep: one layer's attention for the new tokens of any number of sequences, as phases that
// the caller's threads run.
//
//   step.Plan(shape, options, params, requests, threads)   one thread, per layer and step
//   for phase in kRank, kBudget, kSelect, kAttend, kCombine:
//     every thread t: step.RunPhase(phase, t)              the caller's barrier between phases
//   step.stats(), step.head_reports()                      what it cost
//
// Nothing of this allocates once the step has seen a layer as large.
//
// The pipeline (../../DESIGN.md): rank scores every cluster by q . centroid and attends to the rows
// that are always read; budget orders the clusters, fits the mass curve and finds how far each
// query head must read; select unites the choices of a GQA group into row lists; attend computes
// exact softmax(q K) V over them in even shares; combine merges the states.
//
// Results are deterministic for fixed inputs, options, ISA and thread count. Bad requests are
// Plan's Status; the phases cannot fail.
#ifndef TACTIC_DECODE_H_
#define TACTIC_DECODE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "tactic/options.h"
#include "tactic/rows_view.h"
#include "tactic/sequence_index.h"
#include "tactic/shape.h"
#include "tactic/status.h"

namespace tactic {

struct DecodeParams {
  float scale = 1;            // logits are q . k * scale
  float softcap = 0;          // > 0: logits become softcap * tanh(logit / softcap), as in Gemma 2
  bool measure_mass = false;  // also compute the exact mass of every selection (reads every key)
};

// One new token of one sequence.
struct DecodeRequest {
  const float* q = nullptr;  // [q_heads][head_dim], q_stride floats from head to head
  size_t q_stride = 0;
  RowsView keys;
  RowsView values;
  // Cell of every visible position, in order; [num_tokens]. Masked cells are not in it and are
  // never read.
  std::span<const uint32_t> cells;
  // Index of the sequence; positions of `cells` are its first cells.size() positions. Null: dense.
  const SequenceIndex* index = nullptr;
  float* out = nullptr;  // [q_heads][value_dim], out_stride floats from head to head
  size_t out_stride = 0;
};

// What one query head did; [request][q_head].
struct HeadReport {
  int64_t own_rows = 0;    // rows of its own selection, always-attended ones included
  int64_t union_rows = 0;  // rows its group read
  double own_mass = -1;    // exact mass of its own selection; -1 unless measured
  double union_mass = -1;  // exact mass of what its group read; -1 unless measured
  // Mode tactic: the mass that its own selection is believed to have, from the exact keys it read
  // and the codes of the others. 1 where everything was read. Other modes: -1.
  double p_hat = -1;
  // Mode tactic: the predicted standard deviation of a code's logit, over all coded tokens. p_hat
  // is worth less the larger it is; above 1 there is no tail. 0 where no code was used.
  double code_error = 0;
  int rounds = 0;  // mode tactic: times the selection was extended
};

struct DecodeStats {
  int64_t rows_read = 0;   // rows attended, summed over requests and KV heads
  int64_t rows_dense = 0;  // rows dense attention would attend
  int64_t bytes_read = 0;  // keys and values attended, centroids scored, keys sampled for the fit
  int64_t bytes_dense = 0;
  // What bytes_read is made of:
  int64_t bytes_clusters = 0;  // centroids, and what else is stored per cluster or segment
  int64_t bytes_codes = 0;     // codes of keys
  int64_t bytes_rows = 0;      // keys and values themselves
};

enum class Phase : uint8_t { kRank = 0, kBudget = 1, kSelect = 2, kAttend = 3, kCombine = 4 };
inline constexpr int kPhases = 5;

class DecodeStep {
 public:
  DecodeStep();
  ~DecodeStep();
  DecodeStep(DecodeStep&&) noexcept;
  DecodeStep& operator=(DecodeStep&&) noexcept;

  // Checks the requests and lays out the work for `threads` threads. Buffers grow to what the
  // largest step needs and are kept. InvalidArgument names what is wrong with which request. The
  // requests' memory must stay valid until the last phase ended.
  Status Plan(const LayerShape& shape, const Options& options, const DecodeParams& params,
              std::span<const DecodeRequest> requests, int threads);

  // Runs thread `thread`'s share of a phase. REQUIRES: a successful Plan, 0 <= thread < threads,
  // the previous phase done by all; every phase once per Plan. Of a step in mode dense, kBudget,
  // kSelect and kAttend have nothing to do and may be left out.
  void RunPhase(Phase phase, int thread);

  // All phases on the calling thread. REQUIRES: planned with threads == 1, once per Plan.
  void Run();

  // Valid from kCombine to the next Plan, whatever becomes of the requests' memory.
  DecodeStats stats() const;
  std::span<const HeadReport> head_reports() const;
  // Cells that request `request` attended for KV head `kv_head`, ascending by position; for tests
  // and tools (allocates). Valid likewise while the requests' cells and indexes are as they were.
  std::vector<uint32_t> SelectedCells(int request, int kv_head) const;

  // Bytes that each unit of a phase read, in the order in which threads claim them: how evenly work
  // can fall on threads. Mode tactic only, of which kCombine is not claimed but split evenly by
  // slices of query heads; for tests and tools (allocates). REQUIRES: all phases done, and the
  // requests' indexes as they were.
  std::vector<int64_t> UnitBytes(Phase phase) const;

  size_t WorkspaceBytes() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tactic

#endif  // TACTIC_DECODE_H_
