#include "quality_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace tactic::app {
namespace {

using Field = std::variant<int Options::*, double Options::*, uint64_t Options::*, bool Options::*,
                           IndexKind Options::*>;

// As in options.h.
constexpr std::array<std::pair<std::string_view, Field>, 22> kFields = {{
    {"cluster-size", &Options::cluster_size},
    {"kmeans-iterations", &Options::kmeans_iterations},
    {"segment-size", &Options::segment_size},
    {"update-interval", &Options::update_interval},
    {"seed", &Options::seed},
    {"sinks", &Options::sinks},
    {"recent", &Options::recent},
    {"index", &Options::index},
    {"bits", &Options::bits},
    {"bits-error", &Options::bits_error},
    {"skip-share", &Options::skip_share},
    {"skip-token", &Options::skip_token},
    {"unread-margin", &Options::unread_margin},
    {"skipped-margin", &Options::skipped_margin},
    {"rounds", &Options::rounds},
    {"tail", &Options::tail},
    {"dense-share", &Options::dense_share},
    {"head-share", &Options::head_share},
    {"near-window", &Options::near_window},
    {"far-window", &Options::far_window},
    {"window-share", &Options::window_share},
    {"dense-below", &Options::dense_below},
}};

std::string Keys() {
  std::string keys;
  for (const auto& [key, field] : kFields) {
    keys += fmt::format("{}{}", keys.empty() ? "" : " ", key);
  }
  return keys;
}

// What a value had to be; null when it was that.
template <class T>
const char* ParseNumber(std::string_view text, T* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  if (error == std::errc() && end == text.data() + text.size()) return nullptr;
  return std::is_floating_point_v<T> ? "a number" : "a whole number that is not too large";
}

const char* ParseValue(std::string_view text, int* value) { return ParseNumber(text, value); }
const char* ParseValue(std::string_view text, double* value) { return ParseNumber(text, value); }
const char* ParseValue(std::string_view text, uint64_t* value) { return ParseNumber(text, value); }

const char* ParseValue(std::string_view text, bool* value) {
  *value = text == "true" || text == "1";
  return *value || text == "false" || text == "0" ? nullptr : "true or false";
}

const char* ParseValue(std::string_view text, IndexKind* value) {
  return ParseIndexKind(text, value).ok() ? nullptr : "clusters or pages";
}

Status SetOption(std::string_view key, std::string_view value, Options* options) {
  for (const auto& [name, field] : kFields) {
    if (name != key) continue;
    const char* expected =
        std::visit([&](auto member) { return ParseValue(value, &(options->*member)); }, field);
    if (expected == nullptr) return Status::Ok();
    return Status::InvalidArgument(fmt::format("{} is '{}', expected {}", key, value, expected));
  }
  if (key == "target") {
    return Status::InvalidArgument("targets are given by --targets, for all policies alike");
  }
  return Status::InvalidArgument(
      fmt::format("there is no parameter '{}'; expected one of {}", key, Keys()));
}

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

Status Parse(const std::string& spec, Options* options) {
  const std::vector<std::string_view> parts = Split(spec, ':');
  Mode mode;
  TACTIC_RETURN_IF_ERROR(ParseMode(parts[0], &mode));
  *options = Options::For(mode);
  std::vector<std::string_view> seen;
  for (size_t i = 1; i < parts.size(); ++i) {
    const size_t equals = parts[i].find('=');
    if (equals == std::string_view::npos) {
      return Status::InvalidArgument(fmt::format("'{}' is not key=value", parts[i]));
    }
    const std::string_view key = parts[i].substr(0, equals);
    if (std::find(seen.begin(), seen.end(), key) != seen.end()) {
      return Status::InvalidArgument(fmt::format("{} is given twice", key));
    }
    seen.push_back(key);
    TACTIC_RETURN_IF_ERROR(SetOption(key, parts[i].substr(equals + 1), options));
  }
  return options->Validate();
}

}  // namespace

Status ParseQualityPolicy(const std::string& spec, QualityPolicy* policy) {
  policy->name = spec;
  const Status status = Parse(spec, &policy->options);
  if (status.ok()) return status;
  return {status.code(), fmt::format("policy '{}': {}", spec, status.message())};
}

nlohmann::json OptionsJson(const Options& options) {
  nlohmann::json json = nlohmann::json::object();
  for (const auto& [name, field] : kFields) {
    std::visit(
        [&, key = std::string(name)](auto member) {
          if constexpr (std::is_same_v<decltype(member), IndexKind Options::*>) {
            json[key] = IndexKindName(options.*member);
          } else {
            json[key] = options.*member;
          }
        },
        field);
  }
  return json;
}

}  // namespace tactic::app
