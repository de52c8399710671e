#include "trace_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "trace_metadata.h"

namespace tactic::app {
namespace {

std::string Name(const char* kind, int layer) { return fmt::format("{}.{}", kind, layer); }

const char* DtypeOf(ElementType type) {
  return type == ElementType::kF32 ? "F32" : type == ElementType::kF16 ? "F16" : "BF16";
}

// The types that rows may have.
bool ReadRowType(const std::string& dtype, ElementType* type) {
  for (const ElementType candidate : {ElementType::kF16, ElementType::kBF16, ElementType::kF32}) {
    *type = candidate;
    if (dtype == DtypeOf(candidate)) return true;
  }
  return false;
}

// Of a tensor [kv_heads, tokens, dim].
RowsView RowsOf(const uint8_t* data, ElementType type, int64_t tokens, int dim) {
  const size_t row = RowBytes(type, static_cast<size_t>(dim));
  return {data, type, row, static_cast<size_t>(tokens) * row};
}

}  // namespace

std::vector<std::pair<std::string, SafeTensor>> TraceTensors(const TraceInfo& info) {
  std::vector<std::pair<std::string, SafeTensor>> tensors;
  const auto add = [&](std::string name, const char* dtype, std::vector<int64_t> shape) {
    tensors.emplace_back(std::move(name), SafeTensor{dtype, std::move(shape)});
  };
  for (const TraceLayer& layer : info.layers) {
    const LayerShape& shape = layer.shape;
    add(Name("k", layer.layer), DtypeOf(layer.key_type),
        {shape.kv_heads, info.tokens(), shape.head_dim});
    add(Name("v", layer.layer), DtypeOf(layer.value_type),
        {shape.kv_heads, info.tokens(), shape.value_dim});
    add(Name("q", layer.layer), "F32", {info.steps, shape.q_heads, shape.head_dim});
  }
  add("tokens", "I32", {info.tokens() + 1});
  return tensors;
}

int64_t TraceBytes(const TraceInfo& info) {
  int64_t total = 0;
  for (const auto& [name, tensor] : TraceTensors(info)) {
    auto bytes = static_cast<int64_t>(DtypeBytes(tensor.dtype));
    for (const int64_t size : tensor.shape) bytes *= size;
    total += bytes;
  }
  return total;
}

Status TraceFile::Open(const std::string& path, std::unique_ptr<TraceFile>* result) {
  std::unique_ptr<TraceFile> trace(new TraceFile());
  trace->path_ = path;
  TACTIC_RETURN_IF_ERROR(trace->Map());
  SafetensorsHeader header;
  Status status = ParseSafetensors(trace->bytes_, &header);
  if (status.ok()) status = trace->Read(header);
  if (!status.ok()) {
    return {status.code(), fmt::format("'{}' is not a trace: {}", path, status.message())};
  }
  *result = std::move(trace);
  return Status::Ok();
}

TraceFile::~TraceFile() {
  if (!bytes_.empty()) munmap(const_cast<uint8_t*>(bytes_.data()), bytes_.size());
}

Status TraceFile::Map() {
  const auto failed = [&](int error) {
    return Status::NotFound(
        fmt::format("trace '{}' cannot be read: {}", path_, std::strerror(error)));
  };
  const int file = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return failed(errno);
  struct stat facts = {};
  void* bytes = nullptr;
  int error = 0;
  if (fstat(file, &facts) != 0) {
    error = errno;
  } else if (!S_ISREG(facts.st_mode)) {
    error = S_ISDIR(facts.st_mode) ? EISDIR : EINVAL;
  } else if (facts.st_size > 0) {  // an empty file cannot be mapped; the header is missing then
    bytes = mmap(nullptr, static_cast<size_t>(facts.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    if (bytes == MAP_FAILED) error = errno;
  }
  close(file);
  if (error != 0) return failed(error);
  if (bytes != nullptr) {
    bytes_ = {static_cast<const uint8_t*>(bytes), static_cast<size_t>(facts.st_size)};
  }
  return Status::Ok();
}

Status TraceFile::Read(const SafetensorsHeader& header) {
  TACTIC_RETURN_IF_ERROR(ReadTraceMetadata(header.metadata, &info_));
  // What kind of rows they are is the one thing that only the tensors say.
  for (TraceLayer& layer : info_.layers) {
    for (const auto& [kind, type] :
         {std::pair{"k", &layer.key_type}, std::pair{"v", &layer.value_type}}) {
      const auto at = header.tensors.find(Name(kind, layer.layer));
      if (at == header.tensors.end() || ReadRowType(at->second.dtype, type)) continue;
      return Status::Unsupported(fmt::format(
          "tensor '{}' has dtype '{}', expected F16, BF16 or F32", at->first, at->second.dtype));
    }
  }
  const auto expected = TraceTensors(info_);
  for (const auto& [name, tensor] : expected) {
    const auto at = header.tensors.find(name);
    if (at == header.tensors.end()) {
      return Status::Unsupported(fmt::format("there is no tensor '{}'", name));
    }
    if (at->second.dtype != tensor.dtype || at->second.shape != tensor.shape) {
      return Status::Unsupported(fmt::format("tensor '{}' is {} of shape {}, expected {} of {}",
                                             name, at->second.dtype, ShapeText(at->second.shape),
                                             tensor.dtype, ShapeText(tensor.shape)));
    }
  }
  if (header.tensors.size() != expected.size()) {
    return Status::Unsupported(fmt::format("it has {} tensors, expected the {} of its layers",
                                           header.tensors.size(), expected.size()));
  }
  const auto data = [&](const std::string& name) {
    return bytes_.data() + header.tensors.at(name).offset;
  };
  for (const TraceLayer& layer : info_.layers) {
    data_.push_back(
        {reinterpret_cast<const float*>(data(Name("q", layer.layer))),
         RowsOf(data(Name("k", layer.layer)), layer.key_type, info_.tokens(), layer.shape.head_dim),
         RowsOf(data(Name("v", layer.layer)), layer.value_type, info_.tokens(),
                layer.shape.value_dim)});
  }
  token_ids_ = {reinterpret_cast<const int32_t*>(data("tokens")),
                static_cast<size_t>(info_.tokens() + 1)};
  const auto negative =
      std::find_if(token_ids_.begin(), token_ids_.end(), [](int32_t token) { return token < 0; });
  if (negative != token_ids_.end()) {
    return Status::Unsupported(fmt::format("token {} is {}, expected a number from 0",
                                           negative - token_ids_.begin(), *negative));
  }
  return Status::Ok();
}

const float* TraceFile::Query(size_t index, int step, int q_head) const {
  const LayerShape& shape = info_.layers[index].shape;
  const size_t row =
      static_cast<size_t>(step) * static_cast<size_t>(shape.q_heads) + static_cast<size_t>(q_head);
  return data_[index].q + row * static_cast<size_t>(shape.head_dim);
}

}  // namespace tactic::app
