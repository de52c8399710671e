#include "interrupt.h"

#include <atomic>
#include <csignal>

namespace tactic::app {
namespace {

std::atomic<int> g_signal{0};
static_assert(std::atomic<int>::is_always_lock_free,
              "a signal handler may only touch lock-free state");

extern "C" void OnSignal(int signal) {
  g_signal.store(signal, std::memory_order_relaxed);
  std::signal(signal, SIG_DFL);  // the next one ends the process
}

}  // namespace

void CatchInterrupts() {
  std::signal(SIGINT, OnSignal);
  std::signal(SIGTERM, OnSignal);
}

int InterruptSignal() { return g_signal.load(std::memory_order_relaxed); }

Status InterruptedStatus() { return Status::Internal("interrupted"); }

bool AbortOnInterrupt(void* /*unused*/) { return Interrupted(); }

}  // namespace tactic::app
