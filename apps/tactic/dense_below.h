// From how many tokens on a policy is faster than reading everything: measured once for a machine,
// a layer and its options (tactic/calibrate.h), then kept in a file.
//
// Everything that goes wrong is a warning, and the policy's default stays.
#ifndef TACTIC_APPS_DENSE_BELOW_H_
#define TACTIC_APPS_DENSE_BELOW_H_

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "session.h"
#include "tactic/calibrate.h"
#include "tactic_llama/hook.h"

namespace tactic::app {

// dense_below.json in a folder. Each entry has what it was measured for as its key.
class CalibrationCache {
 public:
  using Measure = std::function<Status(const CalibrationRequest&, Calibration*)>;

  // An empty folder: nothing is kept.
  explicit CalibrationCache(std::string folder, Measure measure = Calibrate)
      : folder_(std::move(folder)), measure_(std::move(measure)) {}

  // Tokens from which on the mode is faster, from the file or by measuring. None when that failed.
  std::optional<int> Tokens(const CalibrationRequest& request) const;

 private:
  std::string Path() const;
  // The entries of the file; an empty array when there is none, or it is damaged.
  nlohmann::json Entries(bool complain) const;
  void Keep(const nlohmann::json& key, const Calibration& found) const;

  std::string folder_;
  Measure measure_;
};

// What a measurement depends on: CPU, instruction set, threads, shape, types, mode, its options,
// and the version of the kernels.
nlohmann::json CalibrationKey(const CalibrationRequest& request);

// Sets dense_below of a policy that selects, for what `session` decodes. Does nothing for the
// others, and where the context is too short for it to matter. `folder`: of saved measurements;
// empty: none.
void ChooseDenseBelow(const Session& session, const std::string& folder,
                      llama::HookOptions* policy);

}  // namespace tactic::app

#endif  // TACTIC_APPS_DENSE_BELOW_H_
