#include "prompt_state.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string_view>
#include <vector>

#include "atomic_file.h"
#include "defaults.h"
#include "interrupt.h"
#include "llama_log.h"
#include "memory.h"
#include "state_blob.h"

namespace tactic::app {
namespace {

namespace fs = std::filesystem;

constexpr char kExtension[] = ".state";
// Magic, version and number of tokens, before the tokens and the state.
constexpr size_t kHeaderBytes = 12;
// What identifies a large file: its size and this much of its start and its end.
constexpr int64_t kSampledBytes = 64 * 1024;
// Restoring fewer tokens than this costs more than reading them.
constexpr int kFewestTokens = 128;
// A temporary file this old was left by a program that was killed.
constexpr auto kStale = std::chrono::hours(24);

// FNV-1a, 64 bits. Not for adversaries: tokens are compared one by one before a state is used.
class Hash {
 public:
  void Add(const void* data, size_t size) {
    for (size_t i = 0; i < size; ++i) {
      value_ = (value_ ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3ULL;
    }
  }
  // With its terminator, so that "ab" + "c" and "a" + "bc" differ.
  void Add(std::string_view text) {
    Add(text.data(), text.size());
    Add("", 1);
  }
  std::string Hex() const { return fmt::format("{:016x}", value_); }

 private:
  uint64_t value_ = 0xcbf29ce484222325ULL;
};

// Content, not path or time: a copied or touched model keeps its states.
void AddFile(const std::string& path, Hash* hash) {
  std::error_code ignored;
  const auto size = static_cast<int64_t>(fs::file_size(path, ignored));
  hash->Add(&size, sizeof(size));
  std::ifstream file(path, std::ios::binary);
  std::vector<char> bytes(static_cast<size_t>(std::min(kSampledBytes, size)));
  for (const int64_t at : {int64_t{0}, size - static_cast<int64_t>(bytes.size())}) {
    file.seekg(at);
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    hash->Add(bytes.data(), bytes.size());
  }
}

std::string KeyOf(const Session& session) {
  const SessionOptions& options = session.options();
  Hash hash;
  hash.Add(LlamaBuild());
  AddFile(session.model().path(), &hash);
  if (!session.model().lora_path().empty()) AddFile(session.model().lora_path(), &hash);
  hash.Add(fmt::format("rope={} k={} v={} fa={} window={}", options.rope_freq_base,
                       ggml_type_name(options.type_k), ggml_type_name(options.type_v),
                       options.flash_attention, options.keep_window));
  return hash.Hex();
}

// The tokens of a file that llama_state_save_file wrote: magic, version, count, tokens, state.
std::vector<llama_token> StoredTokens(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  uint32_t header[3] = {};
  static_assert(sizeof(header) == kHeaderBytes);
  file.read(reinterpret_cast<char*>(header), sizeof(header));
  if (!file || header[0] != LLAMA_SESSION_MAGIC || header[1] != LLAMA_SESSION_VERSION) return {};
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  if (error || header[2] > size / sizeof(llama_token)) return {};
  std::vector<llama_token> tokens(header[2]);
  file.read(reinterpret_cast<char*>(tokens.data()),
            static_cast<std::streamsize>(tokens.size() * sizeof(llama_token)));
  return file ? tokens : std::vector<llama_token>();
}

}  // namespace

Status PromptStateCache::Fill(std::span<const llama_token> tokens, Session* session,
                              Progress* progress, int* from_cache) const {
  if (from_cache != nullptr) *from_cache = 0;
  session->Clear();
  const std::string key = options_.enabled ? KeyOf(*session) : "";
  std::optional<Found> found;
  if (options_.enabled) found = FindLongest(key, tokens);
  if (found && !Restore(*found, session)) found.reset();
  if (found) {
    TACTIC_RETURN_IF_ERROR(session->RollBack(found->usable));
    if (from_cache != nullptr) *from_cache = found->usable;
    spdlog::debug("{} of {} tokens come from {}", found->usable, tokens.size(), found->path);
    if (found->usable == static_cast<int>(tokens.size())) return Status::Ok();
  }
  TACTIC_RETURN_IF_ERROR(
      session->Read(tokens.subspan(static_cast<size_t>(session->depth())), progress));
  if (options_.enabled && Save(key, tokens, session) && found && found->usable == found->stored) {
    // The new state holds all of the old one.
    std::error_code ignored;
    fs::remove(found->path, ignored);
  }
  return Interrupted() ? InterruptedStatus() : Status::Ok();
}

std::optional<PromptStateCache::Found> PromptStateCache::FindLongest(
    const std::string& key, std::span<const llama_token> tokens) const {
  std::optional<Found> best;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(options_.folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(key) || entry.path().extension() != kExtension) continue;
    const std::vector<llama_token> stored = StoredTokens(entry.path().string());
    if (stored.empty()) continue;
    const auto differs = std::mismatch(stored.begin(), stored.end(), tokens.begin(), tokens.end());
    const int usable = static_cast<int>(differs.first - stored.begin());
    // Of two that serve equally well, the smaller file is restored sooner.
    const auto better = [&](const Found& other) {
      return usable != other.usable ? usable > other.usable
                                    : static_cast<int>(stored.size()) < other.stored;
    };
    const bool worth_it = usable >= kFewestTokens || usable == static_cast<int>(tokens.size());
    if (worth_it && (!best || better(*best))) {
      best = Found{entry.path().string(), static_cast<int>(stored.size()), usable};
    }
  }
  return best;
}

bool PromptStateCache::Restore(const Found& found, Session* session) const {
  // A cut needs the rows of the cut sequence in every layer; sliding windows have dropped some.
  const bool cut = found.usable < found.stored;
  if (cut && session->model().facts().sliding_window > 0 && !session->options().keep_window) {
    return false;
  }
  ForgetLlamaErrors();
  bool restored = false;
  if (found.stored > session->capacity()) {
    restored = RestorePart(found, session);
  } else {
    std::vector<llama_token> tokens(static_cast<size_t>(found.stored));
    size_t count = 0;
    restored = llama_state_load_file(session->get(), found.path.c_str(), tokens.data(),
                                     tokens.size(), &count);
    if (restored) session->SetDepth(found.stored);
  }
  if (!restored) {
    spdlog::warn("the saved prompt '{}' cannot be used and is read again: {}", found.path,
                 LlamaError());
    session->Clear();
    return false;
  }
  std::error_code ignored;
  // So that Prune sees it as recently used.
  fs::last_write_time(found.path, fs::file_time_type::clock::now(), ignored);
  return true;
}

bool PromptStateCache::RestorePart(const Found& found, Session* session) const {
  std::ifstream file(found.path, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(kHeaderBytes + found.stored * sizeof(llama_token)));
  const std::vector<uint8_t> blob{std::istreambuf_iterator<char>(file), {}};
  std::vector<uint8_t> part;
  const auto cells = static_cast<uint32_t>(found.usable);
  if (!KeepFirstCells(blob, cells, &part).ok() ||
      llama_state_set_data(session->get(), part.data(), part.size()) != part.size()) {
    return false;
  }
  session->SetDepth(found.usable);
  return true;
}

bool PromptStateCache::Save(const std::string& key, std::span<const llama_token> tokens,
                            Session* session) const {
  std::error_code error;
  fs::create_directories(options_.folder, error);
  if (error) {
    spdlog::warn("the prompt is not saved: cannot create '{}': {}", options_.folder,
                 error.message());
    return false;
  }
  const auto bytes = static_cast<int64_t>(llama_state_get_size(session->get()));
  const fs::space_info space = fs::space(options_.folder, error);
  if (!error && static_cast<int64_t>(space.available) < bytes) {
    spdlog::warn("the prompt is not saved: it needs {}, but '{}' has {} left",
                 FormatBytes(static_cast<double>(bytes)), options_.folder,
                 FormatBytes(static_cast<double>(space.available)));
    return false;
  }
  Hash hash;
  hash.Add(tokens.data(), tokens.size_bytes());
  PendingFile file((fs::path(options_.folder) / (key + "-" + hash.Hex() + kExtension)).string());
  ForgetLlamaErrors();
  if (!llama_state_save_file(session->get(), file.temporary_path().c_str(), tokens.data(),
                             tokens.size())) {
    spdlog::warn("the prompt is not saved in '{}': {}", options_.folder, LlamaError());
    return false;
  }
  const Status committed = file.Commit();
  if (!committed.ok()) {
    spdlog::warn("the prompt is not saved: {}", committed.message());
    return false;
  }
  Prune();
  return true;
}

void PromptStateCache::Prune() const {
  struct File {
    fs::file_time_type time;
    fs::path path;
    int64_t bytes;
  };
  std::vector<File> files;
  int64_t total = 0;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(options_.folder, ignored)) {
    const std::string name = entry.path().filename().string();
    const fs::file_time_type time = entry.last_write_time(ignored);
    if (name.find(std::string(kExtension) + ".tmp.") != std::string::npos) {
      if (fs::file_time_type::clock::now() - time > kStale) fs::remove(entry.path(), ignored);
    } else if (entry.path().extension() == kExtension) {
      files.push_back({time, entry.path(), static_cast<int64_t>(entry.file_size(ignored))});
      total += files.back().bytes;
    }
  }
  std::sort(files.begin(), files.end(),
            [](const File& a, const File& b) { return a.time < b.time; });
  // The newest stays, however large: it is the one that was just read.
  for (size_t i = 0; i + 1 < files.size() && total > options_.limit_bytes; ++i) {
    fs::remove(files[i].path, ignored);
    total -= files[i].bytes;
  }
}

}  // namespace tactic::app
