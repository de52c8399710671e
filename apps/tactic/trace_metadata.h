// The metadata of a trace: TraceInfo as the names and texts of a safetensors header, and back.
#ifndef TACTIC_APPS_TRACE_METADATA_H_
#define TACTIC_APPS_TRACE_METADATA_H_

#include <map>
#include <string>

#include "tactic/status.h"
#include "trace_file.h"

namespace tactic::app {

// Everything but the types of K and V.
std::map<std::string, std::string> TraceMetadata(const TraceInfo& info);

// Unsupported, with the name of the field, when one is missing or out of its range. The types of K
// and V stay as they are.
Status ReadTraceMetadata(const std::map<std::string, std::string>& metadata, TraceInfo* info);

}  // namespace tactic::app

#endif  // TACTIC_APPS_TRACE_METADATA_H_
