// Npz: arrays of an .npz file whose members are stored uncompressed, in place.
//
// An .npz is a zip archive of .npy files: each begins with a header that gives type and shape as
// text.
#ifndef TACTIC_TESTS_CORE_NPZ_H_
#define TACTIC_TESTS_CORE_NPZ_H_

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace tactic {

class Npz {
 public:
  // Without arrays when the file cannot be read; up to the first member that is compressed.
  explicit Npz(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    size_t at = 0;
    constexpr uint32_t kLocalHeader = 0x04034b50;
    constexpr size_t kLocalHeaderBytes = 30;
    while (at + kLocalHeaderBytes < bytes_.size() && Take<uint32_t>(at) == kLocalHeader &&
           Take<uint16_t>(at + 8) == 0) {
      const size_t size = Take<uint32_t>(at + 22);
      const size_t name_length = Take<uint16_t>(at + 26);
      const size_t data = at + kLocalHeaderBytes + name_length + Take<uint16_t>(at + 28);
      const std::string name(bytes_.data() + at + kLocalHeaderBytes, name_length);
      const size_t npy_header = 10 + Take<uint16_t>(data + 8);
      const std::string text(bytes_.data() + data + 10, npy_header - 10);
      arrays_[name.substr(0, name.rfind(".npy"))] = {data + npy_header, size - npy_header, text};
      at = data + size;
    }
  }

  // The elements of an array whose header contains `type` and `shape`, e.g. "'<f4'" and "(3, 64)";
  // empty if there is no such array.
  template <class T>
  std::vector<T> Get(const std::string& name, const std::string& type,
                     const std::string& shape) const {
    const auto found = arrays_.find(name);
    if (found == arrays_.end()) return {};
    const Array& array = found->second;
    if (array.header.find(type) == std::string::npos ||
        array.header.find(shape) == std::string::npos ||
        array.header.find("'fortran_order': False") == std::string::npos) {
      return {};
    }
    std::vector<T> elements(array.size / sizeof(T));
    std::memcpy(elements.data(), bytes_.data() + array.offset, elements.size() * sizeof(T));
    return elements;
  }

 private:
  struct Array {
    size_t offset;
    size_t size;
    std::string header;
  };
  template <class T>
  T Take(size_t at) const {
    T value;
    std::memcpy(&value, bytes_.data() + at, sizeof(T));
    return value;
  }

  std::vector<char> bytes_;
  std::map<std::string, Array> arrays_;
};

}  // namespace tactic

#endif  // TACTIC_TESTS_CORE_NPZ_H_
