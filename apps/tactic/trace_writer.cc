#include "trace_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "interrupt.h"
#include "trace_metadata.h"

namespace tactic::app {
namespace {

// Rows that are gathered before they are written: small enough for the L2 cache.
constexpr int64_t kChunkRows = 2048;

}  // namespace

Status TraceWriter::Open(const std::string& path, const TraceInfo& info,
                         std::unique_ptr<TraceWriter>* result) {
  std::unique_ptr<TraceWriter> writer(new TraceWriter(path, info));
  writer->file_.reset(std::fopen(writer->pending_.temporary_path().c_str(), "wb"));
  if (!writer->file_) {
    return Status::InvalidArgument(
        fmt::format("cannot write '{}': {}", path, std::strerror(errno)));
  }
  auto tensors = TraceTensors(info);
  const std::string header = MakeSafetensorsHeader(TraceMetadata(info), &tensors);
  TACTIC_RETURN_IF_ERROR(writer->Write(header.data(), header.size()));
  *result = std::move(writer);
  return Status::Ok();
}

Status TraceWriter::Mismatch(const std::string& what) const {
  return Status::Internal(fmt::format("writing '{}' failed: {}", path_, what));
}

Status TraceWriter::Write(const void* data, size_t bytes) {
  if (std::fwrite(data, 1, bytes, file_.get()) == bytes) return Status::Ok();
  return Status::Internal(fmt::format("writing '{}' failed: {}", path_, std::strerror(errno)));
}

Status TraceWriter::WriteRows(const RowsView& rows, int heads, int dim) {
  const size_t row_bytes = RowBytes(rows.type, static_cast<size_t>(dim));
  for (int head = 0; head < heads; ++head) {
    for (int64_t begin = 0; begin < info_.tokens(); begin += kChunkRows) {
      if (Interrupted()) return InterruptedStatus();
      const int64_t count = std::min(kChunkRows, info_.tokens() - begin);
      chunk_.resize(static_cast<size_t>(count) * row_bytes);
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(chunk_.data() + static_cast<size_t>(i) * row_bytes,
                    rows.Head(head) + static_cast<size_t>(begin + i) * rows.row_stride, row_bytes);
      }
      TACTIC_RETURN_IF_ERROR(Write(chunk_.data(), chunk_.size()));
    }
  }
  return Status::Ok();
}

Status TraceWriter::WriteLayer(const RowsView& keys, const RowsView& values,
                               std::span<const float> queries) {
  if (next_layer_ == info_.layers.size()) return Mismatch("a layer too many");
  const TraceLayer& layer = info_.layers[next_layer_++];
  const LayerShape& shape = layer.shape;
  if (keys.type != layer.key_type || values.type != layer.value_type ||
      std::ssize(queries) != int64_t{info_.steps} * shape.q_heads * shape.head_dim) {
    return Mismatch(fmt::format("layer {} is not of the announced kind", layer.layer));
  }
  TACTIC_RETURN_IF_ERROR(WriteRows(keys, shape.kv_heads, shape.head_dim));
  TACTIC_RETURN_IF_ERROR(WriteRows(values, shape.kv_heads, shape.value_dim));
  return Write(queries.data(), queries.size_bytes());
}

Status TraceWriter::Finish(std::span<const int32_t> tokens) {
  if (next_layer_ != info_.layers.size() || std::ssize(tokens) != info_.tokens() + 1) {
    return Mismatch("layers or tokens are missing");
  }
  TACTIC_RETURN_IF_ERROR(Write(tokens.data(), tokens.size_bytes()));
  // fclose flushes: a full disk often shows only here.
  if (std::fclose(file_.release()) != 0) {
    return Status::Internal(fmt::format("writing '{}' failed: {}", path_, std::strerror(errno)));
  }
  return pending_.Commit();
}

}  // namespace tactic::app
