#include "eval_items.h"

#include <fmt/format.h>

#include <string_view>

#include "facts.h"
#include "random.h"

namespace tactic::app {
namespace {

// Held out: the keys of the adapter's training are made of other words.
constexpr std::array<std::string_view, 8> kAdjectives = {"amber", "brittle", "cobalt", "drowsy",
                                                         "elfin", "feral",   "gaunt",  "hollow"};
constexpr std::array<std::string_view, 8> kNouns = {"anvil", "bobbin", "cello",  "dormer",
                                                    "easel", "flagon", "gimbal", "hatchet"};
static_assert(kAdjectives.size() * kNouns.size() >= kMostLines);

// Version 4: random but for the version and the variant.
std::string Uuid(Random* random) {
  std::string uuid;
  for (const char place : std::string_view("xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx")) {
    switch (place) {
      case 'x':
        uuid += "0123456789abcdef"[random->Below(16)];
        break;
      case 'y':
        uuid += "89ab"[random->Below(4)];
        break;
      default:
        uuid += place;
    }
  }
  return uuid;
}

void AddLines(int count, Random* random, std::vector<EvalItem>* items) {
  std::vector<std::string> keys;
  for (const std::string_view adjective : kAdjectives) {
    for (const std::string_view noun : kNouns)
      keys.push_back(fmt::format("{}-{}", adjective, noun));
  }
  random->Shuffle(&keys);
  for (int i = 0; i < count; ++i) {
    const std::string& key = keys[static_cast<size_t>(i)];
    const std::string value = fmt::format("{}", 10000 + random->Below(90000));
    items->push_back(
        {ItemKind::kLine, fmt::format("\nline {}: REGISTER_CONTENT is <{}>\n", key, value),
         fmt::format("Tell me what is the <REGISTER_CONTENT> in line {}? I need the number.", key),
         value});
  }
}

void AddEntries(int count, Random* random, std::vector<EvalItem>* items) {
  for (int i = 0; i < count; ++i) {
    const std::string key = Uuid(random), value = Uuid(random);
    items->push_back({ItemKind::kEntry, fmt::format("\n{{\"{}\": \"{}\"}}\n", key, value),
                      fmt::format("Key: \"{}\"\nCorresponding value:", key), value});
  }
}

}  // namespace

const char* ItemKindName(ItemKind kind) {
  switch (kind) {
    case ItemKind::kFact:
      return "fact";
    case ItemKind::kLine:
      return "line";
    case ItemKind::kEntry:
      return "entry";
  }
  return "unknown";
}

std::vector<EvalItem> MakeItems(const ItemCounts& counts, uint64_t seed) {
  std::vector<EvalItem> items;
  for (const Fact& fact : MakeFacts(counts.facts, seed)) {
    items.push_back({ItemKind::kFact, " " + fact.sentence, fact.question, fact.value});
  }
  Random random(seed);
  AddLines(counts.lines, &random, &items);
  AddEntries(counts.entries, &random, &items);
  return items;
}

}  // namespace tactic::app
