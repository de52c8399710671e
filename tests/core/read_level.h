// The numbers of a code, decoded straight from the layout that src/codes.h documents.
#ifndef TACTIC_TESTS_CORE_READ_LEVEL_H_
#define TACTIC_TESTS_CORE_READ_LEVEL_H_

#include <cmath>
#include <cstdint>

#include "src/reference/oracle_codes.h"

namespace tactic {

// 5 bits of exponent, 3 of mantissa.
inline double ReadByteFloat(uint8_t byte) {
  return byte == 0 ? 0 : std::ldexp(1 + byte % 8 / 8.0, byte / 8 - 24);
}

// The level of element `x` of key `key` of a block: byte 4 key + x % 4 of a row belongs to key and
// element; which row and which bits follow from k = x / 4.
inline double ReadLevel(const uint8_t* block, int dim, int bits, int key, int x) {
  const oracle::Row& level = oracle::QuantiserOf(bits).level;
  const int half = static_cast<int>(level.size());
  const int k = x / 4;
  const uint8_t* column = block + 4 * key + x % 4;
  if (bits == 3) {
    const int magnitude = column[k / 4 * 64] >> k % 4 * 2 & 3;
    const int sign_rows = (dim / 4 + 3) / 4;  // behind the magnitudes
    return (column[(sign_rows + k / 8) * 64] >> k % 8 & 1) != 0 ? -level[magnitude]
                                                                : level[magnitude];
  }
  const int count = bits == 2 ? column[k / 4 * 64] >> k % 4 * 2 & 3  //
                              : column[k / 2 * 64] >> k % 2 * 4 & 15;
  return count < half ? -level[half - 1 - count] : level[count - half];
}

}  // namespace tactic

#endif  // TACTIC_TESTS_CORE_READ_LEVEL_H_
