// TraceFile: queries, keys and values of a real run, kept in a file (`tactic trace`).
//
// A run reads `depth` tokens and then decodes `steps` more, one at a time, with llama.cpp's own
// attention. The file is a safetensors file, for every captured layer L:
//
//   k.L, v.L   F16, BF16 or F32, as in the KV cache; [kv_heads, depth + steps, dim]
//   q.L        F32 [steps, q_heads, head_dim], after RoPE
//   tokens     I32 [depth + steps + 1]: what was read and decoded, and the token that follows
//
// Step t sees the first depth + t + 1 rows. The numbers of all layers, and where they come from,
// are in the metadata; a number that differs from layer to layer is a list there.
#ifndef TACTIC_APPS_TRACE_FILE_H_
#define TACTIC_APPS_TRACE_FILE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "safetensors.h"
#include "tactic/rows_view.h"
#include "tactic/shape.h"
#include "tactic/status.h"

namespace tactic::app {

struct TraceLayer {
  int layer = 0;  // as the model counts
  LayerShape shape;
  float scale = 1;
  float softcap = 0;                           // 0: none
  ElementType key_type = ElementType::kF16;    // kF32, kF16 or kBF16
  ElementType value_type = ElementType::kF16;  // likewise
};

struct TraceInfo {
  std::string model;  // names of files, without folders
  std::string lora;   // empty: none
  std::string text;
  std::string llama_build;  // LlamaBuild()
  int64_t skip = 0;         // tokens of the text before the first that was read
  int depth = 0;            // tokens read before the first step
  int steps = 0;
  bool generated = false;           // the steps are what the model said, not the text
  float rope_freq_base = 0;         // 0: unknown
  std::vector<TraceLayer> layers;   // ascending
  std::vector<int> sliding_layers;  // left out: their steps do not see the whole sequence

  // Rows of K and V in every layer.
  int64_t tokens() const { return int64_t{depth} + steps; }
};

// Size of the file's data.
int64_t TraceBytes(const TraceInfo& info);

// The tensors of a trace in the order in which they lie in the file: k, v and q of each layer, then
// the tokens.
std::vector<std::pair<std::string, SafeTensor>> TraceTensors(const TraceInfo& info);

class TraceFile {
 public:
  // Maps the file into memory and checks all of it but the values of queries, keys and values.
  // NotFound when it cannot be read, Unsupported when it is not a complete trace.
  static Status Open(const std::string& path, std::unique_ptr<TraceFile>* trace);
  ~TraceFile();
  TraceFile(const TraceFile&) = delete;
  TraceFile& operator=(const TraceFile&) = delete;

  const std::string& path() const { return path_; }
  const TraceInfo& info() const { return info_; }

  // `index` counts info().layers.
  // Query of a step, [head_dim].
  const float* Query(size_t index, int step, int q_head) const;
  // Row i is position i; info().tokens() rows.
  RowsView Keys(size_t index) const { return data_[index].keys; }
  RowsView Values(size_t index) const { return data_[index].values; }
  // [tokens() + 1]
  std::span<const int32_t> token_ids() const { return token_ids_; }

 private:
  // Of a layer, in the mapped file.
  struct LayerData {
    const float* q = nullptr;
    RowsView keys;
    RowsView values;
  };

  TraceFile() = default;
  Status Map();
  // Takes everything out of a header, or says what is wrong with it.
  Status Read(const SafetensorsHeader& header);

  std::string path_;
  std::span<const uint8_t> bytes_;  // the mapping
  TraceInfo info_;
  std::vector<LayerData> data_;
  std::span<const int32_t> token_ids_;
};

}  // namespace tactic::app

#endif  // TACTIC_APPS_TRACE_FILE_H_
