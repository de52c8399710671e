// LayerShape: the sizes of one attention layer.
#ifndef TACTIC_SHAPE_H_
#define TACTIC_SHAPE_H_

#include "tactic/status.h"

namespace tactic {

struct LayerShape {
  int q_heads = 0;    // a multiple of kv_heads
  int kv_heads = 0;   // q_heads / kv_heads query heads ("group", 1 to 32) share a KV head
  int head_dim = 0;   // of queries and keys; a multiple of 8, at most 512
  int value_dim = 0;  // of values and outputs; likewise

  int group() const { return q_heads / kv_heads; }
  bool operator==(const LayerShape&) const = default;

  // OK, or the first field that is out of its range.
  Status Validate() const;

  static constexpr int kMaxGroup = 32;
  static constexpr int kMaxDim = 512;
};

}  // namespace tactic

#endif  // TACTIC_SHAPE_H_
