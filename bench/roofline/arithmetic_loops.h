// Bare loops of multiply-adds: how much this machine computes when nothing is read but what lies in
// L1, for the two kinds of product that the kernels are made of.
#ifndef TACTIC_BENCH_ROOFLINE_ARITHMETIC_LOOPS_H_
#define TACTIC_BENCH_ROOFLINE_ARITHMETIC_LOOPS_H_

#include <cstddef>

namespace tactic::bench {

// Each returns the number of elements that it multiplied and added.
size_t MultiplyFloats();
// Of bytes, whose products are added up by fours, as code scans do.
size_t MultiplyBytes();

}  // namespace tactic::bench

#endif  // TACTIC_BENCH_ROOFLINE_ARITHMETIC_LOOPS_H_
