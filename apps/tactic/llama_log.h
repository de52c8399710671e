// llama.cpp's own log, sent to spdlog's debug level, and its error for our messages.
#ifndef TACTIC_APPS_LLAMA_LOG_H_
#define TACTIC_APPS_LLAMA_LOG_H_

#include <string>

namespace tactic::app {

// Redirects the log of llama.cpp and ggml. Call once, before anything of them is used.
void CaptureLlamaLog();

// The first error line since ForgetLlamaErrors (the cause; later ones repeat it): "" for none.
std::string LlamaError();
void ForgetLlamaErrors();

}  // namespace tactic::app

#endif  // TACTIC_APPS_LLAMA_LOG_H_
