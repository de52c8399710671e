#include "atomic_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

namespace tactic::app {
namespace {

namespace fs = std::filesystem;

struct CloseFile {
  void operator()(FILE* file) const { std::fclose(file); }
};
using FileHandle = std::unique_ptr<FILE, CloseFile>;

// A device or a pipe (/dev/null, /dev/stderr, >(...)): renaming over it would replace it.
bool IsSpecial(const std::string& path) {
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  return fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status);
}

Status CannotWrite(const std::string& path, const std::string& field, int error) {
  return Status::InvalidArgument(
      fmt::format("{}: cannot write '{}': {}", field, path, std::strerror(error)));
}

}  // namespace

PendingFile::PendingFile(std::string target)
    : target_(std::move(target)), temporary_(fmt::format("{}.tmp.{}", target_, getpid())) {}

PendingFile::~PendingFile() {
  if (!committed_) std::remove(temporary_.c_str());
}

Status PendingFile::Commit() {
  if (std::rename(temporary_.c_str(), target_.c_str()) != 0) {
    return Status::Internal(
        fmt::format("cannot rename '{}' to '{}': {}", temporary_, target_, std::strerror(errno)));
  }
  committed_ = true;
  return Status::Ok();
}

Status CheckWritable(const std::string& path, const std::string& field) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) return CannotWrite(path, field, EISDIR);
  PendingFile probe(path);
  const bool in_place = IsSpecial(path);
  FileHandle file(std::fopen(in_place ? path.c_str() : probe.temporary_path().c_str(), "ab"));
  if (!file) return CannotWrite(path, field, errno);
  return Status::Ok();
}

Status WriteFile(const std::string& path, std::string_view contents, const std::string& field) {
  PendingFile pending(path);
  const bool in_place = IsSpecial(path);
  FileHandle file(std::fopen(in_place ? path.c_str() : pending.temporary_path().c_str(), "wb"));
  if (!file) return CannotWrite(path, field, errno);
  const bool written =
      std::fwrite(contents.data(), 1, contents.size(), file.get()) == contents.size();
  // fclose flushes: a full disk often shows only here.
  if (std::fclose(file.release()) != 0 || !written) {
    return Status::Internal(
        fmt::format("{}: writing '{}' failed: {}", field, path, std::strerror(errno)));
  }
  return in_place ? Status::Ok() : pending.Commit();
}

}  // namespace tactic::app
