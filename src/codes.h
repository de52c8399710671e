// Codes: what mode tactic stores of every key beside its cluster, and how it is laid out.
//
// The residual of a key to its cluster's centroid is rotated (signed Hadamard: every element then
// looks Gaussian, whatever the key) and each element is stored as the nearest level of a Lloyd-Max
// quantiser of 2, 3 or 4 bits. The scale that is stored with it makes the code unbiased:
// t = |y|^2 / <y, levels>, so that <y, t levels> = |y|^2 and the error of t levels has no component
// along y. Its variance follows from t alone, hence every estimated logit comes with its error.
// (The least-squares scale would shrink: measured to cost 20 points of cases that reach P.)
//
// Levels are half-integers within 63.5, stored as level + 63.5 in 7 bits, so that products with
// 8-bit queries and their sums of two fit 16 bits on every instruction set.
#ifndef TACTIC_SRC_CODES_H_
#define TACTIC_SRC_CODES_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "src/random.h"

namespace tactic {

inline constexpr int kSmallestBits = 2;
inline constexpr int kLargestBits = 4;
inline constexpr float kLevelZero = 63.5f;  // what a stored level of 0 means: -63.5

// A quantiser of a Gaussian of deviation 1. Level and boundary are symmetric: of magnitudes only.
struct CodeBook {
  int magnitudes;     // 2^bits / 2
  uint8_t level[8];   // magnitude m is stored as level[m] when positive, as 127 - level[m] when not
  float boundary[7];  // between magnitudes m and m + 1
  float error;        // variance of an element's error is error * t^2: E[level^2] - E[y level]^2
  float relative;     // the same as a share of the element's variance
};

// Lloyd-Max levels (Max 1960), scaled to where the half-integers fit best.
inline constexpr CodeBook kCodeBooks[kLargestBits + 1] = {
    {},
    {},
    {2, {82, 125}, {0.9816f}, 172.69f, 0.13377f},
    {4, {71, 86, 103, 127}, {0.5006f, 1.050f, 1.748f}, 29.383f, 0.036166f},
    {8,
     {66, 71, 76, 82, 88, 95, 104, 117},
     {0.2554f, 0.5108f, 0.7918f, 1.0983f, 1.4304f, 1.8390f, 2.4010f},
     3.722f,
     0.0099092f},
};

// --- layout ---
// Keys of a segment, by cluster, in blocks of 16. A block's codes are rows of 64 bytes: byte 4 i +
// j of a row belongs to key i and to elements 4 k + j of several k, each of which is thus one
// vector of four bytes per key, as dot-product instructions take them:
//   2 bits: row r holds k = 4 r .. 4 r + 3, two bits each
//   4 bits: row r holds k = 2 r and 2 r + 1, four bits each
//   3 bits: the magnitudes as 2 bits, then rows of signs, of which row r holds k = 8 r .. 8 r + 7
// Codes of 2 and 4 bits count levels from the lowest to the highest; a sign bit is set for
// negative.
inline constexpr int kCodeBlock = 16;
inline constexpr size_t kCodeRow = 64;

// Rows of one block. REQUIRES: dim is a multiple of 8.
constexpr size_t CodeRows(int dim, int bits) {
  const auto quads = static_cast<size_t>(dim / 4);
  const size_t pairs = (quads + 3) / 4;
  return bits == 2 ? pairs : bits == 4 ? (quads + 1) / 2 : pairs + (quads + 7) / 8;
}
constexpr size_t CodeBlockBytes(int dim, int bits) { return CodeRows(dim, bits) * kCodeRow; }

// Centroids of `slots` clusters are interleaved likewise: four elements of each, then the next
// four.
constexpr size_t CentroidAt(size_t element, size_t cluster, size_t slots) {
  return element / 4 * slots * 4 + cluster * 4 + element % 4;
}

// Elements of a query that the codes' rows may touch: `dim` rounded up; zeros beyond it.
constexpr int CodeQueryDim(int dim) { return (dim + 31) / 32 * 32; }

// --- scales ---
// A number >= 0 in a byte: 5 bits of exponent, 3 of mantissa; from 2^-23 to 240, and 0. One shift
// and one multiplication give it back as a float. Rounded to nearest it is off by 2.7 % (rms).
inline constexpr float kByteFloatUnit = 0x1p103f;
inline constexpr float kLargestByteFloat = 240.0f;

inline float ByteToFloat(uint8_t byte) {
  return std::bit_cast<float>(static_cast<uint32_t>(byte) << 20) * kByteFloatUnit;
}

// The nearest; 0 below the smallest, the largest above it.
inline uint8_t FloatToByte(float value) {
  constexpr float kSmallest = 0x1p-23f;
  if (!(value >= kSmallest)) return 0;
  if (value >= kLargestByteFloat) return 255;
  const uint32_t bits = std::bit_cast<uint32_t>(value / kByteFloatUnit);
  return static_cast<uint8_t>(std::min<uint32_t>(255, (bits + (1u << 19)) >> 20));
}

// The smallest that is not below `value`: for bounds.
inline uint8_t FloatToByteAbove(float value) {
  uint8_t byte = FloatToByte(value);
  if (value > 0 && byte == 0) byte = 8;
  while (byte < 255 && ByteToFloat(byte) < value) ++byte;
  return byte;
}

// --- rotation ---
// y = H D x: D flips signs, H is block-diagonal with normalised Hadamard matrices of the powers of
// two that `dim` is the sum of (64: one; 80 = 64 + 16; 96 = 64 + 32), so that no element is added.
// Orthogonal: products of rotated vectors are those of the originals.
inline void Rotate(const float* x, int dim, float* y) {
  constexpr int kMaxDim = 512;
  static const auto* const signs = [] {
    static uint8_t flip[kMaxDim];
    Random random(0x7AC71C);
    for (uint8_t& f : flip) f = random.Next() >> 63;
    return flip;
  }();
  for (int begin = 0; begin < dim;) {
    const int size = static_cast<int>(std::bit_floor(static_cast<unsigned>(dim - begin)));
    float* block = y + begin;
    const float norm = 1.0f / std::sqrt(static_cast<float>(size));
    for (int i = 0; i < size; ++i)
      block[i] = signs[begin + i] != 0 ? -x[begin + i] * norm : x[begin + i] * norm;
    for (int half = 1; half < size; half *= 2) {
      for (int i = 0; i < size; i += 2 * half) {
        for (int j = i; j < i + half; ++j) {
          const float a = block[j];
          const float b = block[j + half];
          block[j] = a + b;
          block[j + half] = a - b;
        }
      }
    }
    begin += size;
  }
}

}  // namespace tactic

#endif  // TACTIC_SRC_CODES_H_
