// CellTracker: which cells of a KV cache make up which sequence, learnt from what a graph shows.
//
// llama.cpp tells a callback neither about sequences nor about edits. What can be seen before a
// batch runs is enough: the cells being written, the cells that every row of the attention mask
// lets through, and the bytes of the cache. A Track is the ordered list of cells of one sequence as
// last seen. A row of the mask is matched to the track it differs least from; cells it no longer
// sees are removed, new ones are appended in the order they were written, and cells whose key
// changed (by a fingerprint of the last layer's key) lose the segments they are part of. So after
// any edit - removal, shift, copy, state load, through us or behind our back - the index is that of
// the sequence as it now is.
//
// Not thread-safe: called from the evaluation callback only, RecordPrints from one thread of the
// graph.
#ifndef TACTIC_LLAMA_SRC_CELL_TRACKER_H_
#define TACTIC_LLAMA_SRC_CELL_TRACKER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "tactic/options.h"
#include "tactic/rows_view.h"
#include "tactic/sequence_index.h"

namespace tactic::llama {

// A set of cells of one stream, numbered from the stream's first.
class CellSet {
 public:
  // Reads a row of an f16 attention mask of `n` cells. False when it holds anything but 0 (visible)
  // and -inf.
  bool ReadMask(const uint16_t* mask, int64_t n);

  bool Has(int64_t cell) const {
    const auto word = static_cast<size_t>(cell / 64);
    return word < bits_.size() && (bits_[word] >> (cell % 64) & 1) != 0;
  }
  void Add(int64_t cell);
  void Remove(int64_t cell) {
    bits_[static_cast<size_t>(cell / 64)] &= ~(uint64_t{1} << (cell % 64));
  }
  int64_t Count() const;
  // |this \ other|.
  int64_t CountMissingFrom(const CellSet& other) const;
  // Calls f(cell) in ascending order.
  template <class F>
  void ForEach(const F& f) const {
    for (size_t w = 0; w < bits_.size(); ++w) {
      for (uint64_t left = bits_[w]; left != 0; left &= left - 1)
        f(static_cast<int64_t>(w * 64 + __builtin_ctzll(left)));
    }
  }

 private:
  std::vector<uint64_t> bits_;
};

// One sequence.
struct Track {
  int64_t base = 0;             // first cell of its stream
  std::vector<uint32_t> cells;  // of positions 0, 1, ... (numbered over all streams)
  std::vector<uint64_t>
      prints;   // fingerprint of each cell's key; kUnknownPrint until it was computed
  CellSet set;  // the same cells, relative to base
  // By mode and layer. A mode's index is there once a step of that mode needed it; from then on it
  // follows every edit, also while another mode decodes.
  std::map<std::pair<Mode, int>, SequenceIndex> indexes;
  uint64_t last_used = 0;
  size_t unprinted = 0;  // positions from here on await RecordPrints
};

// One row of a batch: a token's visible cells.
struct TrackedRow {
  Track* track = nullptr;  // null: not a known sequence, `explicit_cells` holds the cells
  int64_t num_tokens = 0;  // visible positions: the first num_tokens of the track
  std::vector<uint32_t> explicit_cells;
  std::span<const uint32_t> cells() const {
    return track != nullptr
               ? std::span<const uint32_t>(track->cells).first(static_cast<size_t>(num_tokens))
               : std::span<const uint32_t>(explicit_cells);
  }
};

// What a batch looks like to the tracker. Streams are independent parts of the cache, each with its
// own mask rows.
struct BatchView {
  int64_t tokens = 0;  // per stream
  int64_t streams = 0;
  int64_t num_cells = 0;  // columns of the mask
  const uint8_t* mask = nullptr;
  size_t mask_row_bytes = 0;  // from a token's row to the next
  size_t mask_stream_bytes = 0;
  std::vector<int64_t> stream_base;  // first cell of each stream
  std::span<const int64_t> written;  // cell of every token, [streams][tokens]
};

class CellTracker {
 public:
  // Takes in a batch that is about to run. With `all_rows`, `rows` gets one entry per token
  // ([streams][tokens]); otherwise only the sequences are brought up to date and `rows` gets one
  // entry per sequence. False when the mask cannot be understood.
  bool Update(const BatchView& batch, bool all_rows, std::vector<TrackedRow>* rows);

  // The layer whose keys are fingerprinted; `keys` covers all its KV heads. Must be called before
  // the first Update that should notice changes behind our back.
  void SetPrintSource(const RowsView& keys, size_t row_bytes);
  // Fingerprints the keys that the batch wrote. Call once they are written.
  void RecordPrints();

  // The engine rewrote keys in a way that cannot be followed (a context shift): every segment is
  // dropped.
  void InvalidateAll();
  // Forgets the indexes of a mode; which cells make up which sequence is kept.
  void DropIndexes(Mode mode);

  int64_t edits() const { return edits_; }
  // Bytes of a mode's indexes and of the lists of the sequences of the last batch.
  size_t IndexBytes(Mode mode) const;

 private:
  Track* Match(int64_t base, const CellSet& visible);
  void Apply(Track* track, const CellSet& visible, std::span<const int64_t> written);
  void Evict();
  uint64_t Print(uint32_t cell) const;

  std::vector<std::unique_ptr<Track>> tracks_;
  std::vector<uint64_t> stamps_;  // by cell: when it was last written
  uint64_t clock_ = 0;
  int64_t edits_ = 0;
  RowsView print_keys_;
  size_t print_bytes_ = 0;
};

}  // namespace tactic::llama

#endif  // TACTIC_LLAMA_SRC_CELL_TRACKER_H_
