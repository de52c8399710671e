#include "llama_log.h"

#include <spdlog/spdlog.h>

#include <mutex>
#include <string_view>

#include "llama.h"

namespace tactic::app {
namespace {

std::mutex g_mutex;
std::string g_error;  // guarded by g_mutex
std::string g_line;   // guarded by g_mutex: llama.cpp writes some lines in pieces
ggml_log_level g_level = GGML_LOG_LEVEL_INFO;

void OnLog(ggml_log_level level, const char* text, void* /*unused*/) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  if (level != GGML_LOG_LEVEL_CONT) g_level = level;
  g_line += text;
  if (g_line.empty() || g_line.back() != '\n') return;
  while (!g_line.empty() && (g_line.back() == '\n' || g_line.back() == ' ')) g_line.pop_back();
  if (!g_line.empty()) {
    // llama.cpp reports a failure in several lines, from the cause to "failed to load model".
    // The first is the one that says what is wrong.
    if (g_level == GGML_LOG_LEVEL_ERROR && g_error.empty()) g_error = g_line;
    spdlog::debug("{}", g_line);
  }
  g_line.clear();
}

}  // namespace

void CaptureLlamaLog() { llama_log_set(OnLog, nullptr); }

std::string LlamaError() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  // "llama_model_load: error loading model: missing tensor": the function's name helps nobody.
  const size_t colon = g_error.find(": ");
  const bool has_function = colon != std::string::npos && g_error.find(' ') > colon;
  return has_function ? g_error.substr(colon + 2) : g_error;
}

void ForgetLlamaErrors() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_error.clear();
}

}  // namespace tactic::app
