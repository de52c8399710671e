// Defaults: where the program looks for the files that belong to the project.
#ifndef TACTIC_APPS_DEFAULTS_H_
#define TACTIC_APPS_DEFAULTS_H_

#include <string>

namespace tactic::app {

inline constexpr char kDefaultModel[] = "models/SmolLM2-135M-Instruct.Q4_1.gguf";
inline constexpr char kDefaultAdapter[] = "models/smollm2-135m-32k-lora.gguf";
inline constexpr char kDefaultBook[] = "data/moby_dick.txt";
// The adapter was trained with this base and is useless without it.
inline constexpr float kDefaultAdapterRopeBase = 1e6f;

// Version and commit of the libllama that this program was built with.
const char* LlamaBuild();

// `relative` below the current directory if it exists there, else below the source tree that the
// program was built from, else `relative` as it is (and opening it will say what is missing).
std::string FindProjectFile(const std::string& relative);

// $TACTIC_MODEL when set and not empty, else the bundled model.
std::string DefaultModelPath();

// ${XDG_CACHE_HOME:-~/.cache}/tactic; the system's temporary folder when there is no home.
std::string DefaultCacheDir();

}  // namespace tactic::app

#endif  // TACTIC_APPS_DEFAULTS_H_
