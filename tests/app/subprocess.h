// Runs the program under test as a user would: as a process with arguments, pipes and signals.
#ifndef TACTIC_TESTS_APP_SUBPROCESS_H_
#define TACTIC_TESTS_APP_SUBPROCESS_H_

#include <filesystem>
#include <string>
#include <vector>

namespace tactic::app {

struct Outcome {
  int exit_code = -1;  // -1: killed by a signal, or by the time limit
  std::string out;     // stdout
  std::string err;     // stderr
};

struct RunOptions {
  std::string input = {};  // stdin
  int signal = 0;          // sent once the following hold; 0: none
  double after_s = 0;      // seconds have passed
  size_t after_bytes = 0;  // bytes have been written to stdout
};

// Runs `tactic` with `arguments` and waits for its end, killing it after some minutes.
Outcome RunTactic(const std::vector<std::string>& arguments, const RunOptions& options = {});

// A folder of its own for a test, removed at its end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string path(const std::string& name = "") const { return (path_ / name).string(); }
  // Names of all files in it and below.
  std::vector<std::string> Files() const;

 private:
  std::filesystem::path path_;
};

std::string ReadFile(const std::string& path);

// Whether the bundled model is there. Tests that decode are skipped without it.
bool HaveModel();

}  // namespace tactic::app

#define TACTIC_REQUIRE_MODEL() \
  if (!::tactic::app::HaveModel()) GTEST_SKIP() << "models/ lacks the bundled model"

#endif  // TACTIC_TESTS_APP_SUBPROCESS_H_
