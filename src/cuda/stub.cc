// tactic/cuda.h where the library was built without CUDA.
#include <memory>

#include "tactic/cuda.h"

namespace tactic::cuda {
namespace {

Status NotBuilt() { return Status::Unsupported("the library was built without CUDA"); }

}  // namespace

struct Index::Impl {};
struct Decoder::Impl {};

Status Available() { return NotBuilt(); }

Index::Index() = default;
Index::~Index() = default;
Status Index::Create(const LayerShape&, const Options&, int64_t, std::unique_ptr<Index>*) {
  return NotBuilt();
}
Status Index::Append(const KvCache&, int, int64_t, Stream) { return NotBuilt(); }
Status Index::Truncate(int64_t, Stream) { return NotBuilt(); }
int64_t Index::size() const { return 0; }
size_t Index::MemoryBytes() const { return 0; }
const void* Index::device_view() const { return nullptr; }

Decoder::Decoder() = default;
Decoder::~Decoder() = default;
Status Decoder::Create(const LayerShape&, const Options&, int, int64_t, std::unique_ptr<Decoder>*) {
  return NotBuilt();
}
Status Decoder::Decode(const DecodeRequest&, Stream) { return NotBuilt(); }
const DeviceReport* Decoder::reports() const { return nullptr; }
size_t Decoder::WorkspaceBytes() const { return 0; }
Status Decoder::SelectedRows(int, int, std::vector<int32_t>*) const { return NotBuilt(); }

}  // namespace tactic::cuda
