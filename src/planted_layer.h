// PlantedLayer: keys, values and queries for Calibrate, in which there is something to find.
//
// With white noise every token has the same mass and a mode has to read all of them. Here a text is
// a sequence of passages, each about one of some topics; a key is its topic's direction and noise.
// A query looks for a few topics, and is as sharp as it must be for 90 % of the mass to lie in a
// share of the tokens that differs from query to query as it does in real models. Values are noise,
// which changes no time. bench/layer/synthetic.h has what real attention is made of besides.
#ifndef TACTIC_SRC_PLANTED_LAYER_H_
#define TACTIC_SRC_PLANTED_LAYER_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

#include "src/random.h"
#include "tactic/rows_view.h"
#include "tactic/shape.h"

namespace tactic {

class PlantedLayer {
 public:
  // Room for `capacity` tokens, none yet. Throws bad_alloc. REQUIRES: a valid shape whose dims suit
  // the types.
  PlantedLayer(const LayerShape& shape, ElementType key_type, ElementType value_type,
               int64_t capacity, int queries);

  // Appends tokens of one KV head up to `tokens` and makes new queries that see all of them.
  // Different KV heads may run concurrently. REQUIRES: 64 <= tokens <= capacity.
  void Grow(int kv_head, int64_t tokens);

  RowsView keys() const { return View(keys_.get(), key_type_, shape_.head_dim); }
  RowsView values() const { return View(values_.get(), value_type_, shape_.value_dim); }
  float scale() const;
  // [q_heads][head_dim]
  const float* Query(int query) const {
    return q_.data() + int64_t{query} * shape_.q_heads * shape_.head_dim;
  }
  // Mean of |q * scale|^2 over all queries, by KV head, as SequenceIndex wants it.
  std::vector<float> QueryNorms() const;

 private:
  struct Free {
    void operator()(uint8_t* data) const { std::free(data); }
  };
  using Memory = std::unique_ptr<uint8_t, Free>;
  struct Head {
    explicit Head(uint64_t seed) : random(seed) {}
    Random random;
    std::vector<uint8_t> topic_of;  // [tokens so far]
    int64_t passage_end = 0;
  };

  static Memory Allocate(size_t bytes);
  RowsView View(const uint8_t* data, ElementType type, int dim) const;
  std::span<const float> Noise(Random* random, int dim) const;
  void MakeQueries(int kv_head);
  // Multiplies q [head_dim] by what makes the fewest tokens with 90 % of the mass `needed`, a share
  // of all.
  void Sharpen(int kv_head, double needed, float* q) const;

  LayerShape shape_;
  ElementType key_type_, value_type_;
  int queries_;
  std::vector<float> noise_;
  std::vector<float> topics_;        // [kv_heads][kTopics][head_dim]
  std::vector<uint8_t> value_rows_;  // some rows, of which values are copies
  Memory keys_, values_;             // [capacity][kv_heads][dim]
  std::vector<Head> heads_;
  std::vector<float> q_;  // [queries][q_heads][head_dim]
};

}  // namespace tactic

#endif  // TACTIC_SRC_PLANTED_LAYER_H_
