// tactic: run any GGUF model with adaptive sparse attention, and measure what that does.
#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>

#include "arguments.h"
#include "defaults.h"
#include "exit_code.h"
#include "interrupt.h"
#include "llama_log.h"
#include "model.h"
#include "tactic/isa.h"

namespace {

using namespace tactic::app;  // NOLINT(google-build-using-namespace): the program's own

// Results own stdout; everything said about them goes to stderr.
void SetUpLogging() {
  auto logger = spdlog::stderr_color_mt("tactic");
  logger->set_pattern("%n: %^%l%$: %v");
  spdlog::set_default_logger(logger);
}

int Main(int argc, char** argv) {
  CatchInterrupts();
  SetUpLogging();
  CaptureLlamaLog();

  CLI::App app("Adaptive sparse attention (Tactic) for llama.cpp models.", "tactic");
  app.require_subcommand(1);
  app.footer(kExitCodeHelp);
  bool verbose = false, quiet = false;
  app.add_flag("-v,--verbose", verbose, "show llama.cpp's log and what the program decides");
  app.add_flag("-q,--quiet", quiet, "no progress, no warnings");
  app.fallthrough();  // so that both may follow the subcommand

  Command command;
  AddRun(&app, &command);
  AddDemo(&app, &command);
  AddBench(&app, &command);
  AddBenchPrompt(&app, &command);
  AddTrace(&app, &command);
  AddQuality(&app, &command);
  AddEval(&app, &command);
  AddInfo(&app, &command);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // 0 for --help; CLI11 has a code for every kind of error, this program has one.
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  spdlog::set_level(verbose ? spdlog::level::debug
                    : quiet ? spdlog::level::err
                            : spdlog::level::info);

  tactic::Status status = tactic::IsaStatus();
  if (status.ok()) {
    ggml_backend_load_all();
    llama_backend_init();
    status = command();
    llama_backend_free();
  }
  if (Interrupted()) {
    fmt::print(stderr, "tactic: interrupted\n");
    return kExitSignal + InterruptSignal();
  }
  if (!status.ok()) spdlog::error("{}", status.message());
  return ExitCodeOf(status);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Main(argc, argv);
  } catch (const std::exception& error) {  // bad_alloc and its like
    spdlog::error("{}", error.what());
    return kExitFailure;
  }
}
