#include "report.h"

#include <fmt/format.h>

#include <algorithm>

#include "atomic_file.h"

namespace tactic::app {

Status Report::Open(const std::string& json_path, Report* report) {
  report->json_path_ = json_path;
  if (json_path.empty() || json_path == "-") return Status::Ok();
  return CheckWritable(json_path, "--json");
}

Status Report::WriteJson(const nlohmann::json& value) const {
  if (json_path_.empty()) return Status::Ok();
  // Generated text may end in the middle of a UTF-8 sequence; JSON must not.
  const std::string text =
      value.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  if (json_path_ != "-") return WriteFile(json_path_, text, "--json");
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    return Status::Internal("--json: writing to stdout failed");
  }
  return Status::Ok();
}

void Table::Print(FILE* out) const {
  std::vector<size_t> width(rows_.front().size(), 0);
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  for (const auto& row : rows_) {
    std::string line = fmt::format("{:<{}}", row[0], width[0]);
    for (size_t i = 1; i < row.size(); ++i) line += fmt::format("  {:>{}}", row[i], width[i]);
    fmt::print(out, "{}\n", line);
  }
}

}  // namespace tactic::app
