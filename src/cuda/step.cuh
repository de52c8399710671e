// What the kernels of a step share: what a unit has to read, its spans, and the bins.
#ifndef TACTIC_SRC_CUDA_STEP_CUH_
#define TACTIC_SRC_CUDA_STEP_CUH_

#include "src/cuda/block.cuh"
#include "src/cuda/byte_float.cuh"
#include "src/cuda/step.h"
#include "src/cuda/tile.cuh"

namespace tactic::cuda {

inline constexpr float kLn2 = 0.693147181f;
// Half the variance of an error counts as no more (oracle_tactic.h).
inline constexpr float kLargestHalfNats = 20;
inline constexpr float kLargestHalf = kLargestHalfNats * kLog2e;

// Blocks of a kernel that are to fit on a multiprocessor, since most of the time they wait for
// memory: `wanted`, but for rows and groups that need all registers.
__host__ __device__ constexpr int BlocksFor(int head_dim, int head_tiles, int wanted) {
  return head_dim > 128 || head_tiles > 1 ? 1 : wanted;
}

// A kernel that was launched before the one in front of it ended waits here until what that one
// wrote is there. Every kernel of a step does so before it touches memory that a step writes.
__device__ __forceinline__ void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void LetNextBegin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Finds out what a unit is. That takes two trips to memory, one after the other: between them, and
// while the second is under way, there is other work for who has it.
class UnitFinder {
 public:
  // The first trip begins.
  __device__ __forceinline__ UnitFinder(const Step& step, int number)
      : number_(number), sequence_(number / step.kv_heads), head_(number % step.kv_heads) {
    tokens_ = __ldg(step.lengths + sequence_);
    if (step.indexes != nullptr) index_ = step.indexes[sequence_];
  }
  // The second one begins. Without it, all of the unit is to be read.
  __device__ __forceinline__ void Follow(const Step& step) {
    there_ = index_ != nullptr && tokens_ >= step.dense_below && step.mode != Mode::kDense;
    if (!there_) return;
    closed_ = index_->closed;
    pages_ = index_->pages;
    segments_ = index_->segments;
    bits_ = index_->bits;
    fits_ = index_->unfit[head_] == 0 && index_->segment_size == step.segment_size &&
            index_->slots == step.slots && index_->head_dim == step.head_dim;
    centroids_ = index_->centroids;
    facts_ = index_->facts;
    starts_ = index_->starts;
    members_ = index_->members;
    key_scales_ = index_->key_scales;
    codes_ = index_->codes;
    means_ = index_->means;
    mean_scales_ = index_->mean_scales;
    errors_ = index_->errors;
  }
  __device__ __forceinline__ Unit Find(const Step& step) const {
    Unit unit = {};
    unit.number = number_;
    unit.sequence = sequence_;
    unit.head = head_;
    unit.tokens = tokens_;
    unit.forced = tokens_;
    unit.rows = step.cache.Rows(sequence_, head_);
    if (!there_) return unit;
    const int usable = tokens_ - step.recent;
    unit.closed = max(0, min(closed_, usable / step.segment_size));
    if (unit.closed == closed_) {
      unit.pages = max(0, min(pages_, (usable - unit.closed * step.segment_size) / Options::kPage));
    }
    unit.segments = unit.closed + (unit.pages > 0 ? 1 : 0);
    unit.spans = (unit.segments + step.span_segments - 1) / step.span_segments;
    unit.coded_end = unit.closed * step.segment_size + unit.pages * Options::kPage;
    unit.forced = step.sinks + tokens_ - unit.coded_end;
    unit.readable = unit.coded_end > step.sinks && unit.forced <= step.forced_room && fits_ &&
                    (step.mode == Mode::kPaper || bits_ == step.bits);
    const int64_t segment = static_cast<int64_t>(head_) * segments_;
    const int64_t slot = segment * step.slots;
    const int64_t key = segment * step.segment_size;
    unit.centroids = centroids_ + slot * step.head_dim;
    unit.facts = facts_ + slot;
    unit.starts = starts_ + slot + segment;
    unit.members = members_ + key;
    if (bits_ == 0) return unit;
    unit.key_scales = key_scales_ + key;
    unit.codes = codes_ + key / kCodeBlock * CodeBlockBytes(step.head_dim, bits_);
    unit.means = means_ + (slot + segment) * step.head_dim;
    unit.mean_scales = mean_scales_ + slot + segment;
    unit.errors = errors_ + segment;
    return unit;
  }

 private:
  int number_;
  int sequence_;
  int head_;
  int tokens_;
  const DeviceIndex* index_ = nullptr;
  // Of the index.
  bool there_ = false;
  bool fits_ = false;
  int closed_ = 0, pages_ = 0, segments_ = 0, bits_ = 0;
  const int8_t* centroids_ = nullptr;
  const ClusterFacts* facts_ = nullptr;
  const uint16_t* starts_ = nullptr;
  const uint16_t* members_ = nullptr;
  const uint8_t* key_scales_ = nullptr;
  const uint8_t* codes_ = nullptr;
  const int8_t* means_ = nullptr;
  const uint16_t* mean_scales_ = nullptr;
  const float* errors_ = nullptr;
};

// What rank left: all threads of the block read the same.
__device__ __forceinline__ Unit ReadUnit(const Step& step, int number) {
  Unit unit = step.units[number];
  unit.number = number;  // so that nobody waits for it who looks for the unit's things
  return unit;
}
// The same to shared memory, where registers are scarce. All threads; needs a barrier after it.
__device__ __forceinline__ void ReadUnit(const Step& step, int number, Unit* to) {
  constexpr int kWords = sizeof(Unit) / sizeof(uint32_t);
  static_assert(sizeof(Unit) % sizeof(uint32_t) == 0 && kWords <= kBlockThreads);
  const auto* from = reinterpret_cast<const uint32_t*>(step.units + number);
  if (threadIdx.x < kWords)
    reinterpret_cast<uint32_t*>(to)[threadIdx.x] = __ldcg(from + threadIdx.x);
}

// What a group's heads have at `from`, one after the other, and 0 for heads that it does not have.
// Groups of a multiple of four in pieces of 16 bytes: lanes that read neighbours at a stride would
// ask for every piece four times.
template <class T, int kHeads>
__device__ __forceinline__ void LoadHeads(const T* from, int group, T (&to)[kHeads]) {
  static_assert(sizeof(T) == sizeof(uint32_t) && kHeads % 4 == 0);
  if (group % 4 == 0) {
#pragma unroll
    for (int g = 0; g < kHeads; g += 4) {
      uint4 four = {};
      if (g < group) four = __ldcg(reinterpret_cast<const uint4*>(from + g));
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint32_t word = Word(four, k);
        to[g + k] = *reinterpret_cast<const T*>(&word);
      }
    }
  } else {
#pragma unroll
    for (int g = 0; g < kHeads; ++g) to[g] = g < group ? __ldcg(from + g) : T{};
  }
}

// Whether the unit is read densely, by what the stages so far have decided.
__device__ __forceinline__ bool IsDense(const Step& step, const Unit& unit) {
  return __ldcg(step.dense + unit.number) != 0;
}

__device__ __forceinline__ float ReadElement(const void* p, Element type, int64_t i) {
  switch (type) {
    case Element::kF32:
      return static_cast<const float*>(p)[i];
    case Element::kF16:
      return __half2float(static_cast<const __half*>(p)[i]);
    default:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
  }
}
__device__ __forceinline__ void WriteElement(void* p, Element type, int64_t i, float x) {
  switch (type) {
    case Element::kF32:
      static_cast<float*>(p)[i] = x;
      break;
    case Element::kF16:
      static_cast<__half*>(p)[i] = __float2half(x);
      break;
    default:
      static_cast<__nv_bfloat16*>(p)[i] = __float2bfloat16(x);
  }
}

// Element x of the group's query head g.
__device__ __forceinline__ float QueryElement(const Step& step, const Unit& unit, int g, int x) {
  const int64_t head = static_cast<int64_t>(unit.number) * step.group + g;
  return ReadElement(step.q, step.q_type, head * step.head_dim + x);
}

// Two elements in 16 bits each, to two floats.
__device__ __forceinline__ float2 OpenPair(uint32_t pair, Element type) {
  if (type == Element::kF16) return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

// The queries of unit `number` for one warp, in the type that tensor cores multiply.
template <bool kBF16, int kDim, int kHeadTiles>
__device__ __forceinline__ void LoadQuery(const Step& step, int number,
                                          QueryTile<kDim, kHeadTiles>& q) {
  const int64_t first = int64_t{number} * step.group * kDim;
  q.Load(threadIdx.x & 31, step.group, [&](int head, int x) {
    const int64_t at = first + head * kDim + x;
    if (step.q_type == Element::kF32) {
      const auto* from = reinterpret_cast<const float4*>(static_cast<const float*>(step.q) + at);
      const float4 a = from[0];
      const float4 b = from[1];
      return uint4{Pack<kBF16>(a.x, a.y), Pack<kBF16>(a.z, a.w), Pack<kBF16>(b.x, b.y),
                   Pack<kBF16>(b.z, b.w)};
    }
    const uint4 piece = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(step.q) + at);
    if ((step.q_type == Element::kBF16) == kBF16) return piece;
    uint32_t words[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float2 pair = OpenPair(Word(piece, w), step.q_type);
      words[w] = Pack<kBF16>(pair.x, pair.y);
    }
    return uint4{words[0], words[1], words[2], words[3]};
  });
}

// The same for all warps, to shared memory as QueryTile::Read finds it. All threads; needs a
// barrier after it.
template <bool kBF16, int kDim, int kHeadTiles>
__device__ __forceinline__ void ShareQuery(const Step& step, const Unit& unit, uint4* to) {
  if (threadIdx.x >= 32) return;
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<kBF16>(step, unit.number, q);
  q.Write(to, static_cast<int>(threadIdx.x));
}

// Logits of rows r and r + 8 of a tile for the heads of a lane. of(i): where those of row r + 8 i
// are; null: there is no such row.
template <int kHeadTiles, class Of>
__device__ __forceinline__ void LoadLogits(int group, const Of& of, float (&s)[kHeadTiles][4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float* logits = of(i);
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int head = LaneHead(n, h);
        s[n][2 * i + h] = logits != nullptr && head < group ? __ldcg(logits + head) : kNone;
      }
    }
  }
}

template <class Row>
__device__ __forceinline__ const uint8_t* KeyRow(const Step& step, const Unit& unit, int position) {
  return static_cast<const uint8_t*>(step.cache.keys) +
         step.cache.Offset(unit.rows, position) * Row::kBytes;
}

// Not by tanhf and a division, whose branches cost every kernel registers where there is no cap.
// Off by 2^-20 of the cap at most.
__device__ __forceinline__ float Capped(float x, const Softcap& by) {
  return by.cap > 0 ? by.cap * (1 - __fdividef(2, 1 + Exp2(x * by.rate))) : x;
}

// CodeBook::error.
__device__ __forceinline__ float CodeError(int bits) {
  constexpr float kTwo = kCodeBooks[2].error;
  constexpr float kThree = kCodeBooks[3].error;
  constexpr float kFour = kCodeBooks[4].error;
  return bits == 2 ? kTwo : bits == 3 ? kThree : kFour;
}

// --- levels and bins; `x` is a logit relative to the anchor, in octaves ---

__device__ __forceinline__ int LevelOf(float x) {
  const float level = (x + kBelowAnchor) * kLevelsPerOctave;
  return static_cast<int>(fminf(fmaxf(level, 0.0f), static_cast<float>(kLastLevel)));
}
// The logit in the middle of what a level, or a bin of levels, stands for.
__device__ __forceinline__ float LogitOfLevel(int level) {
  return fmaf(static_cast<float>(level), 1.0f / kLevelsPerOctave,
              0.5f / kLevelsPerOctave - kBelowAnchor);
}
__device__ __forceinline__ float LogitOfBin(int bin) {
  return (static_cast<float>(bin) + 0.5f) / kBinsPerOctave - kBelowAnchor;
}
__device__ __forceinline__ int BinOf(float x) { return LevelOf(x) / kLevelsPerBin; }
__device__ __forceinline__ int MassBinOf(float x) {
  constexpr int kLevels = kLevelsPerOctave / kMassBinsPerOctave;
  return LevelOf(x) / kLevels;
}
// The upper end.
__device__ __forceinline__ float LogitAboveMassBin(int bin) {
  return static_cast<float>(bin + 1) / kMassBinsPerOctave - kBelowAnchor;
}

// The anchors, which rank leaves in device memory.
__device__ __forceinline__ float AnchorOf(const Step& step, const Unit& unit, int g) {
  return __uint_as_float(__ldcg(step.anchors + static_cast<int64_t>(unit.number) * step.group + g));
}

// Those of a lane's heads; some head's where there is none.
template <int kHeadTiles>
struct LaneAnchors {
  float of[kHeadTiles][2];

  __device__ __forceinline__ LaneAnchors(const Step& step, const Unit& unit) {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        of[n][h] = AnchorOf(step, unit, min(LaneHead(n, h), step.group - 1));
    }
  }
};

// --- spans ---

// Numbers of a span's first row, and of its first cluster, among those of all units: in 32 bits,
// which Decoder::Create sees to, since addresses that are put together in 64 bits are much of what
// there is to do for a tile.
__device__ __forceinline__ uint32_t FirstRow(const Step& step, int unit, int span) {
  return static_cast<uint32_t>(unit * step.spans + span) * static_cast<uint32_t>(step.span_keys);
}
__device__ __forceinline__ uint32_t FirstCluster(const Step& step, int unit, int span) {
  return static_cast<uint32_t>(unit * step.spans + span) * static_cast<uint32_t>(step.span_slots);
}
// What the group's heads have for a row or cluster.
template <class T>
__device__ __forceinline__ T* OfHeads(const Step& step, T* all, uint32_t number) {
  return all + static_cast<uint64_t>(number) * static_cast<uint32_t>(step.group);
}

// In which segment cluster `cluster` of a span or of a unit is; exact, since segments have at most
// kMaxSlots clusters and sequences fewer than 2^31 / kMaxSlots.
__device__ __forceinline__ int SegmentOf(const Step& step, int cluster) {
  return static_cast<int>(
      static_cast<uint64_t>(static_cast<uint32_t>(cluster)) * step.slots_inverse >> 31);
}

// Where the members of cluster `cluster` of a span are among the span's: [begin, end).
struct Members {
  int begin;
  int end;
};
__device__ __forceinline__ Members MembersOf(const Step& step, const Unit& unit, int span,
                                             int cluster) {
  const int segment = SegmentOf(step, cluster);
  const uint16_t* start =
      unit.starts + int64_t{span} * (step.span_slots + step.span_segments) + cluster + segment;
  const int before = segment * step.segment_size;
  return {before + __ldg(start), before + __ldg(start + 1)};
}
// The place in the span of its member `key`, which is of segment `segment`; `members`: the span's.
__device__ __forceinline__ int PlaceOf(const Step& step, const uint16_t* members, int segment,
                                       int key) {
  return segment * step.segment_size + __ldg(members + key);
}

__device__ __forceinline__ int RowTiles(int rows) { return (rows + kTileRows - 1) / kTileRows; }
// Segments of a span that there are.
__device__ __forceinline__ int SegmentsOfSpan(const Step& step, const Unit& unit, int span) {
  return min(step.span_segments, unit.segments - span * step.span_segments);
}
// Tiles of means of a span: of the `kept` clusters, and of the segments.
__device__ __forceinline__ int MeanTiles(const Step& step, const Unit& unit, int span, int kept) {
  return RowTiles(kept + SegmentsOfSpan(step, unit, span));
}

// --- the end of a stage ---

// Whether this block is the last of the unit's `blocks` to get here; then what all of them wrote
// before is there. All threads of the block; `flag` is shared memory.
__device__ __forceinline__ bool EndsLast(const Step& step, const Unit& unit, int blocks,
                                         int* flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    // Releases what the block wrote, which the barrier has put before it, and acquires what others
    // did.
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(__cvta_generic_to_global(step.finished + unit.number))
                 : "memory");
    *flag = before + 1 == static_cast<uint32_t>(blocks);
    if (*flag != 0) step.finished[unit.number] = 0;
  }
  __syncthreads();
  return *flag != 0;
}

// How many tiles attend has to do for the unit, once its rows are chosen. One warp.
__device__ __forceinline__ void CountTiles(const Step& step, const Unit& unit, bool dense) {
  const int lane = threadIdx.x & 31;
  const bool tail = step.mode == Mode::kTactic && step.tail != 0 && !dense;
  int rows = 0;
  int means = 0;
#pragma unroll 8
  for (int j = lane; j < unit.spans; j += 32) {
    const int64_t span = int64_t{unit.number} * step.spans + j;
    rows += __ldcg(step.counts + span);
    if (tail) means += MeanTiles(step, unit, j, __ldcg(step.kept_counts + span));
  }
  rows = unit.forced + WarpSum(rows);
  means = WarpSum(means);
  if (lane == 0) {
    step.tiles[unit.number] = dense ? RowTiles(unit.tokens) : RowTiles(rows) + means;
    if (dense) step.dense[unit.number] = 1;
  }
}

}  // namespace tactic::cuda

#endif  // TACTIC_SRC_CUDA_STEP_CUH_
