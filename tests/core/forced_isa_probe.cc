// forced_isa_probe ok [isa]: succeeds if a decode step can be planned, and runs with that ISA.
// forced_isa_probe error text: succeeds if planning fails and its message names the variable and
// `text`. Run with TACTIC_FORCE_ISA set; a bad value must never fall back in silence.
#include <cstdio>
#include <string>

#include "tactic/decode.h"
#include "tactic/isa.h"

int main(int argc, char** argv) {
  const std::string expect = argc > 1 ? argv[1] : "";
  const std::string text = argc > 2 ? argv[2] : "";
  const tactic::LayerShape shape{1, 1, 8, 8};
  tactic::DecodeStep step;
  const tactic::Status status =
      step.Plan(shape, tactic::Options(), tactic::DecodeParams(), {}, /*threads=*/1);
  std::printf("Plan: \"%s\", ISA %s\n", status.message().c_str(), tactic::IsaName());
  if (expect == "ok") return status.ok() && (text.empty() || text == tactic::IsaName()) ? 0 : 1;
  const bool named = status.message().find("TACTIC_FORCE_ISA") != std::string::npos &&
                     status.message().find(text) != std::string::npos;
  return expect == "error" && status.code() == tactic::StatusCode::kInvalidArgument && named ? 0
                                                                                             : 1;
}
