// Bare read loops: what this machine delivers when nothing is computed, for each way in which the
// kernels read.
#ifndef TACTIC_BENCH_ROOFLINE_READ_LOOPS_H_
#define TACTIC_BENCH_ROOFLINE_READ_LOOPS_H_

#include <cstddef>
#include <cstdint>

namespace tactic::bench {

// Exclusive or of all words of [data, data + bytes); `bytes` is a multiple of 512.
uint64_t ReadStream(const uint8_t* data, size_t bytes);

// The same of the rows at data + cells[i] * stride, which are asked for as far ahead as the kernels
// do; `row_bytes` is a multiple of 64.
uint64_t ReadRows(const uint8_t* data, size_t stride, size_t row_bytes, const uint32_t* cells,
                  size_t n);

}  // namespace tactic::bench

#endif  // TACTIC_BENCH_ROOFLINE_READ_LOOPS_H_
