// Codes of 16 keys, any of a segment, as operands of tensor cores (m16n8k32, unsigned levels times
// signed query bytes): products are integers, exactly those of the CPU.
//
// A code row (codes.h) has four bytes of each of 16 keys, and each byte belongs to one element of
// several quads. Permutations of bytes turn two to four bits into levels, four elements at a time,
// in an order that the format dictates; the query is laid out once in the same order (CodeElement).
#ifndef TACTIC_SRC_CUDA_CODE_TILE_CUH_
#define TACTIC_SRC_CUDA_CODE_TILE_CUH_

#include "src/codes.h"
#include "src/cuda/tile.cuh"

namespace tactic::cuda {

// A lane holds, of keys r and r + 8 of a block, the words of code rows t, t + 4, ...: CodeWords of
// them, each of which opens to CodeGroups registers of four levels.
__host__ __device__ constexpr int CodeGroups(int bits) { return bits == 4 ? 2 : 4; }
// Rows of levels, or of magnitudes where signs are apart.
__host__ __device__ constexpr int LevelRows(int dim, int bits) {
  return bits == 4 ? (dim / 4 + 1) / 2 : (dim / 4 + 3) / 4;
}
__host__ __device__ constexpr int CodeWords(int dim, int bits) {
  return (LevelRows(dim, bits) + 3) / 4;
}
// Which element byte j of register i of the word of row `row` is.
__host__ __device__ constexpr int CodeElement(int bits, int row, int i, int j) {
  // Of 4 bits a register is half of the word; else of the word shifted by 2 (i / 2).
  return bits == 4 ? 4 * (2 * row + j % 2) + 2 * i + j / 2
                   : 4 * (4 * row + i / 2 + j % 2 * 2) + i % 2 * 2 + j / 2;
}
// Registers of a group's queries per lane, for every eight heads: [word][group][lane] in memory.
__host__ __device__ constexpr int CodeQueryWords(int dim, int bits) {
  return CodeWords(dim, bits) * CodeGroups(bits);
}

__device__ __forceinline__ void MultiplyBytes(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                              uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__host__ __device__ constexpr uint32_t BytesOf(int a, int b, int c, int d) {
  return static_cast<uint32_t>(a) | static_cast<uint32_t>(b) << 8 | static_cast<uint32_t>(c) << 16 |
         static_cast<uint32_t>(d) << 24;
}
// The negative of a level, as it is stored, is this minus it.
inline constexpr uint32_t kTopLevels = 0x7f7f7f7f;

template <int kBits, int kDim>
struct CodeTile {
  static constexpr int kRows = LevelRows(kDim, kBits);
  static constexpr int kGroups = CodeGroups(kBits);
  static constexpr int kWords = CodeWords(kDim, kBits);
  static constexpr bool kSigns = kBits == 3;
  uint32_t levels[2][kWords];  // of keys r and r + 8
  uint32_t signs[2][kSigns ? kWords : 1];

  // Where key `key` of codes in blocks begins: bytes.
  static __device__ __forceinline__ uint32_t OffsetOf(int key) {
    constexpr int kBlock = static_cast<int>(CodeBlockBytes(kDim, kBits));
    return static_cast<uint32_t>(key / kCodeBlock * kBlock + key % kCodeBlock * 4);
  }

  // Any keys, for this lane's r and r + 8.
  __device__ __forceinline__ void Load(const uint8_t* codes, int low, int high, int lane) {
    const int t = lane & 3;
    // What is added to these is known to the compiler, but for signs.
    const uint8_t* at[2] = {codes + (OffsetOf(low) + t * kCodeRow),
                            codes + (OffsetOf(high) + t * kCodeRow)};
#pragma unroll
    for (int m = 0; m < kWords; ++m) {
      const int row = t + 4 * m;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool read = kRows % 4 == 0 || row < kRows;
        levels[i][m] = read ? Load4(at[i] + 4 * m * kCodeRow) : 0;
        if constexpr (kSigns) {
          // A row of signs serves two of magnitudes: the second has the upper half of each byte.
          const uint32_t both = read ? Load4(at[i] + (kRows + row / 2 - t) * kCodeRow) : 0;
          signs[i][m] = both >> row % 2 * 4;
        }
      }
    }
  }

  __device__ __forceinline__ void Open(int i, int m, uint32_t (&out)[kGroups]) const {
    constexpr CodeBook kBook = kCodeBooks[kBits];
    const uint32_t word = levels[i][m];
    if constexpr (kBits == 4) {
      out[0] = OpenHalf(word & 0xffffu);
      out[1] = OpenHalf(word >> 16);
    } else {
      uint32_t even = word & 0x33333333u;
      uint32_t odd = word >> 2 & 0x33333333u;
      uint32_t table[2] = {
          BytesOf(127 - kBook.level[1], 127 - kBook.level[0], kBook.level[0], kBook.level[1]), 0};
      if constexpr (kBits == 3) {
        constexpr uint32_t kPositive =
            BytesOf(kBook.level[0], kBook.level[1], kBook.level[2], kBook.level[3]);
        table[0] = kPositive;
        table[1] = kTopLevels - kPositive;
        // Bit k of a byte of signs goes on top of the magnitude of quad k.
        const uint32_t s = signs[i][m];
        even |= (s << 2 & 0x04040404u) | (s << 4 & 0x40404040u);
        odd |= (s << 1 & 0x04040404u) | (s << 3 & 0x40404040u);
      }
      out[0] = __byte_perm(table[0], table[1], even);
      out[1] = __byte_perm(table[0], table[1], even >> 16);
      out[2] = __byte_perm(table[0], table[1], odd);
      out[3] = __byte_perm(table[0], table[1], odd >> 16);
    }
  }

  // Four codes of 4 bits. A selector whose top bit is set gives the sign of the byte it selects,
  // which is 0 for every level: so each half of the codes has a table of its own, and what they
  // give is joined.
  static __device__ __forceinline__ uint32_t OpenHalf(uint32_t codes) {
    constexpr CodeBook kBook = kCodeBooks[4];
    constexpr uint32_t kHigh0 =
        BytesOf(kBook.level[0], kBook.level[1], kBook.level[2], kBook.level[3]);
    constexpr uint32_t kHigh1 =
        BytesOf(kBook.level[4], kBook.level[5], kBook.level[6], kBook.level[7]);
    constexpr uint32_t kLow0 =
        kTopLevels - BytesOf(kBook.level[7], kBook.level[6], kBook.level[5], kBook.level[4]);
    constexpr uint32_t kLow1 =
        kTopLevels - BytesOf(kBook.level[3], kBook.level[2], kBook.level[1], kBook.level[0]);
    uint32_t low, high;
    asm("prmt.b32 %0,%1,%2,%3;" : "=r"(low) : "r"(kLow0), "r"(kLow1), "r"(codes));
    asm("prmt.b32 %0,%1,%2,%3;" : "=r"(high) : "r"(kHigh0), "r"(kHigh1), "r"(codes ^ 0x8888u));
    return low | high;
  }
};

// The rotated queries of a group, in the order of a CodeTile's levels.
template <int kBits, int kDim, int kHeadTiles>
struct CodeQueryTile {
  using Tile = CodeTile<kBits, kDim>;
  uint32_t b[kHeadTiles][Tile::kWords][Tile::kGroups];

  // `packed`: [tile of heads][word][group][lane].
  __device__ __forceinline__ void Load(const uint32_t* packed, int lane) {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int m = 0; m < Tile::kWords; ++m) {
#pragma unroll
        for (int i = 0; i < Tile::kGroups; ++i)
          b[n][m][i] = packed[((n * Tile::kWords + m) * Tile::kGroups + i) * 32 + lane];
      }
    }
  }

  // dots: of keys r and r + 8 with heads 2 t and 2 t + 1 of each tile, as in tile.cuh.
  __device__ __forceinline__ void Score(const Tile& tile, int (&dots)[kHeadTiles][4]) const {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) dots[n][0] = dots[n][1] = dots[n][2] = dots[n][3] = 0;
#pragma unroll
    for (int m = 0; m < Tile::kWords; ++m) {
      uint32_t low[Tile::kGroups];
      uint32_t high[Tile::kGroups];
      tile.Open(0, m, low);
      tile.Open(1, m, high);
#pragma unroll
      for (int i = 0; i < Tile::kGroups; i += 2) {
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n)
          MultiplyBytes(dots[n], low[i], high[i], low[i + 1], high[i + 1], b[n][m][i],
                        b[n][m][i + 1]);
      }
    }
  }
};

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_CODE_TILE_CUH_
