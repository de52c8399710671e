// Status: the outcome of a call that its caller can get wrong.
//
// Every fallible function of the library returns a Status whose message is one sentence that names
// the argument, the value it had and what was expected. Nothing throws across the library boundary.
// A Status owns its message; copies are cheap when it is OK. Thread-compatible.
#ifndef TACTIC_STATUS_H_
#define TACTIC_STATUS_H_

#include <string>
#include <utility>

namespace tactic {

enum class StatusCode {
  kOk = 0,
  kInvalidArgument = 1,  // an argument is outside of what its documentation allows
  kOutOfRange = 2,       // a position or size lies outside of the sequence
  kUnsupported = 3,      // valid, but not built or not available on this machine
  kNotFound = 4,         // a file or a name does not exist
  kResourceExhausted = 5,
  kInternal = 6,
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status Ok() { return Status(); }
  static Status InvalidArgument(std::string m) {
    return {StatusCode::kInvalidArgument, std::move(m)};
  }
  static Status OutOfRange(std::string m) { return {StatusCode::kOutOfRange, std::move(m)}; }
  static Status Unsupported(std::string m) { return {StatusCode::kUnsupported, std::move(m)}; }
  static Status NotFound(std::string m) { return {StatusCode::kNotFound, std::move(m)}; }
  static Status ResourceExhausted(std::string m) {
    return {StatusCode::kResourceExhausted, std::move(m)};
  }
  static Status Internal(std::string m) { return {StatusCode::kInternal, std::move(m)}; }

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

}  // namespace tactic

// Returns from the enclosing function when `expr` is a Status that is not OK.
#define TACTIC_RETURN_IF_ERROR(expr)               \
  do {                                             \
    ::tactic::Status tactic_status = (expr);       \
    if (!tactic_status.ok()) return tactic_status; \
  } while (false)

#endif  // TACTIC_STATUS_H_
