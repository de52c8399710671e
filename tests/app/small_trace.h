// A small trace of random numbers, and the caches that it is written from.
#ifndef TACTIC_TESTS_APP_SMALL_TRACE_H_
#define TACTIC_TESTS_APP_SMALL_TRACE_H_

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "trace_file.h"
#include "trace_writer.h"

namespace tactic::app {

// Between the rows of a cache: what must not get into the file.
inline constexpr char kUnused = 0x55;
inline constexpr size_t kGapBytes = 16;

// A run of two layers that differ in everything.
inline TraceInfo SmallInfo() {
  TraceInfo info;
  info.model = "model.gguf";
  info.lora = "adapter.gguf";
  info.text = "text.txt";
  info.llama_build = "1-abc";
  info.skip = 5;
  info.depth = 40;
  info.steps = 3;
  info.generated = true;
  info.rope_freq_base = 1e6F;
  info.layers = {{3, {4, 2, 16, 8}, 0.25F, 0, ElementType::kF16, ElementType::kF16},
                 {7, {2, 1, 24, 8}, 0.1F, 50, ElementType::kBF16, ElementType::kF32}};
  info.sliding_layers = {0, 2};
  return info;
}

// A cache with gaps between rows and heads that interleave, filled at random.
struct Cache {
  std::vector<uint8_t> bytes;
  RowsView rows;

  Cache(ElementType type, int64_t tokens, int heads, int dim, std::minstd_rand* random) {
    const size_t row = RowBytes(type, static_cast<size_t>(dim));
    rows = {nullptr, type, row * static_cast<size_t>(heads) + kGapBytes, row};
    bytes.assign(static_cast<size_t>(tokens) * rows.row_stride, kUnused);
    for (int64_t i = 0; i < tokens; ++i) {
      for (size_t b = 0; b < row * static_cast<size_t>(heads); ++b) {
        bytes[static_cast<size_t>(i) * rows.row_stride + b] = static_cast<uint8_t>((*random)());
      }
    }
    rows.data = bytes.data();
  }
};

struct SmallTrace {
  TraceInfo info = SmallInfo();
  std::vector<Cache> keys, values;
  std::vector<std::vector<float>> queries;
  std::vector<int32_t> tokens;

  SmallTrace() {
    std::minstd_rand random(1);
    for (const TraceLayer& layer : info.layers) {
      const LayerShape& shape = layer.shape;
      keys.emplace_back(layer.key_type, info.tokens(), shape.kv_heads, shape.head_dim, &random);
      values.emplace_back(layer.value_type, info.tokens(), shape.kv_heads, shape.value_dim,
                          &random);
      std::vector<float>& q = queries.emplace_back();
      for (int i = 0; i < info.steps * shape.q_heads * shape.head_dim; ++i) {
        q.push_back(static_cast<float>(random()));
      }
    }
    for (int64_t i = 0; i <= info.tokens(); ++i) tokens.push_back(static_cast<int32_t>(random()));
  }

  Status Write(const std::string& path) const {
    std::unique_ptr<TraceWriter> writer;
    TACTIC_RETURN_IF_ERROR(TraceWriter::Open(path, info, &writer));
    for (size_t i = 0; i < info.layers.size(); ++i) {
      TACTIC_RETURN_IF_ERROR(writer->WriteLayer(keys[i].rows, values[i].rows, queries[i]));
    }
    return writer->Finish(tokens);
  }
};

}  // namespace tactic::app

#endif  // TACTIC_TESTS_APP_SMALL_TRACE_H_
