// From the element type and head_dim that a call has to those that a kernel is compiled for.
#ifndef TACTIC_SRC_CUDA_DISPATCH_H_
#define TACTIC_SRC_CUDA_DISPATCH_H_

#include <string>

#include "src/cuda/tile.cuh"
#include "tactic/cuda.h"
#include "tactic/status.h"

namespace tactic::cuda {

// f.operator()<head_dim>(), which returns a Status.
template <class F>
Status DispatchDim(int head_dim, const F& f) {
  switch (head_dim) {
    case 64:
      return f.template operator()<64>();
    case 96:
      return f.template operator()<96>();
    case 128:
      return f.template operator()<128>();
    case 256:
      return f.template operator()<256>();
    default:
      return Status::Internal("there is no kernel for head_dim " + std::to_string(head_dim));
  }
}

// f.operator()<Row, head_dim>(), which returns a Status. Row: RowBF16, RowF16 or RowE4M3.
template <class F>
Status DispatchRows(Element type, int head_dim, const F& f) {
  const auto by_dim = [&]<class Row>() {
    return DispatchDim(head_dim, [&]<int kDim>() { return f.template operator()<Row, kDim>(); });
  };
  switch (type) {
    case Element::kBF16:
      return by_dim.template operator()<RowBF16>();
    case Element::kF16:
      return by_dim.template operator()<RowF16>();
    case Element::kE4M3:
      return by_dim.template operator()<RowE4M3>();
    default:
      return Status::Internal("there is no kernel for elements of type " +
                              std::to_string(static_cast<int>(type)));
  }
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_DISPATCH_H_
