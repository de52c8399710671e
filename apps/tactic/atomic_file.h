// Files that are either complete or absent: written under a temporary name, then renamed.
//
// Not thread-safe. Errors are InvalidArgument when the path cannot be written (the user named it)
// and Internal when writing fails half-way, e.g. on a full disk.
#ifndef TACTIC_APPS_ATOMIC_FILE_H_
#define TACTIC_APPS_ATOMIC_FILE_H_

#include <string>
#include <string_view>

#include "tactic/status.h"

namespace tactic::app {

// A temporary name beside `target`. Whatever lies under it is removed by the destructor unless
// Commit() gave it its final name.
class PendingFile {
 public:
  explicit PendingFile(std::string target);
  ~PendingFile();
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;

  const std::string& temporary_path() const { return temporary_; }

  // Renames the temporary file to the target.
  Status Commit();

 private:
  std::string target_;
  std::string temporary_;
  bool committed_ = false;
};

// Whether a file can be created at `path`, found out by creating a temporary one beside it (or by
// opening `path` itself when it is a device or a pipe). `field` names the argument in errors.
Status CheckWritable(const std::string& path, const std::string& field);

// Writes `contents` to `path`. An existing device or pipe is written in place, never replaced.
Status WriteFile(const std::string& path, std::string_view contents, const std::string& field);

}  // namespace tactic::app

#endif  // TACTIC_APPS_ATOMIC_FILE_H_
