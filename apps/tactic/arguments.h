// Arguments: the groups of command-line options that subcommands share.
//
// A struct holds what the user wrote, an Add function declares the options on a subcommand, a
// Resolve function checks the values and turns them into what the rest of the program works with.
#ifndef TACTIC_APPS_ARGUMENTS_H_
#define TACTIC_APPS_ARGUMENTS_H_

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model.h"
#include "prompt_state.h"
#include "session.h"
#include "tactic/options.h"
#include "tactic/status.h"
#include "tactic_llama/hook.h"

namespace tactic::app {

// What main runs once the command line is parsed.
using Command = std::function<Status()>;

// --- model and context ---
struct ModelArgs {
  std::string model;  // empty: DefaultModelPath()
  std::string lora;   // empty: none
  float rope_freq_base = 0;
  int context = 0;  // 0: what the subcommand needs
  int threads = 0;  // 0: all that this process may use
  int batch = 512;
  bool no_repack = false;
  std::string kv_type = "f16";
  std::string kv_type_k;  // empty: kv_type
  std::string kv_type_v;
};
void AddModelArgs(CLI::App* app, ModelArgs* args);
// Everything but the context's size. Checks names and warns about an adapter whose description asks
// for a rope base when none was given.
Status ResolveSession(const ModelArgs& args, const Model& model, SessionOptions* options);
// Sets the context to --ctx or, without it, to `needed` tokens, rounded up; warns as below. An
// error that names `who_needs` ("--depths needs") when --ctx is smaller.
Status ResolveContext(const ModelArgs& args, const Model& model, int64_t needed,
                      std::string_view who_needs, SessionOptions* options);
// Warns when the context exceeds what the model was trained on. An adapter may change that, so
// there is no warning with one.
void WarnBeyondTraining(const Model& model, int context);
Status CheckModelArgs(const ModelArgs& args);
Status LoadModel(const ModelArgs& args, std::unique_ptr<Model>* model);

// --- the algorithm ---
struct AlgorithmArgs {
  // One change for every option that was given. What is not given keeps the default of the policy,
  // which differs from policy to policy.
  std::vector<std::function<void(Options*)>> changes;
  // --dense-below is a number, which is among the changes; otherwise it is to be measured
  // (dense_below.h).
  bool dense_below_given = false;
};
void AddAlgorithmArgs(CLI::App* app, AlgorithmArgs* args);
// A policy and its parameters. InvalidArgument when one is out of its range.
Status ResolveAlgorithm(const AlgorithmArgs& args, llama::Policy policy,
                        llama::HookOptions* options);

// --- the cache of prompts ---
struct CacheArgs {
  bool off = false;
  std::string folder;  // empty: DefaultCacheDir()
  double limit_gib = 8;
};
void AddCacheArgs(CLI::App* app, CacheArgs* args);
PromptStateCache ResolveCache(const CacheArgs& args);
// Where other measurements are kept; empty: nowhere.
std::string CacheFolder(const CacheArgs& args);

// --- results ---
void AddJsonArg(CLI::App* app, std::string* path);

// --- the subcommands: each declares itself and sets `command` when the user chose it ---
void AddRun(CLI::App* app, Command* command);
void AddDemo(CLI::App* app, Command* command);
void AddBench(CLI::App* app, Command* command);
void AddBenchPrompt(CLI::App* app, Command* command);
void AddTrace(CLI::App* app, Command* command);
void AddQuality(CLI::App* app, Command* command);
void AddEval(CLI::App* app, Command* command);
void AddInfo(CLI::App* app, Command* command);

}  // namespace tactic::app

#endif  // TACTIC_APPS_ARGUMENTS_H_
