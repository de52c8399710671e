// Synthetic attention of one layer at any length, with what real attention is made of: sinks, a
// local window, topics that come back (planted clusters), heavy single tokens, and noise.
//
// A text is a sequence of passages; each has a topic, an old or a new one. A key is its topic's
// direction plus noise of the same energy; the first keys, the newest and a few others also have
// directions of their own. A query looks for some topics and, more or less, for each of the others.
// The query heads of a KV head look for the same topics, not equally. How sharp queries are is
// found by bisection: the fewest tokens with 90 % of the mass number `needed` on average, with the
// spread of real queries. The sparsity of a context is what its cost depends on, so it is what is
// held fixed over lengths.
#ifndef TACTIC_BENCH_LAYER_SYNTHETIC_H_
#define TACTIC_BENCH_LAYER_SYNTHETIC_H_

#include <cstdint>
#include <vector>

#include "bench/huge_halves.h"
#include "bench/synthetic/mass_facts.h"
#include "tactic/rows_view.h"
#include "tactic/shape.h"

namespace tactic::bench {

class SyntheticLayer {
 public:
  // REQUIRES: tokens >= 1024, needed < tokens / 4. `queries` steps, all at the last position.
  SyntheticLayer(const LayerShape& shape, int64_t tokens, int64_t needed, int queries,
                 uint64_t seed);

  const LayerShape& shape() const { return shape_; }
  int64_t tokens() const { return tokens_; }
  int queries() const { return queries_; }
  float scale() const;
  RowsView keys() const { return View(keys_, shape_.head_dim); }
  RowsView values() const { return View(values_, shape_.value_dim); }
  // [q_heads][head_dim]
  const float* Query(int query) const {
    return q_.data() + int64_t{query} * shape_.q_heads * shape_.head_dim;
  }

 private:
  friend class SyntheticHead;
  RowsView View(const HugeHalves& rows, int dim) const;

  LayerShape shape_;
  int64_t tokens_;
  int queries_;
  HugeHalves keys_;    // [tokens][kv_heads][head_dim]
  HugeHalves values_;  // [tokens][kv_heads][value_dim]
  std::vector<float> q_;
};

// In double precision.
synthetic::MassFacts FactsOf(const SyntheticLayer& layer, int query, int q_head);

}  // namespace tactic::bench

#endif  // TACTIC_BENCH_LAYER_SYNTHETIC_H_
