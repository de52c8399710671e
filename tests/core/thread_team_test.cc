#include "tactic/thread_team.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace tactic {
namespace {

std::unique_ptr<ThreadTeam> Team(int threads) {
  std::unique_ptr<ThreadTeam> team;
  EXPECT_TRUE(ThreadTeam::Create(threads, &team).ok());
  return team;
}

TEST(ThreadTeam, RunsEveryThreadOnceAndWaitsForAll) {
  for (int threads : {1, 2, 3, 8}) {
    const std::unique_ptr<ThreadTeam> team = Team(threads);
    EXPECT_EQ(team->size(), threads);
    std::vector<int> runs(threads);  // not atomic: Run orders memory
    for (int repeat = 0; repeat < 100; ++repeat) {
      team->Run([&](int thread) { ++runs[thread]; });
      for (int r : runs) ASSERT_EQ(r, repeat + 1);
    }
  }
}

TEST(ThreadTeam, TheCallerIsThreadZero) {
  const std::unique_ptr<ThreadTeam> team = Team(3);
  std::vector<std::thread::id> ids(3);
  team->Run([&](int thread) { ids[thread] = std::this_thread::get_id(); });
  EXPECT_EQ(ids[0], std::this_thread::get_id());
  EXPECT_NE(ids[1], ids[0]);
  EXPECT_NE(ids[1], ids[2]);
}

// Each phase reads what a neighbour wrote in the one before: a barrier that leaks shows, and under
// ThreadSanitizer so does one that does not order memory.
TEST(ThreadTeam, BarriersSeparatePhases) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 500;
  const std::unique_ptr<ThreadTeam> team = Team(kThreads);
  std::vector<int> value(kThreads);
  std::atomic<int> wrong = 0;
  team->Run([&](int thread) {
    for (int round = 0; round < kRounds; ++round) {
      value[thread] = round * kThreads + thread;
      team->Barrier();
      const int neighbour = (thread + 1) % kThreads;
      if (value[neighbour] != round * kThreads + neighbour) ++wrong;
      team->Barrier();
    }
  });
  EXPECT_EQ(wrong, 0);
}

TEST(ThreadTeam, ThreadsThatFellAsleepWakeUp) {
  const std::unique_ptr<ThreadTeam> team = Team(3);
  std::atomic<int> runs = 0;
  for (int repeat = 0; repeat < 3; ++repeat) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    team->Run([&](int thread) {
      if (thread == 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      team->Barrier();
      ++runs;
    });
  }
  EXPECT_EQ(runs, 9);
}

TEST(ThreadTeam, AnImpossibleNumberOfThreadsIsAnError) {
  std::unique_ptr<ThreadTeam> team;
  for (int threads : {-1, 0, ThreadTeam::kMaxThreads + 1}) {
    const Status status = ThreadTeam::Create(threads, &team);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(),
              "threads is " + std::to_string(threads) + "; expected a number from 1 to 1024");
    EXPECT_EQ(team, nullptr);
  }
}

TEST(ThreadTeam, ManyTeamsComeAndGo) {
  for (int i = 0; i < 100; ++i) {
    const std::unique_ptr<ThreadTeam> team = Team(1 + i % 5);
    if (i % 2 == 0) team->Run([](int) {});
  }
}

}  // namespace
}  // namespace tactic
