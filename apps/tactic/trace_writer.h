// TraceWriter: a trace as it is written, layer by layer, complete or not at all.
#ifndef TACTIC_APPS_TRACE_WRITER_H_
#define TACTIC_APPS_TRACE_WRITER_H_

#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "atomic_file.h"
#include "tactic/rows_view.h"
#include "tactic/status.h"
#include "trace_file.h"

namespace tactic::app {

// Every layer of the info in its order, then Finish. Errors name the path: InvalidArgument when it
// cannot be written, Internal when writing fails half-way. After an error, and without Finish, the
// destructor leaves nothing behind.
class TraceWriter {
 public:
  // Writes the header under a temporary name. REQUIRES: at least one layer.
  static Status Open(const std::string& path, const TraceInfo& info,
                     std::unique_ptr<TraceWriter>* writer);

  // The next layer: the first info.tokens() rows of `keys` and `values`, of the types and
  // dimensions of the info, and its queries, [steps][q_heads][head_dim]. Stops soon after Ctrl-C.
  Status WriteLayer(const RowsView& keys, const RowsView& values, std::span<const float> queries);

  // The tokens, [tokens() + 1], and the file gets its name.
  Status Finish(std::span<const int32_t> tokens);

 private:
  struct CloseFile {
    void operator()(FILE* file) const { std::fclose(file); }
  };

  TraceWriter(const std::string& path, const TraceInfo& info)
      : path_(path), info_(info), pending_(path) {}
  // What is written must be what the header announced.
  Status Mismatch(const std::string& what) const;
  Status Write(const void* data, size_t bytes);
  Status WriteRows(const RowsView& rows, int heads, int dim);

  const std::string path_;
  const TraceInfo info_;
  PendingFile pending_;
  std::unique_ptr<FILE, CloseFile> file_;  // after pending_: closed before it is removed
  size_t next_layer_ = 0;
  std::vector<uint8_t> chunk_;  // rows on their way
};

}  // namespace tactic::app

#endif  // TACTIC_APPS_TRACE_WRITER_H_
