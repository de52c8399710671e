// StateBlob: the bytes of llama_state_get_data, understood well enough to change them.
//
// `bench` needs two things that no API gives: the same K and V in a context without flash
// attention, which stores V transposed, and a deep cache of random K and V without reading a
// prompt. The format is llama.cpp's own and changes with it; whatever does not parse to the last
// byte is refused.
//
//   u32 length, architecture name
//   per cache (two when the model has sliding-window layers): u32 streams, per stream:
//     u32 cells, per cell: i32 position, u32 sequences, i32 each
//     u32 v_transposed, u32 layers
//     per layer K: i32 type, u64 bytes per row, rows [cells][kv_heads * head_dim]
//     per layer V: the same, or transposed: i32 type, u32 bytes per element,
//                  u32 kv_heads * head_dim, elements [kv_heads * head_dim][cells]
#ifndef TACTIC_APPS_STATE_BLOB_H_
#define TACTIC_APPS_STATE_BLOB_H_

#include <cstdint>
#include <vector>

#include "ggml.h"
#include "tactic/status.h"

namespace tactic::app {

// One layer's K or V inside a blob.
struct BlobTensor {
  size_t header = 0;  // offset of its type; 12 bytes in both layouts
  size_t data = 0;    // offset of its rows
  ggml_type type = GGML_TYPE_COUNT;
  size_t row_bytes = 0;  // of one cell
};

// One stream of one cache inside a blob.
struct BlobCache {
  size_t start = 0;     // offset of the number of streams
  size_t cells_at = 0;  // offset of the number of cells
  size_t flags_at = 0;  // offset of v_transposed
  uint32_t cells = 0;
  bool v_transposed = false;
  std::vector<BlobTensor> keys;
  std::vector<BlobTensor> values;
};

// Unsupported when the blob is not of the format above, or has more than one stream.
Status ParseStateBlob(const std::vector<uint8_t>& blob, std::vector<BlobCache>* caches);

// Transposes V of a blob with row-wise V in place, for a context without flash attention.
// Unsupported when V is quantised: such a context cannot exist either.
Status TransposeValues(std::vector<uint8_t>* blob);

// The first `cells` cells of a blob with row-wise V, for a context that is too small for all of
// them. Unsupported when the cells are not those of positions 0, 1, 2 ... in this order, or too
// few.
Status KeepFirstCells(const std::vector<uint8_t>& blob, uint32_t cells, std::vector<uint8_t>* kept);

// A blob like `sample` (the state of a context that holds a single token) with `cells` cells, which
// are those of positions 0, 1, 2 ... and whose K and V are zero bytes.
Status EmptyStateBlob(const std::vector<uint8_t>& sample, uint32_t cells,
                      std::vector<uint8_t>* blob);

// The same with random K and V: independent, normal-like, of unit variance. Deterministic for a
// seed.
Status RandomStateBlob(const std::vector<uint8_t>& sample, uint32_t cells, uint64_t seed,
                       std::vector<uint8_t>* blob);

}  // namespace tactic::app

#endif  // TACTIC_APPS_STATE_BLOB_H_
