#include "state_blob.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>

namespace tactic::app {
namespace {

constexpr size_t kCellBytes = 3 * sizeof(uint32_t);  // position, one sequence, its number
constexpr size_t kFlagBytes = 2 * sizeof(uint32_t);  // v_transposed, layers

// Reads numbers off a blob; every read checks the end.
class Reader {
 public:
  explicit Reader(const std::vector<uint8_t>& blob) : blob_(blob) {}

  template <typename T>
  T Get() {
    T value{};
    if (!Has(sizeof(T))) return value;
    std::memcpy(&value, blob_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  void Skip(size_t bytes) {
    if (Has(bytes)) at_ += bytes;
  }
  size_t at() const { return at_; }
  bool ok() const { return ok_; }
  bool AtEnd() const { return at_ == blob_.size(); }
  void Fail() { ok_ = false; }

 private:
  bool Has(size_t bytes) {
    ok_ = ok_ && bytes <= blob_.size() - at_;
    return ok_;
  }
  const std::vector<uint8_t>& blob_;
  size_t at_ = 0;
  bool ok_ = true;
};

BlobTensor ReadTensor(uint32_t cells, bool transposed, Reader* in) {
  BlobTensor tensor;
  tensor.header = in->at();
  const auto type = in->Get<int32_t>();
  if (type < 0 || type >= GGML_TYPE_COUNT) {
    in->Fail();
    return tensor;
  }
  tensor.type = static_cast<ggml_type>(type);
  if (transposed) {
    const auto element = in->Get<uint32_t>();
    tensor.row_bytes = size_t{element} * in->Get<uint32_t>();
  } else {
    tensor.row_bytes = in->Get<uint64_t>();
  }
  tensor.data = in->at();
  // An absurd row would overflow the product below.
  if (tensor.row_bytes == 0 || tensor.row_bytes > (size_t{1} << 30)) in->Fail();
  in->Skip(tensor.row_bytes * cells);
  return tensor;
}

BlobCache ReadCache(Reader* in) {
  BlobCache cache;
  cache.start = in->at();
  if (in->Get<uint32_t>() != 1) in->Fail();
  cache.cells_at = in->at();
  cache.cells = in->Get<uint32_t>();
  if (cache.cells == 0) in->Fail();
  for (uint32_t i = 0; i < cache.cells && in->ok(); ++i) {
    in->Get<int32_t>();
    if (in->Get<uint32_t>() != 1) in->Fail();
    in->Get<int32_t>();
  }
  cache.flags_at = in->at();
  cache.v_transposed = in->Get<uint32_t>() != 0;
  const auto layers = in->Get<uint32_t>();
  for (uint32_t i = 0; i < layers && in->ok(); ++i) {
    cache.keys.push_back(ReadTensor(cache.cells, false, in));
  }
  for (uint32_t i = 0; i < layers && in->ok(); ++i) {
    cache.values.push_back(ReadTensor(cache.cells, cache.v_transposed, in));
  }
  return cache;
}

template <typename T>
void Append(const T& value, std::vector<uint8_t>* out) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
  out->insert(out->end(), bytes, bytes + sizeof(T));
}

template <typename T>
T Load(const std::vector<uint8_t>& blob, size_t at) {
  T value;
  std::memcpy(&value, blob.data() + at, sizeof(T));
  return value;
}

void CopyBytes(const std::vector<uint8_t>& from, size_t start, size_t end,
               std::vector<uint8_t>* out) {
  out->insert(out->end(), from.begin() + static_cast<std::ptrdiff_t>(start),
              from.begin() + static_cast<std::ptrdiff_t>(end));
}

// Rows of random values in some type, to be copied from: drawing every value would take longer than
// everything else.
class RandomRows {
 public:
  RandomRows(ggml_type type, size_t row_bytes, std::mt19937_64* random) : row_bytes_(row_bytes) {
    const auto width =
        static_cast<int64_t>(row_bytes / ggml_type_size(type)) * ggml_blck_size(type);
    std::vector<float> values(static_cast<size_t>(kRows * width));
    for (float& value : values) {
      // The sum of twelve uniform numbers has variance 1 and, unlike std::normal_distribution, is
      // the same everywhere.
      value = -6;
      for (int i = 0; i < 12; ++i) value += static_cast<float>((*random)() >> 40) * 0x1p-24F;
    }
    rows_.resize(kRows * row_bytes);
    ggml_quantize_chunk(type, values.data(), rows_.data(), 0, kRows, width, nullptr);
  }

  void CopyTo(std::mt19937_64* random, uint8_t* row) const {
    std::memcpy(row, rows_.data() + ((*random)() % kRows) * row_bytes_, row_bytes_);
  }

 private:
  static constexpr int64_t kRows = 1024;
  size_t row_bytes_;
  std::vector<uint8_t> rows_;
};

}  // namespace

Status ParseStateBlob(const std::vector<uint8_t>& blob, std::vector<BlobCache>* caches) {
  caches->clear();
  Reader in(blob);
  in.Skip(in.Get<uint32_t>());
  while (in.ok() && !in.AtEnd()) caches->push_back(ReadCache(&in));
  if (!in.ok() || caches->empty()) {
    return Status::Unsupported("this libllama stores its KV cache in a format unknown to tactic");
  }
  return Status::Ok();
}

Status TransposeValues(std::vector<uint8_t>* blob) {
  std::vector<BlobCache> caches;
  TACTIC_RETURN_IF_ERROR(ParseStateBlob(*blob, &caches));
  std::vector<uint8_t> rows;
  for (const BlobCache& cache : caches) {
    const uint32_t transposed = 1;
    std::memcpy(blob->data() + cache.flags_at, &transposed, sizeof(transposed));
    for (const BlobTensor& value : cache.values) {
      if (cache.v_transposed || ggml_blck_size(value.type) != 1) {
        return Status::Unsupported(
            fmt::format("V of type {} cannot be transposed", ggml_type_name(value.type)));
      }
      const auto element = static_cast<uint32_t>(ggml_type_size(value.type));
      const auto width = static_cast<uint32_t>(value.row_bytes / element);
      uint8_t* header = blob->data() + value.header + sizeof(int32_t);
      std::memcpy(header, &element, sizeof(element));
      std::memcpy(header + sizeof(element), &width, sizeof(width));
      uint8_t* data = blob->data() + value.data;
      rows.assign(data, data + value.row_bytes * cache.cells);
      for (size_t i = 0; i < width; ++i) {
        for (size_t cell = 0; cell < cache.cells; ++cell) {
          std::memcpy(data + (i * cache.cells + cell) * element,
                      rows.data() + cell * value.row_bytes + i * element, element);
        }
      }
    }
  }
  return Status::Ok();
}

Status KeepFirstCells(const std::vector<uint8_t>& blob, uint32_t cells,
                      std::vector<uint8_t>* kept) {
  std::vector<BlobCache> caches;
  TACTIC_RETURN_IF_ERROR(ParseStateBlob(blob, &caches));
  kept->clear();
  CopyBytes(blob, 0, caches.front().start, kept);
  for (const BlobCache& cache : caches) {
    if (cache.v_transposed || cache.cells < cells) {
      return Status::Unsupported("the state has too few cells, or V is transposed");
    }
    for (uint32_t i = 0; i < cells; ++i) {
      const size_t cell = cache.cells_at + sizeof(uint32_t) + i * kCellBytes;
      if (Load<int32_t>(blob, cell) != static_cast<int32_t>(i)) {
        return Status::Unsupported("the cells of the state are not in the order of positions");
      }
    }
    CopyBytes(blob, cache.start, cache.cells_at, kept);
    Append(cells, kept);
    const size_t first_cell = cache.cells_at + sizeof(uint32_t);
    CopyBytes(blob, first_cell, first_cell + cells * kCellBytes, kept);
    CopyBytes(blob, cache.flags_at, cache.flags_at + kFlagBytes, kept);
    for (const auto* tensors : {&cache.keys, &cache.values}) {
      for (const BlobTensor& tensor : *tensors) {
        CopyBytes(blob, tensor.header, tensor.data + tensor.row_bytes * cells, kept);
      }
    }
  }
  return Status::Ok();
}

Status EmptyStateBlob(const std::vector<uint8_t>& sample, uint32_t cells,
                      std::vector<uint8_t>* blob) {
  std::vector<BlobCache> caches;
  TACTIC_RETURN_IF_ERROR(ParseStateBlob(sample, &caches));
  size_t bytes = sample.size();
  for (const BlobCache& cache : caches) {
    bytes += kCellBytes * cells;
    for (const BlobTensor& tensor : cache.keys) bytes += tensor.row_bytes * cells;
    for (const BlobTensor& tensor : cache.values) bytes += tensor.row_bytes * cells;
  }
  blob->clear();
  blob->reserve(bytes);
  CopyBytes(sample, 0, caches.front().start, blob);
  for (const BlobCache& cache : caches) {
    CopyBytes(sample, cache.start, cache.cells_at, blob);
    Append(cells, blob);
    for (uint32_t i = 0; i < cells; ++i) {
      Append(static_cast<int32_t>(i), blob);  // position
      Append(uint32_t{1}, blob);              // in one sequence,
      Append(int32_t{0}, blob);               // number 0
    }
    CopyBytes(sample, cache.flags_at, cache.flags_at + kFlagBytes, blob);
    for (const auto* tensors : {&cache.keys, &cache.values}) {
      for (const BlobTensor& tensor : *tensors) {
        CopyBytes(sample, tensor.header, tensor.data, blob);
        blob->resize(blob->size() + tensor.row_bytes * cells);
      }
    }
  }
  return Status::Ok();
}

Status RandomStateBlob(const std::vector<uint8_t>& sample, uint32_t cells, uint64_t seed,
                       std::vector<uint8_t>* blob) {
  TACTIC_RETURN_IF_ERROR(EmptyStateBlob(sample, cells, blob));
  std::vector<BlobCache> caches;
  TACTIC_RETURN_IF_ERROR(ParseStateBlob(*blob, &caches));
  std::mt19937_64 random(seed);
  for (const BlobCache& cache : caches) {
    for (const auto* tensors : {&cache.keys, &cache.values}) {
      for (const BlobTensor& tensor : *tensors) {
        const RandomRows rows(tensor.type, tensor.row_bytes, &random);
        uint8_t* row = blob->data() + tensor.data;
        for (uint32_t i = 0; i < cells; ++i, row += tensor.row_bytes) rows.CopyTo(&random, row);
      }
    }
  }
  return Status::Ok();
}

}  // namespace tactic::app
