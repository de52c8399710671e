#include "safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>

namespace tactic::app {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr char kMetadata[] = "__metadata__";
constexpr size_t kLengthBytes = sizeof(uint64_t);
// Of the data in the file: a cache line, so that rows of 64 bytes never straddle two.
constexpr size_t kAlignment = 64;
// Larger dimensions could overflow products and exist in no file.
constexpr uint64_t kLargestDimension = uint64_t{1} << 40;

Status ReadTensor(const std::string& name, const json& entry, size_t data_start, size_t data_bytes,
                  SafeTensor* tensor) {
  const auto bad = [&](const std::string& what) {
    return Status::Unsupported(fmt::format("tensor '{}' {}", name, what));
  };
  if (!entry.is_object()) return bad("is described by something else than a JSON object");
  const json dtype = entry.value("dtype", json());
  const json shape = entry.value("shape", json());
  const json offsets = entry.value("data_offsets", json());
  if (!dtype.is_string()) return bad("has no dtype");
  tensor->dtype = dtype.get<std::string>();
  const size_t element = DtypeBytes(tensor->dtype);
  if (element == 0) {
    return bad(fmt::format("has dtype '{}', expected F32, F16, BF16 or I32", tensor->dtype));
  }
  if (!shape.is_array()) return bad("has no shape");
  size_t bytes = element;
  for (const json& size : shape) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > kLargestDimension) {
      return bad(fmt::format("has a dimension of {}, expected a number from 0 to {}", size.dump(),
                             kLargestDimension));
    }
    tensor->shape.push_back(size.get<int64_t>());
    if (__builtin_mul_overflow(bytes, size.get<size_t>(), &bytes)) {
      return bad("has a shape that no file can hold");
    }
  }
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    return bad("has no data_offsets of two numbers");
  }
  const auto begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>();
  if (begin > end || end > data_bytes) {
    return bad(
        fmt::format("lies at {} to {}, but the file has {} bytes of data", begin, end, data_bytes));
  }
  if (end - begin != bytes) {
    return bad(fmt::format("has {} bytes, expected {} for {} of shape {}", end - begin, bytes,
                           tensor->dtype, ShapeText(tensor->shape)));
  }
  tensor->offset = data_start + begin;
  tensor->bytes = bytes;
  if (tensor->offset % element != 0) return bad("is not aligned to its elements");
  return Status::Ok();
}

// Tensors must lie one behind the other.
Status CheckCover(const SafetensorsHeader& header, size_t data_start, size_t file_bytes) {
  std::vector<std::pair<size_t, std::string>> order;
  for (const auto& [name, tensor] : header.tensors) order.emplace_back(tensor.offset, name);
  std::sort(order.begin(), order.end());
  size_t at = data_start;
  for (const auto& [offset, name] : order) {
    if (offset != at) {
      return Status::Unsupported(fmt::format("tensor '{}' starts at byte {}, expected {}", name,
                                             offset - data_start, at - data_start));
    }
    at += header.tensors.at(name).bytes;
  }
  if (at != file_bytes) {
    return Status::Unsupported(
        fmt::format("there are {} bytes behind the last tensor", file_bytes - at));
  }
  return Status::Ok();
}

}  // namespace

size_t DtypeBytes(const std::string& dtype) {
  if (dtype == "F32" || dtype == "I32") return 4;
  if (dtype == "F16" || dtype == "BF16") return 2;
  return 0;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

Status ParseSafetensors(std::span<const uint8_t> file, SafetensorsHeader* header) {
  uint64_t length = 0;
  if (file.size() < kLengthBytes) {
    return Status::Unsupported(
        fmt::format("it has {} bytes, expected the length of a header first", file.size()));
  }
  std::memcpy(&length, file.data(), kLengthBytes);
  if (length > file.size() - kLengthBytes) {
    return Status::Unsupported(
        fmt::format("its header should have {} bytes, but the file ends after {}", length,
                    file.size() - kLengthBytes));
  }
  const auto* text = reinterpret_cast<const char*>(file.data()) + kLengthBytes;
  const json root = json::parse(text, text + length, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return Status::Unsupported("its header is not a JSON object");

  *header = {};
  const size_t data_start = kLengthBytes + length;
  for (const auto& [name, entry] : root.items()) {
    if (name == kMetadata) continue;
    TACTIC_RETURN_IF_ERROR(
        ReadTensor(name, entry, data_start, file.size() - data_start, &header->tensors[name]));
  }
  const json metadata = root.value(kMetadata, json::object());
  if (!metadata.is_object()) return Status::Unsupported("its metadata is not a JSON object");
  for (const auto& [name, value] : metadata.items()) {
    if (!value.is_string()) {
      return Status::Unsupported(
          fmt::format("metadata '{}' is {}, expected a string", name,
                      value.dump(-1, ' ', false, json::error_handler_t::replace)));
    }
    header->metadata[name] = value.get<std::string>();
  }
  return CheckCover(*header, data_start, file.size());
}

std::string MakeSafetensorsHeader(const std::map<std::string, std::string>& metadata,
                                  std::vector<std::pair<std::string, SafeTensor>>* tensors) {
  json root = {{kMetadata, metadata}};
  size_t at = 0;
  for (auto& [name, tensor] : *tensors) {
    tensor.offset = at;
    tensor.bytes = DtypeBytes(tensor.dtype);
    for (const int64_t size : tensor.shape) tensor.bytes *= static_cast<size_t>(size);
    at += tensor.bytes;
    root[name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {tensor.offset, at}}};
  }
  // Names of files need not be UTF-8; JSON must be.
  std::string text = root.dump(-1, ' ', false, json::error_handler_t::replace);
  const size_t used = kLengthBytes + text.size();
  text.append((kAlignment - used % kAlignment) % kAlignment, ' ');
  const uint64_t length = text.size();
  for (auto& [name, tensor] : *tensors) tensor.offset += kLengthBytes + length;
  std::string bytes(kLengthBytes, '\0');
  std::memcpy(bytes.data(), &length, kLengthBytes);
  return bytes + text;
}

}  // namespace tactic::app
