// ThreadTeam: a fixed set of threads for callers that have no pool of their own.
//
//   std::unique_ptr<ThreadTeam> team;
//   TACTIC_RETURN_IF_ERROR(ThreadTeam::Create(8, &team));
//   team->Run([&](int thread) {
//     step.RunPhase(Phase::kRank, thread);
//     team->Barrier();
//     ...
//   });
//
// The thread that calls Run is thread 0. Threads that wait spin for some tens of microseconds,
// about as long as a phase of a decode step lasts, and then sleep: an idle team costs nothing.
//
// Thread safety: one Run at a time, not from within a Run. Run and Barrier order memory: what was
// written before is seen by every thread after.
#ifndef TACTIC_THREAD_TEAM_H_
#define TACTIC_THREAD_TEAM_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "tactic/decode.h"
#include "tactic/status.h"

namespace tactic {

class ThreadTeam {
 public:
  static constexpr int kMaxThreads = 1024;

  // A team of `threads` threads, the caller of Run included. InvalidArgument unless
  // 1 <= threads <= kMaxThreads; ResourceExhausted when the system gives no more threads.
  static Status Create(int threads, std::unique_ptr<ThreadTeam>* team);
  // Ends the threads. REQUIRES: no Run is under way.
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return size_; }

  // Calls f(thread) for thread in [0, size()), each on its own thread, and returns when all have
  // returned. f must not throw. Allocates nothing.
  template <class F>
  void Run(const F& f) {
    RunCall([](const void* call, int thread) { (*static_cast<const F*>(call))(thread); }, &f);
  }

  // Waits until every thread of the team has come here. REQUIRES: called from within Run, by every
  // thread equally often.
  void Barrier();

 private:
  using Call = void (*)(const void*, int);

  explicit ThreadTeam(int threads) : size_(threads) {}
  void RunCall(Call call, const void* argument);
  void Work(int thread);

  const int size_;
  std::atomic<int> arrived_ = 0;
  std::atomic<uint32_t> phase_ = 0;  // how often all have arrived
  Call call_ = nullptr;              // null: the threads end
  const void* argument_ = nullptr;
  std::vector<std::thread> workers_;
};

// All phases of `step` on `team`. REQUIRES: planned for team->size() threads.
void RunStep(DecodeStep* step, ThreadTeam* team);

}  // namespace tactic

#endif  // TACTIC_THREAD_TEAM_H_
