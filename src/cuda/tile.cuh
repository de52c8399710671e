// Tiles: what one warp does with 16 rows of keys or values on tensor cores, in registers alone.
//
// Logits are S^T = K q with m16n8k16: the 16 rows are M, the query heads of the group, eight to a
// tile, N. The order of the elements within K is free as long as rows and queries have the same, so
// that every lane loads whole pieces of 8 consecutive elements. Outputs are O^T = V^T P^T: elements
// are M, heads N, rows K. Lane 4 r + t holds
//   logits   of rows r and r + 8 for heads 2 t and 2 t + 1 of each tile of heads
//   outputs  of those heads, for the elements x of value_dim that Column() says
//
// 8-bit elements become f16 exactly: e4m3 numbers as 1/256 of what they are (kE4M3Unit), since then
// no arithmetic is needed, and bytes of centroids and means as integers.
#ifndef TACTIC_SRC_CUDA_TILE_CUH_
#define TACTIC_SRC_CUDA_TILE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace tactic::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kTileRows = 16;
inline constexpr int kTileHeads = 8;
inline constexpr float kE4M3Unit = 256;
// The logit of a row that is not there, and the maximum of no rows: finite, so that differences
// are, and so far apart that such a row has no weight.
inline constexpr float kNone = -1e30f;
inline constexpr float kNothing = -1e29f;

// Head number `h`, 0 or 1, of this lane's in tile n of heads.
__device__ __forceinline__ int LaneHead(int n, int h) {
  return n * kTileHeads + 2 * static_cast<int>(threadIdx.x & 3) + h;
}

__device__ __forceinline__ float WarpMax(float x) {
#pragma unroll
  for (int k = 16; k > 0; k >>= 1) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, k));
  return x;
}

// --- element types ---

struct RowBF16 {
  static constexpr int kBytes = 2;
  static constexpr bool kIsBF16 = true;  // what tensor cores multiply; f16 otherwise
};
struct RowF16 {
  static constexpr int kBytes = 2;
  static constexpr bool kIsBF16 = false;
};
struct RowE4M3 {
  static constexpr int kBytes = 1;
  static constexpr bool kIsBF16 = false;
};
struct RowI8 {
  static constexpr int kBytes = 1;
  static constexpr bool kIsBF16 = false;
};

// Rows are read once: they need not stay in L1.
__device__ __forceinline__ uint4 Load16(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3},[%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ uint2 Load8(const void* p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1},[%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}
__device__ __forceinline__ uint32_t Load4(const void* p) {
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0,[%1];" : "=r"(v) : "l"(p));
  return v;
}

// Four 8-bit elements as four f16.
template <class Row>
__device__ __forceinline__ uint2 Widen(uint32_t bytes) {
  if constexpr (std::is_same_v<Row, RowE4M3>) {
    // Sign, then exponent and mantissa one place lower than the byte has them in the upper half.
    const uint32_t low = __byte_perm(bytes, 0, 0x1404);
    const uint32_t high = __byte_perm(bytes, 0, 0x3424);
    return {(low & 0x80008000u) | ((low >> 1) & 0x3f803f80u),
            (high & 0x80008000u) | ((high >> 1) & 0x3f803f80u)};
  } else {
    // 1024 + (x + 128) is 0x6400 + (x ^ 0x80).
    const uint32_t biased = bytes ^ 0x80808080u;
    const __half2 offset = __half2half2(__ushort_as_half(0x6480));  // 1152
    const uint32_t low = __byte_perm(biased, 0x64646464u, 0x4140);
    const uint32_t high = __byte_perm(biased, 0x64646464u, 0x4342);
    const __half2 a = __hsub2(*reinterpret_cast<const __half2*>(&low), offset);
    const __half2 b = __hsub2(*reinterpret_cast<const __half2*>(&high), offset);
    return {*reinterpret_cast<const uint32_t*>(&a), *reinterpret_cast<const uint32_t*>(&b)};
  }
}

// Eight consecutive elements as they are loaded, and as tensor cores take them.
template <class Row>
struct Piece {
  using Raw = std::conditional_t<Row::kBytes == 2, uint4, uint2>;
  static __device__ __forceinline__ Raw Load(const void* p) {
    if constexpr (Row::kBytes == 2)
      return Load16(p);
    else
      return Load8(p);
  }
  static __device__ __forceinline__ uint4 Open(Raw raw) {
    if constexpr (Row::kBytes == 2) {
      return raw;
    } else {
      const uint2 a = Widen<Row>(raw.x);
      const uint2 b = Widen<Row>(raw.y);
      return {a.x, a.y, b.x, b.y};
    }
  }
};

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}

template <bool kBF16>
__device__ __forceinline__ uint32_t Pack(float low, float high) {
  uint32_t r;
  if constexpr (kBF16) {
    asm("cvt.rn.bf16x2.f32 %0,%1,%2;" : "=r"(r) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0,%1,%2;" : "=r"(r) : "f"(high), "f"(low));
  }
  return r;
}

template <bool kBF16>
__device__ __forceinline__ void Multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1) {
  if constexpr (kBF16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

__device__ __forceinline__ uint32_t Transpose(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(y) : "r"(x));
  return y;
}

__device__ __forceinline__ uint32_t Word(const uint4& v, int w) {
  return w == 0 ? v.x : w == 1 ? v.y : w == 2 ? v.z : v.w;
}

// --- queries ---

// The group's queries as the other operand: of head 8 n + r, the pieces of lane t.
template <int kDim, int kHeadTiles>
struct QueryTile {
  static constexpr int kPieces = kHeadTiles * kDim / 32;  // of 16 bytes for each lane
  uint32_t b[kHeadTiles][kDim / 8];

  // `piece(head, element)` is eight elements from there on, as tensor cores take them; heads from
  // `group` on are zero.
  template <class ReadPiece>
  __device__ __forceinline__ void Load(int lane, int group, const ReadPiece& piece) {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      const int head = n * kTileHeads + (lane >> 2);
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) {
        const uint4 of = head < group ? piece(head, 32 * j + 8 * (lane & 3)) : uint4{0, 0, 0, 0};
#pragma unroll
        for (int w = 0; w < 4; ++w) b[n][4 * j + w] = Word(of, w);
      }
    }
  }
  // To memory with room for kPieces * 32 pieces, and back.
  __device__ __forceinline__ void Write(uint4* to, int lane) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const uint32_t* of = b[0] + 4 * i;
      to[i * 32 + lane] = {of[0], of[1], of[2], of[3]};
    }
  }
  __device__ __forceinline__ void Read(const uint4* from, int lane) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const uint4 piece = from[i * 32 + lane];
#pragma unroll
      for (int w = 0; w < 4; ++w) b[0][4 * i + w] = Word(piece, w);
    }
  }
};

// --- logits ---

template <class Row, int kDim>
struct KeyTile {
  // Bytes of centroids are loaded in pairs of pieces: half as many requests for the same lines.
  static constexpr bool kPairs = std::is_same_v<Row, RowI8> && kDim % 64 == 0;
  typename Piece<Row>::Raw raw[kDim / 16];

  // Where lane t's piece j of a row begins.
  static __device__ __forceinline__ constexpr int ElementOf(int j, int t) {
    return kPairs ? 64 * (j / 2) + 16 * t + 8 * (j % 2) : 32 * j + 8 * t;
  }

  // `low` and `high`: rows r and r + 8.
  __device__ __forceinline__ void Load(const uint8_t* low, const uint8_t* high, int lane) {
    const int t = lane & 3;
#pragma unroll
    for (int j = 0; j < kDim / 32; j += kPairs ? 2 : 1) {
      const int at = ElementOf(j, t) * Row::kBytes;
      if constexpr (kPairs) {
        const uint4 a = Load16(low + at);
        const uint4 b = Load16(high + at);
        raw[2 * j] = {a.x, a.y};
        raw[2 * j + 1] = {b.x, b.y};
        raw[2 * j + 2] = {a.z, a.w};
        raw[2 * j + 3] = {b.z, b.w};
      } else {
        raw[2 * j] = Piece<Row>::Load(low + at);
        raw[2 * j + 1] = Piece<Row>::Load(high + at);
      }
    }
  }

  template <int kHeadTiles>
  __device__ __forceinline__ void Score(const QueryTile<kDim, kHeadTiles>& q,
                                        float (&s)[kHeadTiles][4]) const {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      const uint4 low = Piece<Row>::Open(raw[2 * j]);
      const uint4 high = Piece<Row>::Open(raw[2 * j + 1]);
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
        Multiply<Row::kIsBF16>(s[n], low.x, high.x, low.y, high.y, q.b[n][4 * j],
                               q.b[n][4 * j + 1]);
        Multiply<Row::kIsBF16>(s[n], low.z, high.z, low.w, high.w, q.b[n][4 * j + 2],
                               q.b[n][4 * j + 3]);
      }
    }
  }
};

// --- outputs ---

// A lane holds kDim / 8 elements of a row, in runs of 8 (of 4 where kDim is no multiple of 64).
template <int kDim>
struct ValueShape {
  static constexpr int kRun = kDim % 64 == 0 ? 8 : 4;
  static constexpr int kRuns = kDim / (8 * kRun);
  static constexpr int kElements = kDim / 8;
  static __device__ __forceinline__ int Column(int r, int x) {
    return x / kRun * 8 * kRun + r * kRun + x % kRun;
  }
};

template <class Row, int kDim>
struct ValueTile {
  using Shape = ValueShape<kDim>;
  // Words of two 16-bit elements, or of four 8-bit ones.
  static constexpr int kWords = Shape::kElements * Row::kBytes / 4;
  uint32_t raw[4][kWords];  // rows 2 t, 2 t + 1, 2 t + 8, 2 t + 9

  __device__ __forceinline__ void Load(const uint8_t* const (&rows)[4], int lane) {
    const int r = lane >> 2;
    constexpr int kRunBytes = Shape::kRun * Row::kBytes;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int run = 0; run < Shape::kRuns; ++run) {
        const uint8_t* p = rows[i] + (run * 8 + r) * kRunBytes;
        uint32_t* to = raw[i] + run * (kRunBytes / 4);
        if constexpr (kRunBytes == 16) {
          const uint4 v = Load16(p);
          to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
        } else if constexpr (kRunBytes == 8) {
          const uint2 v = Load8(p);
          to[0] = v.x, to[1] = v.y;
        } else {
          to[0] = Load4(p);
        }
      }
    }
  }

  // Elements 2 w and 2 w + 1 of row i.
  __device__ __forceinline__ uint32_t Pair(int i, int w) const {
    if constexpr (Row::kBytes == 2) {
      return raw[i][w];
    } else {
      const uint2 wide = Widen<Row>(raw[i][w / 2]);
      return w % 2 == 0 ? wide.x : wide.y;
    }
  }
};

// Floats of a head's state as it is stored; a multiple of 16 bytes.
__host__ __device__ constexpr int StateSize(int dim) { return dim + 4; }
template <int kDim>
inline constexpr int kStateSize = StateSize(kDim);

// The softmax state of up to 8 kHeadTiles heads over the rows that a warp has seen. The maximum is
// only raised when a logit exceeds it by kSlack octaves: weights stay below 2^kSlack, and most
// tiles need no rescaling.
template <int kDim, int kHeadTiles>
struct SoftmaxTile {
  using Shape = ValueShape<kDim>;
  static constexpr int kHalf = Shape::kElements / 2;
  static constexpr float kSlack = 10;
  float o[kHeadTiles][kHalf][4];
  float max[kHeadTiles][2];  // of heads 2 t and 2 t + 1
  float sum[kHeadTiles][2];  // of this lane's rows

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      max[n][0] = max[n][1] = kNothing;
      sum[n][0] = sum[n][1] = 0;
#pragma unroll
      for (int e = 0; e < kHalf; ++e) o[n][e][0] = o[n][e][1] = o[n][e][2] = o[n][e][3] = 0;
    }
  }

  // s: logits in octaves, kNone where a row is to be left out. The values of row r are those of `v`
  // times `low`, of row r + 8 times `high`.
  template <class Row>
  __device__ __forceinline__ void Add(const float (&s)[kHeadTiles][4],
                                      const ValueTile<Row, kDim>& v, float low = 1,
                                      float high = 1) {
    uint32_t weights[kHeadTiles][2];
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      float m0 = fmaxf(s[n][0], s[n][2]);
      float m1 = fmaxf(s[n][1], s[n][3]);
      if (__any_sync(kAllLanes, m0 > max[n][0] + kSlack || m1 > max[n][1] + kSlack)) {
#pragma unroll
        for (int k = 4; k < 32; k <<= 1) {
          m0 = fmaxf(m0, __shfl_xor_sync(kAllLanes, m0, k));
          m1 = fmaxf(m1, __shfl_xor_sync(kAllLanes, m1, k));
        }
        m0 = fmaxf(m0, max[n][0]);
        m1 = fmaxf(m1, max[n][1]);
        const float f0 = Exp2(max[n][0] - m0);
        const float f1 = Exp2(max[n][1] - m1);
        max[n][0] = m0;
        max[n][1] = m1;
        sum[n][0] *= f0;
        sum[n][1] *= f1;
#pragma unroll
        for (int e = 0; e < kHalf; ++e) {
          o[n][e][0] *= f0;
          o[n][e][1] *= f1;
          o[n][e][2] *= f0;
          o[n][e][3] *= f1;
        }
      }
      const float p0 = Exp2(s[n][0] - max[n][0]);
      const float p1 = Exp2(s[n][1] - max[n][1]);
      const float p2 = Exp2(s[n][2] - max[n][0]);
      const float p3 = Exp2(s[n][3] - max[n][1]);
      sum[n][0] += p0 + p2;
      sum[n][1] += p1 + p3;
      weights[n][0] = Transpose(Pack<Row::kIsBF16>(p0 * low, p1 * low));
      weights[n][1] = Transpose(Pack<Row::kIsBF16>(p2 * high, p3 * high));
    }
#pragma unroll
    for (int e = 0; e < kHalf; ++e) {
      const uint32_t pick = e % 2 != 0 ? 0x7632 : 0x5410;
      const int w = e / 2;
      const int u = (e + kHalf) / 2;
      const uint32_t a0 = __byte_perm(v.Pair(0, w), v.Pair(1, w), pick);
      const uint32_t a1 = __byte_perm(v.Pair(0, u), v.Pair(1, u), pick);
      const uint32_t a2 = __byte_perm(v.Pair(2, w), v.Pair(3, w), pick);
      const uint32_t a3 = __byte_perm(v.Pair(2, u), v.Pair(3, u), pick);
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
        Multiply<Row::kIsBF16>(o[n][e], a0, a1, a2, a3, weights[n][0], weights[n][1]);
      }
    }
  }

  // Rows are done; what is added now is the tail, which the sums of rows leave out.
  __device__ __forceinline__ void EndRows(float (&max_rows)[kHeadTiles][2],
                                          float (&sum_rows)[kHeadTiles][2]) const {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        max_rows[n][h] = max[n][h];
        sum_rows[n][h] = sum[n][h];
      }
    }
  }

  // Writes the state of head g to to[g * kStateSize<kDim>]: sums of weighted values times `unit`;
  // maximum, sum of weights, the same without the tail, and the sum of what lanes hold in `own`.
  __device__ __forceinline__ void Store(const float (&max_rows)[kHeadTiles][2],
                                        const float (&sum_rows)[kHeadTiles][2],
                                        const float (&own)[kHeadTiles][2], float* to, int group,
                                        float unit, int lane) {
    const int r = lane >> 2;
    const int t = lane & 3;
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float all = sum[n][h];
        float rows = sum_rows[n][h] * Exp2(max_rows[n][h] - max[n][h]);
        float all_own = own[n][h];
#pragma unroll
        for (int k = 4; k < 32; k <<= 1) {
          all += __shfl_xor_sync(kAllLanes, all, k);
          rows += __shfl_xor_sync(kAllLanes, rows, k);
          all_own += __shfl_xor_sync(kAllLanes, all_own, k);
        }
        const int head = n * kTileHeads + 2 * t + h;
        if (head >= group) continue;
        float* of = to + head * kStateSize<kDim>;
        if (r == 0) {
          of[kDim] = max[n][h];
          of[kDim + 1] = all;
          of[kDim + 2] = rows;
          of[kDim + 3] = all_own;
        }
        const auto element = [&](int x) {
          return (x < kHalf ? o[n][x % kHalf][h] : o[n][x % kHalf][2 + h]) * unit;
        };
#pragma unroll
        for (int x = 0; x < Shape::kElements; x += 4) {
          *reinterpret_cast<float4*>(of + Shape::Column(r, x)) = {element(x), element(x + 1),
                                                                  element(x + 2), element(x + 3)};
        }
      }
    }
  }
};

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_TILE_CUH_
