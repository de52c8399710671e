// Progress: how far a long prompt, or other long work, is, on stderr.
//
// On a terminal one line that is redrawn at most ten times a second: bar, tokens, tokens per
// second, time left. Elsewhere (a log file, CI) one plain line every ten seconds. Not thread-safe.
#ifndef TACTIC_APPS_PROGRESS_H_
#define TACTIC_APPS_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <string>

namespace tactic::app {

class Progress {
 public:
  // `label`: what is done, e.g. "reading". `total`: in `unit`. Prints nothing when not `enabled`.
  Progress(std::string label, int64_t total, bool enabled, std::string unit = "tokens");
  // Ends the line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `done` of the total are done. `skipped` of them cost nothing (they came from a cache) and do
  // not count for the speed.
  void Update(int64_t done, int64_t skipped = 0);

 private:
  void Draw(int64_t done, double per_second, double seconds_left);

  const std::string label_;
  const int64_t total_;
  const bool enabled_;
  const std::string unit_;
  const bool terminal_;
  const std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_;
  bool drawn_ = false;
};

}  // namespace tactic::app

#endif  // TACTIC_APPS_PROGRESS_H_
