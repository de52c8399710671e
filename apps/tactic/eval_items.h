// Items: what `tactic eval retrieval` hides in a text and asks for.
//
// Facts are those of the demo; lines are worded as in LongEval (Li et al., 2023), entries are
// key-value pairs of UUIDs as in "Lost in the Middle" (Liu et al., 2023).
#ifndef TACTIC_APPS_EVAL_ITEMS_H_
#define TACTIC_APPS_EVAL_ITEMS_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace tactic::app {

enum class ItemKind : uint8_t { kFact, kLine, kEntry };
inline constexpr std::array kItemKinds = {ItemKind::kFact, ItemKind::kLine, ItemKind::kEntry};
// "fact", "line", "entry".
const char* ItemKindName(ItemKind kind);

struct EvalItem {
  ItemKind kind;
  std::string text;      // what is hidden, with the space around it
  std::string question;  // does not hold the value
  std::string value;     // an answer is right when it contains this
};

struct ItemCounts {
  int facts = 7;
  int lines = 7;
  int entries = 6;
};
inline constexpr int kMostLines = 64;
inline constexpr int kMostEntries = 64;

// Items of all kinds, in the order of kItemKinds. No two share a key or a text. Deterministic for a
// seed. REQUIRES: counts from 0 to kMostFacts, kMostLines, kMostEntries.
std::vector<EvalItem> MakeItems(const ItemCounts& counts, uint64_t seed);

}  // namespace tactic::app

#endif  // TACTIC_APPS_EVAL_ITEMS_H_
