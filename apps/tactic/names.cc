#include "names.h"

#include <fmt/format.h>

#include <array>

namespace tactic::app {

Status ParseKvType(const std::string& name, const std::string& field, ggml_type* type) {
  constexpr std::array kTypes = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0,
                                 GGML_TYPE_Q4_0};
  for (const ggml_type candidate : kTypes) {
    if (name == ggml_type_name(candidate)) {
      *type = candidate;
      return Status::Ok();
    }
  }
  return Status::InvalidArgument(
      fmt::format("{} is '{}', expected f32, f16, bf16, q8_0 or q4_0", field, name));
}

}  // namespace tactic::app
