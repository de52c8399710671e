#include "layer_list.h"

#include <fmt/format.h>

#include <charconv>
#include <set>

namespace tactic::app {

Status ParseLayers(const std::string& text, int end, std::vector<int>* layers) {
  layers->clear();
  if (text == "all") return Status::Ok();
  const auto bad = [&] {
    return Status::InvalidArgument(fmt::format(
        "--layers is '{}', expected all or numbers and ranges from 0 to {}, e.g. 0,3,5-9", text,
        end - 1));
  };
  std::set<int> unique;
  const char* at = text.data();
  const char* const stop = at + text.size();
  const auto number = [&](int* value) {
    const auto [next, error] = std::from_chars(at, stop, *value);
    at = next;
    return error == std::errc() && *value >= 0 && *value < end;
  };
  while (true) {
    int first = 0;
    if (!number(&first)) return bad();
    int last = first;
    if (at != stop && *at == '-') {
      ++at;
      if (!number(&last) || last < first) return bad();
    }
    for (int layer = first; layer <= last; ++layer) unique.insert(layer);
    if (at == stop) break;
    if (*at++ != ',') return bad();
  }
  layers->assign(unique.begin(), unique.end());
  return Status::Ok();
}

}  // namespace tactic::app
