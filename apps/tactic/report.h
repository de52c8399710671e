// Report: where a subcommand's results go.
//
// Results for people go to stdout. With `--json FILE` the same results go to FILE as well; with
// `--json -` stdout carries the JSON alone and the text for people moves to stderr.
#ifndef TACTIC_APPS_REPORT_H_
#define TACTIC_APPS_REPORT_H_

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tactic/status.h"

namespace tactic::app {

class Report {
 public:
  // Checks before any long work starts that the JSON can be written. `json_path`: "" for none, "-"
  // for stdout.
  static Status Open(const std::string& json_path, Report* report);

  // Stream for people: stdout or stderr.
  FILE* text() const { return json_path_ == "-" ? stderr : stdout; }

  // Writes `value` where --json asked for it, complete or not at all.
  Status WriteJson(const nlohmann::json& value) const;

 private:
  std::string json_path_;
};

// A table with aligned columns: the first to the left, the others to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  // REQUIRES: as many cells as the header has.
  void AddRow(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  void Print(FILE* out) const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace tactic::app

#endif  // TACTIC_APPS_REPORT_H_
