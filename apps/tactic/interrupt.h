// Interrupt: Ctrl-C (SIGINT) and SIGTERM as a flag that long work polls.
//
// The first signal sets the flag, so that the program stops after the current token or batch,
// prints what it has and leaves no partial files. A second one ends the process at once.
// Async-signal-safe; all functions may be called from any thread.
#ifndef TACTIC_APPS_INTERRUPT_H_
#define TACTIC_APPS_INTERRUPT_H_

#include "tactic/status.h"

namespace tactic::app {

// Installs the handlers. Call once, at the start of main.
void CatchInterrupts();

// The signal that arrived, 0 for none.
int InterruptSignal();

inline bool Interrupted() { return InterruptSignal() != 0; }

// What work that was cut short returns. main recognises the flag, not this message.
Status InterruptedStatus();

// A ggml_abort_callback: true once a signal arrived.
bool AbortOnInterrupt(void* unused);

}  // namespace tactic::app

#endif  // TACTIC_APPS_INTERRUPT_H_
