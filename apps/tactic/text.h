// Text: reading input files and cutting streams of bytes into whole characters.
#ifndef TACTIC_APPS_TEXT_H_
#define TACTIC_APPS_TEXT_H_

#include <string>
#include <string_view>

#include "tactic/status.h"

namespace tactic::app {

// Reads a whole file, or stdin when `path` is "-". NotFound when that fails; `field` names the
// argument in the message.
Status ReadText(const std::string& path, const std::string& field, std::string* text);

// Length of the longest prefix of `bytes` that does not end inside a UTF-8 sequence. Tokens may end
// anywhere, a terminal wants whole characters. Invalid bytes count as complete.
size_t WholeUtf8Prefix(std::string_view bytes);

}  // namespace tactic::app

#endif  // TACTIC_APPS_TEXT_H_
