#include "exit_code.h"

namespace tactic::app {

const char kExitCodeHelp[] =
    "Exit codes:\n"
    "  0    done\n"
    "  1    failed at run time\n"
    "  2    an argument is wrong, or does not fit the machine, the model or another argument\n"
    "  3    an input file or the model cannot be used\n"
    "  130  interrupted by Ctrl-C (128 + number of the signal)";

int ExitCodeOf(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return kExitOk;
    case StatusCode::kInvalidArgument:
    case StatusCode::kOutOfRange:
    case StatusCode::kResourceExhausted:
      return kExitUsage;
    case StatusCode::kNotFound:
    case StatusCode::kUnsupported:
      return kExitInput;
    case StatusCode::kInternal:
      return kExitFailure;
  }
  return kExitFailure;
}

}  // namespace tactic::app
