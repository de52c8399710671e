#include "defaults.h"

#include <cstdlib>
#include <filesystem>

namespace tactic::app {
namespace {

namespace fs = std::filesystem;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

const char* LlamaBuild() { return TACTIC_LLAMA_BUILD; }

std::string FindProjectFile(const std::string& relative) {
  std::error_code ignored;
  if (fs::exists(relative, ignored)) return relative;
  const fs::path in_source = fs::path(TACTIC_PROJECT_DIR) / relative;
  if (fs::exists(in_source, ignored)) return in_source.string();
  return relative;
}

std::string DefaultModelPath() {
  const std::string from_environment = Environment("TACTIC_MODEL");
  return from_environment.empty() ? FindProjectFile(kDefaultModel) : from_environment;
}

std::string DefaultCacheDir() {
  const std::string xdg = Environment("XDG_CACHE_HOME");
  if (!xdg.empty()) return (fs::path(xdg) / "tactic").string();
  const std::string home = Environment("HOME");
  if (!home.empty()) return (fs::path(home) / ".cache" / "tactic").string();
  return (fs::temp_directory_path() / "tactic-cache").string();
}

}  // namespace tactic::app
