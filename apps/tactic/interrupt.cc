#include "interrupt.h"

#include <atomic>
#include <csignal>

namespace tactic::app {
namespace {

std::atomic<int> g_signal{0};
static_assert(std::atomic<int>::is_always_lock_free,
              "a signal handler may only touch lock-free state");

extern "C" void OnSignal(int signal) { g_signal.store(signal, std::memory_order_relaxed); }

}  // namespace

void CatchInterrupts() {
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  // The next one ends the process. No SA_RESTART: a read from stdin has to return, too.
  action.sa_flags = SA_RESETHAND;
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
}

int InterruptSignal() { return g_signal.load(std::memory_order_relaxed); }

Status InterruptedStatus() { return Status::Internal("interrupted"); }

bool AbortOnInterrupt(void* /*unused*/) { return Interrupted(); }

}  // namespace tactic::app
