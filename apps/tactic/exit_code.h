// Exit codes of the program and how they follow from a Status.
#ifndef TACTIC_APPS_EXIT_CODE_H_
#define TACTIC_APPS_EXIT_CODE_H_

#include "tactic/status.h"

namespace tactic::app {

enum ExitCode : int {
  kExitOk = 0,
  kExitFailure = 1,  // something failed at run time
  kExitUsage =
      2,  // an argument is wrong or does not fit (the machine, the model, another argument)
  kExitInput = 3,     // an input file or the model cannot be used
  kExitSignal = 128,  // plus the signal's number: 130 after Ctrl-C
};

// The paragraph of --help that documents the codes.
extern const char kExitCodeHelp[];

// InvalidArgument, OutOfRange and ResourceExhausted are the caller's arguments (2), NotFound and
// Unsupported the input's (3), everything else is a failure (1).
int ExitCodeOf(const Status& status);

}  // namespace tactic::app

#endif  // TACTIC_APPS_EXIT_CODE_H_
