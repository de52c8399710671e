#include "text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "interrupt.h"

namespace tactic::app {

Status ReadText(const std::string& path, const std::string& field, std::string* text) {
  if (path == "-") {
    text->assign(std::istreambuf_iterator<char>(std::cin), {});
    return Interrupted() ? InterruptedStatus() : Status::Ok();
  }
  const auto failed = [&](int error) {
    return Status::NotFound(
        fmt::format("{}: cannot read '{}': {}", field, path, std::strerror(error)));
  };
  // Opening a folder for reading succeeds and yields nothing.
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return failed(EISDIR);
  std::ifstream file(path, std::ios::binary);
  if (!file) return failed(errno);
  text->assign(std::istreambuf_iterator<char>(file), {});
  if (file.bad()) return failed(EIO);
  return Status::Ok();
}

size_t WholeUtf8Prefix(std::string_view bytes) {
  // A sequence has at most four bytes: look for the lead byte of the last one.
  for (size_t back = 1; back <= std::min<size_t>(4, bytes.size()); ++back) {
    const auto byte = static_cast<unsigned char>(bytes[bytes.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;  // a continuation byte
    const size_t length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
    return length > back ? bytes.size() - back : bytes.size();
  }
  return bytes.size();
}

}  // namespace tactic::app
