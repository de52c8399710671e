// Safetensors: the header of a file of named tensors, which NumPy, PyTorch and Rust can read, too.
//
//   u64 length of the header, little-endian
//   header: a JSON object, padded with spaces
//     "__metadata__": {name: text, ...}
//     tensor: {"dtype": "F16", "shape": [...], "data_offsets": [begin, end]}   from the data's
//     start
//   data: the tensors in row-major order, one behind the other
#ifndef TACTIC_APPS_SAFETENSORS_H_
#define TACTIC_APPS_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tactic/status.h"

namespace tactic::app {

struct SafeTensor {
  std::string dtype;           // "F32", "F16", "BF16" or "I32"
  std::vector<int64_t> shape;  // slowest dimension first
  size_t offset = 0;           // of its data, from the file's start
  size_t bytes = 0;
};

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  std::map<std::string, SafeTensor> tensors;
};

// Bytes of an element; 0 for a type that this program does not use.
size_t DtypeBytes(const std::string& dtype);

// "[24, 9, 64]"
std::string ShapeText(const std::vector<int64_t>& shape);

// Reads the header of a whole file. Unsupported, with a sentence that says what is wrong, unless
// every tensor has a known type, lies inside the file, is aligned to its elements and as large as
// its shape says, and tensors cover the data without gaps.
Status ParseSafetensors(std::span<const uint8_t> file, SafetensorsHeader* header);

// The bytes in front of the data. Tensors lie in the order given; their dtype and shape are used,
// and `offset` and `bytes` filled in. The data starts at a multiple of 64 bytes.
// REQUIRES: known dtypes.
std::string MakeSafetensorsHeader(const std::map<std::string, std::string>& metadata,
                                  std::vector<std::pair<std::string, SafeTensor>>* tensors);

}  // namespace tactic::app

#endif  // TACTIC_APPS_SAFETENSORS_H_
