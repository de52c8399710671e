// Which lanes a mask of eight bits picks (pick-inl.h).
#ifndef TACTIC_SRC_CPU_PICK_TABLE_H_
#define TACTIC_SRC_CPU_PICK_TABLE_H_

#include <cstdint>

namespace tactic::cpu {

// lanes[m]: the numbers of the bits that are set in m, ascending, then zeros.
struct PickTable {
  alignas(64) uint8_t lanes[256][8];
};

constexpr PickTable MakePickTable() {
  PickTable table = {};
  for (int m = 0; m < 256; ++m) {
    int count = 0;
    for (int bit = 0; bit < 8; ++bit)
      if ((m >> bit & 1) != 0) table.lanes[m][count++] = static_cast<uint8_t>(bit);
  }
  return table;
}

inline constexpr PickTable kPickTable = MakePickTable();

}  // namespace tactic::cpu

#endif  // TACTIC_SRC_CPU_PICK_TABLE_H_
