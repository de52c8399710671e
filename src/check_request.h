// Checks of what callers give to attention: rows that the kernels can read, strides, parameters.
#ifndef TACTIC_SRC_CHECK_REQUEST_H_
#define TACTIC_SRC_CHECK_REQUEST_H_

#include <cmath>
#include <string>

#include "tactic/decode.h"
#include "tactic/rows_view.h"
#include "tactic/status.h"

namespace tactic {

// InvalidArgument unless `rows`, called `name` in the message, has data of a known type that can
// hold rows of `dim` elements.
inline Status CheckRows(const char* name, const RowsView& rows, int dim) {
  const std::string what(name);
  if (rows.data == nullptr)
    return Status::InvalidArgument(what + ".data is null; expected the rows of the layer");
  if (rows.type > ElementType::kQ4_0) {
    return Status::InvalidArgument(what + ".type is " +
                                   std::to_string(static_cast<int>(rows.type)) +
                                   "; expected an ElementType");
  }
  const bool quantised = rows.type == ElementType::kQ8_0 || rows.type == ElementType::kQ4_0;
  if (quantised && dim % kQuantBlock != 0) {
    return Status::InvalidArgument(
        what + " have " + std::to_string(dim) + " elements per row; expected a multiple of " +
        std::to_string(kQuantBlock) + " for " + ElementTypeName(rows.type));
  }
  return Status::Ok();
}

// `stride`, in elements from one row of at least `least` of them to the next.
inline Status CheckStride(const char* name, size_t stride, size_t least) {
  if (stride >= least) return Status::Ok();
  return Status::InvalidArgument(std::string(name) + " is " + std::to_string(stride) +
                                 "; expected at least " + std::to_string(least));
}

inline Status CheckThreads(int threads) {
  if (threads >= 1) return Status::Ok();
  return Status::InvalidArgument("threads is " + std::to_string(threads) + "; expected at least 1");
}

inline Status CheckParams(const DecodeParams& params) {
  if (!(params.scale > 0) || !std::isfinite(params.scale)) {
    return Status::InvalidArgument("scale is " + std::to_string(params.scale) +
                                   "; expected a number above 0");
  }
  if (!(params.softcap >= 0) || !std::isfinite(params.softcap)) {
    return Status::InvalidArgument("softcap is " + std::to_string(params.softcap) +
                                   "; expected 0 or a number above 0");
  }
  return Status::Ok();
}

}  // namespace tactic

#endif  // TACTIC_SRC_CHECK_REQUEST_H_
