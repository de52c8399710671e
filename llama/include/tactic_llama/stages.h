// What a batch's attention is made of inside llama.cpp, and how long it took.
#ifndef TACTIC_LLAMA_STAGES_H_
#define TACTIC_LLAMA_STAGES_H_

#include <array>
#include <cstdint>

namespace tactic::llama {

// One node of the graph each, in the order in which they run. kPrompt alone for prompts, the last
// five for decoding (tactic/decode.h); kIndex for both.
enum class Stage : uint8_t { kIndex, kPrompt, kRank, kBudget, kSelect, kAttend, kCombine };
inline constexpr int kStages = 7;
inline constexpr std::array<const char*, kStages> kStageNames = {
    "index", "prompt", "rank", "budget", "select", "attend", "combine"};

// Time that threads spent in the stages of one layer, added up over the threads: what they wait for
// one another at the end of a node is not in it. Nanoseconds.
struct LayerTimes {
  int layer = 0;
  std::array<int64_t, kStages> ns = {};
};

}  // namespace tactic::llama

#endif  // TACTIC_LLAMA_STAGES_H_
