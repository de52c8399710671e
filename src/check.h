// TACTIC_CHECK: aborts on a bug of ours, with the place and the condition. Errors a caller can
// cause are Status instead.
#ifndef TACTIC_SRC_CHECK_H_
#define TACTIC_SRC_CHECK_H_

#include <cstdio>
#include <cstdlib>

#define TACTIC_CHECK(condition)                                                             \
  do {                                                                                      \
    if (!(condition)) {                                                                     \
      std::fprintf(stderr, "%s:%d: internal error: %s does not hold\n", __FILE__, __LINE__, \
                   #condition);                                                             \
      std::abort();                                                                         \
    }                                                                                       \
  } while (false)

#endif  // TACTIC_SRC_CHECK_H_
