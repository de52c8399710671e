#include "subprocess.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>

#include "defaults.h"

namespace tactic::app {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// Far more than any test takes, and less than what ctest allows.
constexpr auto kTimeLimit = std::chrono::seconds(200);

// Files, not pipes: nothing has to be drained while the program runs.
void Redirect(const std::string& path, int flags, int descriptor) {
  const int file = open(path.c_str(), flags, 0600);
  if (file < 0 || dup2(file, descriptor) < 0) _exit(127);
  close(file);
}

}  // namespace

Outcome RunTactic(const std::vector<std::string>& arguments, const RunOptions& options) {
  const TemporaryFolder folder;
  const std::string in = folder.path("in"), out = folder.path("out"), err = folder.path("err");
  std::ofstream(in, std::ios::binary) << options.input;
  std::vector<const char*> argv = {TACTIC_BINARY};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  argv.push_back(nullptr);

  const pid_t child = fork();
  if (child == 0) {
    Redirect(in, O_RDONLY, STDIN_FILENO);
    Redirect(out, O_WRONLY | O_CREAT | O_TRUNC, STDOUT_FILENO);
    Redirect(err, O_WRONLY | O_CREAT | O_TRUNC, STDERR_FILENO);
    execv(TACTIC_BINARY, const_cast<char* const*>(argv.data()));
    _exit(127);
  }
  const auto start = Clock::now();
  const auto signal_at = start + std::chrono::duration<double>(options.after_s);
  const auto written = [&] {
    std::error_code none_yet;
    const uintmax_t bytes = fs::file_size(out, none_yet);
    return none_yet ? 0 : bytes;
  };
  bool signalled = options.signal == 0;
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (!signalled && Clock::now() >= signal_at && written() >= options.after_bytes) {
      kill(child, options.signal);
      signalled = true;
    }
    if (Clock::now() - start > kTimeLimit) kill(child, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, ReadFile(out), ReadFile(err)};
}

TemporaryFolder::TemporaryFolder() {
  std::string name = (fs::temp_directory_path() / "tactic-test-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) std::abort();
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::vector<std::string> TemporaryFolder::Files() const {
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(path_)) {
    if (entry.is_regular_file()) names.push_back(entry.path().filename().string());
  }
  return names;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

bool HaveModel() { return fs::exists(DefaultModelPath()); }

}  // namespace tactic::app
