// ThreadTeam on one reusable barrier: workers wait in it for the next call, and again for its end.
#include "tactic/thread_team.h"

#include <exception>
#include <string>
#include <utility>

#include "src/check.h"

namespace tactic {
namespace {

// A pause lasts 40 to 140 cycles on x86: some tens of microseconds in all.
constexpr int kSpins = 1000;

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Status ThreadTeam::Create(int threads, std::unique_ptr<ThreadTeam>* team) {
  if (threads < 1 || threads > kMaxThreads) {
    return Status::InvalidArgument("threads is " + std::to_string(threads) +
                                   "; expected a number from 1 to " + std::to_string(kMaxThreads));
  }
  std::vector<std::thread> workers;
  workers.reserve(threads - 1);  // before there is a team, which must not be left half made
  std::unique_ptr<ThreadTeam> created(new ThreadTeam(threads));
  created->workers_ = std::move(workers);
  for (int t = 1; t < threads; ++t) {
    try {
      created->workers_.emplace_back([team = created.get(), t] { team->Work(t); });
    } catch (const std::exception& error) {  // no more threads, or no memory for one
      // Those that started wait for all to arrive: stand in for the missing ones, then end them.
      created->arrived_.fetch_add(threads - t);
      return Status::ResourceExhausted("thread " + std::to_string(t) + " of " +
                                       std::to_string(threads) + " did not start: " + error.what());
    }
  }
  *team = std::move(created);
  return Status::Ok();
}

ThreadTeam::~ThreadTeam() {
  call_ = nullptr;
  Barrier();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadTeam::RunCall(Call call, const void* argument) {
  TACTIC_CHECK(call_ == nullptr);  // one Run at a time
  call_ = call;
  argument_ = argument;
  Barrier();
  call(argument, 0);
  Barrier();
  call_ = nullptr;
}

void ThreadTeam::Work(int thread) {
  for (;;) {
    Barrier();
    if (call_ == nullptr) return;
    call_(argument_, thread);
    Barrier();
  }
}

void ThreadTeam::Barrier() {
  // Cannot change before this thread has arrived.
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
    return;
  }
  for (int i = 0; i < kSpins; ++i) {
    if (phase_.load(std::memory_order_acquire) != phase) return;
    Pause();
  }
  phase_.wait(phase, std::memory_order_acquire);
}

void RunStep(DecodeStep* step, ThreadTeam* team) {
  team->Run([&](int thread) {
    for (int phase = 0; phase < kPhases; ++phase) {
      if (phase > 0) team->Barrier();
      step->RunPhase(static_cast<Phase>(phase), thread);
    }
  });
}

}  // namespace tactic
