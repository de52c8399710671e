// From the element type and head_dim that a call has to those that a kernel is compiled for.
#ifndef TACTIC_SRC_CUDA_DISPATCH_H_
#define TACTIC_SRC_CUDA_DISPATCH_H_

#include <string>
#include <type_traits>

#include "src/cuda/tile.cuh"
#include "tactic/cuda.h"
#include "tactic/status.h"

namespace tactic::cuda {

#ifdef TACTIC_CUDA_FEW
inline constexpr bool kFew = true;
#else
inline constexpr bool kFew = false;
#endif

// Whether kernels for rows of kDim elements of type Row are compiled. Few: every type once, the
// smallest and the largest row.
template <class Row, int kDim>
inline constexpr bool kCompiled =
    !kFew || (std::is_same_v<Row, RowF16> && kDim == 64) ||
    (std::is_same_v<Row, RowBF16> && kDim == 128) || (std::is_same_v<Row, RowE4M3> && kDim == 256);

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
    return DispatchDim(head_dim, [&]<int kDim>() {
      if constexpr (kCompiled<Row, kDim>) {
        return f.template operator()<Row, kDim>();
      } else {
        return Status::Internal("built with TACTIC_CUDA_FEW, without kernels for these rows");
      }
    });
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
