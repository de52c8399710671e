// PromptState: the KV cache of a prompt that was read once, kept on disk.
//
// A state belongs to a key (everything that shapes K and V: model, adapter, rope base, element
// types, libllama) and to its tokens. It also serves every prompt that shares a prefix with it:
// what is too long is cut off, what is missing is read and saved. Files are written under a
// temporary name and renamed, so several programs may share a folder. The oldest files are deleted
// when the folder outgrows its limit.
#ifndef TACTIC_APPS_PROMPT_STATE_H_
#define TACTIC_APPS_PROMPT_STATE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "progress.h"
#include "session.h"
#include "tactic/status.h"

namespace tactic::app {

struct PromptStateOptions {
  bool enabled = true;
  std::string folder;                      // default: DefaultCacheDir()
  int64_t limit_bytes = int64_t{8} << 30;  // of all states in the folder together
};

class PromptStateCache {
 public:
  explicit PromptStateCache(PromptStateOptions options) : options_(std::move(options)) {}

  // Fills the empty `session` with exactly `tokens`: from the longest stored prefix, then by
  // reading. `from_cache` (may be null) gets the number of tokens that did not have to be read. A
  // state that cannot be used or saved is a warning, never an error: the prompt is read instead.
  Status Fill(std::span<const llama_token> tokens, Session* session, Progress* progress,
              int* from_cache = nullptr) const;

 private:
  struct Found {
    std::string path;
    int stored = 0;  // tokens in the file
    int usable = 0;  // of these, equal to the prompt's
  };
  std::optional<Found> FindLongest(const std::string& key,
                                   std::span<const llama_token> tokens) const;
  bool Restore(const Found& found, Session* session) const;
  // Restore for a session that is too small for the whole state.
  bool RestorePart(const Found& found, Session* session) const;
  // Whether it could be saved; says why when not.
  bool Save(const std::string& key, std::span<const llama_token> tokens, Session* session) const;
  void Prune() const;

  PromptStateOptions options_;
};

}  // namespace tactic::app

#endif  // TACTIC_APPS_PROMPT_STATE_H_
