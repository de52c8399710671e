// CheckRows: whether a RowsView is one that the kernels can read.
#ifndef TACTIC_SRC_CHECK_ROWS_H_
#define TACTIC_SRC_CHECK_ROWS_H_

#include <string>

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

}  // namespace tactic

#endif  // TACTIC_SRC_CHECK_ROWS_H_
