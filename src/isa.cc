#include "tactic/isa.h"

#include <cstdint>
#include <cstdlib>

// Part of the public target list of kernels.cc: the same HWY_DISABLED_TARGETS apply to the whole
// library.
#include "hwy/highway.h"

namespace tactic {
namespace {

struct Named {
  const char* name;
  int64_t target;
};

// Best first.
constexpr Named kIsas[] = {
    {"avx3", HWY_AVX3},         {"avx2", HWY_AVX2},       {"sse4", HWY_SSE4},
    {"sve2_128", HWY_SVE2_128}, {"sve_256", HWY_SVE_256}, {"sve2", HWY_SVE2},
    {"sve", HWY_SVE},           {"neon", HWY_NEON},       {"scalar", HWY_EMU128},
    {"scalar", HWY_SCALAR},
};

// Targets that this build compiled and this CPU runs.
int64_t Usable() {
  static const int64_t usable = hwy::SupportedTargets() & HWY_TARGETS;
  return usable;
}

Status Choose(std::string_view name) {
  std::string known;
  for (const Named& isa : kIsas) {
    if ((HWY_TARGETS & isa.target) == 0) continue;
    if (name == isa.name) {
      if ((Usable() & isa.target) == 0) {
        return Status::Unsupported("instruction set \"" + std::string(name) +
                                   "\" is not supported by this CPU");
      }
      hwy::SetSupportedTargetsForTest(isa.target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      return Status::Ok();
    }
    known += known.empty() ? isa.name : std::string(", ") + isa.name;
  }
  return Status::InvalidArgument("instruction set is \"" + std::string(name) +
                                 "\"; expected one of " + known);
}

}  // namespace

std::vector<std::string> SupportedIsas() {
  std::vector<std::string> names;
  for (const Named& isa : kIsas) {
    if ((Usable() & isa.target) != 0) names.emplace_back(isa.name);
  }
  return names;
}

const char* IsaName() {
  (void)IsaStatus();
  const int64_t best = hwy::SupportedTargets() & HWY_TARGETS;
  for (const Named& isa : kIsas) {
    if ((best & isa.target) != 0) return isa.name;
  }
  return "scalar";
}

Status SetIsa(std::string_view name) {
  (void)IsaStatus();
  return Choose(name);
}

Status IsaStatus() {
  static const Status status = [] {
    const char* forced = std::getenv("TACTIC_FORCE_ISA");
    (void)Usable();
    if (forced == nullptr || *forced == '\0') return Status::Ok();
    Status chosen = Choose(forced);
    if (chosen.ok()) return chosen;
    return Status(chosen.code(), "TACTIC_FORCE_ISA: " + chosen.message());
  }();
  return status;
}

}  // namespace tactic
