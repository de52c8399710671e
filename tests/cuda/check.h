// Checks for the tests of the CUDA backend, which need nothing but a CUDA compiler.
#ifndef TACTIC_TESTS_CUDA_CHECK_H_
#define TACTIC_TESTS_CUDA_CHECK_H_

#include <cstdio>
#include <cstdlib>

namespace tactic::testing {

struct Checks {
  long passed = 0;
  long failed = 0;
};
inline Checks& AllChecks() {
  static Checks checks;
  return checks;
}

// What main returns.
inline int Summary() {
  const Checks& all = AllChecks();
  if (all.failed != 0) std::printf("%ld checks FAILED\n", all.failed);
  std::printf("%ld checks passed\n", all.passed);
  return all.failed == 0 ? 0 : 1;
}

}  // namespace tactic::testing

// Counts, and prints where it does not hold; the rest is as for printf.
#define CHECK(condition, ...)                                                   \
  do {                                                                          \
    if (condition) {                                                            \
      ++::tactic::testing::AllChecks().passed;                                  \
    } else if (++::tactic::testing::AllChecks().failed <= 50) {                 \
      std::printf("%s:%d: %s does not hold: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                                 \
      std::printf("\n");                                                        \
    }                                                                           \
  } while (false)

// For what the rest of a test cannot do without.
#define CHECK_OK(status)                                                              \
  do {                                                                                \
    const ::tactic::Status check_status = (status);                                   \
    if (!check_status.ok()) {                                                         \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, check_status.message().c_str()); \
      std::exit(1);                                                                   \
    }                                                                                 \
  } while (false)
#define CHECK_CUDA(call)                                                               \
  do {                                                                                 \
    const cudaError_t check_error = (call);                                            \
    if (check_error != cudaSuccess) {                                                  \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(check_error)); \
      std::exit(1);                                                                    \
    }                                                                                  \
  } while (false)

#endif  // TACTIC_TESTS_CUDA_CHECK_H_
