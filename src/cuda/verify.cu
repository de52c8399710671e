// Stage select (mode tactic): exact keys of the rows that the codes point at, and, where these fall
// short of what the codes promised, of more.
//
// Round 0 reads what the estimates ask for; in a later one there is something to read where exact
// masses were found to miss the target (heads.cuh). Rows are listed by segment, in an order that
// does not depend on timing.
#include "src/cuda/heads.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/score_rows.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {
namespace {

constexpr float kLargestHalf = 20 * kLog2e;  // of v / 2, in octaves

struct VerifyShared {
  int low[kMaxGroup];   // keys from here up are read after this round
  int high[kMaxGroup];  // and from here up before
  float half[kMaxGroup];
  int flags[2];
  int scratch[kBlockWarps];
  uint16_t starts[kMaxSlots + 1];
  uint16_t kept[kMaxSlots];
  int counts[kMaxSlots];  // of new rows, then where they go
  float by_warp[kBlockWarps][kMaxGroup];
};

// Which of a cluster's members are new: bit l of word w is of its member 32 w + l. `words` has room
// for those of cluster e of the list from place begin / 32 + e on. Returns how many; leaves the mass
// of what is not read. One warp.
__device__ int ChooseRows(const Step& step, const VerifyShared& shared, int begin, int end,
                          const uint16_t* levels, const uint8_t* scales, uint32_t* words,
                          float* unread) {
  const int lane = threadIdx.x & 31;
  int count = 0;
  const bool tail = step.tail != 0;
  constexpr int kHeldHeads = 4;  // whose sums stay in registers; more take another look
  float masses[kHeldHeads] = {};
  for (int first = begin; first < end; first += 32) {
    const int key = first + lane;
    bool fresh = false;
    bool before = false;
    if (key < end) {
      const uint16_t* of = levels + key * step.group;
      for (int g = 0; g < step.group; ++g) {
        const int level = of[g];
        fresh = fresh || level >= shared.low[g];
        before = before || level >= shared.high[g];
      }
      if (!fresh && tail) {
        const float scale = __uint_as_float(uint32_t{__ldg(scales + key)} << 20) * kByteFloatUnit;
#pragma unroll
        for (int g = 0; g < kHeldHeads; ++g) {
          if (g >= step.group) break;
          // Without v / 2, which corrects the mean of an exponential and not this sum.
          masses[g] +=
              Exp2(LogitOfLevel(of[g]) - fminf(shared.half[g] * scale * scale, kLargestHalf));
        }
      }
      fresh = fresh && !before;
    }
    const unsigned all = __ballot_sync(kAllLanes, fresh);
    if (lane == 0) words[(first - begin) / 32] = all;
    count += __popc(all);
  }
  if (!tail) return count;
#pragma unroll
  for (int g = 0; g < kHeldHeads; ++g) {
    if (g >= step.group) break;
    const float mass = WarpSum(masses[g]);
    if (lane == 0) unread[g] = mass;
  }
  for (int g = kHeldHeads; g < step.group; ++g) {
    float mass = 0;
    for (int key = begin + lane; key < end; key += 32) {
      const uint16_t* of = levels + key * step.group;
      bool read = false;
      for (int other = 0; other < step.group; ++other)
        read = read || of[other] >= shared.low[other];
      if (read) continue;
      const float scale = __uint_as_float(uint32_t{__ldg(scales + key)} << 20) * kByteFloatUnit;
      mass += Exp2(LogitOfLevel(of[g]) - fminf(shared.half[g] * scale * scale, kLargestHalf));
    }
    mass = WarpSum(mass);
    if (lane == 0) unread[g] = mass;
  }
  return count;
}

template <class Row, int kDim, int kHeadTiles>
__global__ void __launch_bounds__(kBlockThreads) VerifyKernel(const __grid_constant__ Step step) {
  // chosen: place among the members << 16 | offset in the segment; then words of ChooseRows.
  extern __shared__ uint32_t chosen[];
  __shared__ VerifyShared shared;
  uint32_t* words = chosen + step.segment_size;
  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int warp = thread >> 5;
  const Unit unit = MakeUnit(step, blockIdx.y);
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<Row::kIsBF16>(step, unit, q);
  WaitForPrevious();
  LetNextBegin();
  if (IsDense(step, unit) || __ldcg(step.reading + unit.number) == 0) return;
  const int64_t heads = int64_t{unit.number} * step.group;
  if (thread < step.group) {
    shared.low[thread] = __ldcg(&step.masses[heads + thread].low);
    shared.high[thread] = __ldcg(&step.masses[heads + thread].high);
    shared.half[thread] =
        CodeError(step.bits) * step.queries[heads + thread].norm / 2 * kLog2e;
  }
  float anchors[kHeadTiles][2];
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      anchors[n][h] =
          AnchorOf(step, unit, min(n * kTileHeads + 2 * (lane & 3) + h, step.group - 1));
    }
  }
  const DeviceIndex& index = *unit.index;
  for (int segment = blockIdx.x; segment < unit.segments; segment += gridDim.x) {
    const int64_t base = int64_t{unit.number} * step.segments + segment;
    const uint16_t* members = index.members + unit.Slot(segment, step.segment_size);
    const uint8_t* scales = index.key_scales + unit.Slot(segment, step.segment_size);
    const uint16_t* levels = step.levels + base * step.segment_size * step.group;
    const int first = segment * step.segment_size;
    const int64_t rows = base * step.segment_size;
    const int before = step.round > 0 ? __ldcg(step.counts + base) : 0;
    for (int i = thread; i <= step.slots; i += kBlockThreads)
      shared.starts[i] = __ldg(index.starts + unit.Slot(segment, step.slots + 1) + i);
    const bool keep = thread < step.slots && __ldcg(step.kept + base * step.slots + thread) != 0;
    int kept;
    const int at = BlockScan(keep ? 1 : 0, shared.scratch, &kept);
    if (keep) shared.kept[at] = static_cast<uint16_t>(thread);
    __syncthreads();
    for (int e = warp; e < kept; e += kBlockWarps) {
      const int cluster = shared.kept[e];
      const int begin = shared.starts[cluster];
      const int count = ChooseRows(step, shared, begin, shared.starts[cluster + 1], levels, scales,
                                   words + begin / 32 + e,
                                   step.unread + (base * step.slots + cluster) * step.group);
      if (lane == 0) shared.counts[e] = count;
    }
    __syncthreads();
    int fresh;
    const int place = BlockScan(thread < kept ? shared.counts[thread] : 0, shared.scratch, &fresh);
    if (thread < kept) shared.counts[thread] = place;
    __syncthreads();
    for (int e = warp; e < kept; e += kBlockWarps) {
      const int cluster = shared.kept[e];
      const int begin = shared.starts[cluster];
      int to = shared.counts[e];
      for (int key = begin; key < shared.starts[cluster + 1]; key += 32) {
        const uint32_t word = words[begin / 32 + e + (key - begin) / 32];
        if ((word >> lane & 1) != 0) {
          const int i = to + __popc(word & ((1u << lane) - 1));
          const uint32_t offset = __ldg(members + key + lane);
          chosen[i] = static_cast<uint32_t>(key + lane) << 16 | offset;
          step.rows[rows + before + i] = first + static_cast<int>(offset);
          step.tags[rows + before + i] = static_cast<uint16_t>(key + lane);
        }
        to += __popc(word);
      }
    }
    float mass[kHeadTiles][2] = {};
    // Rows that another head had read may lie in a head's new range.
    for (int i = thread / 4; i < before; i += kBlockThreads / 4) {
      const int key = step.tags[rows + i];
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int head = n * kTileHeads + 2 * (lane & 3) + h;
          if (head >= step.group) continue;
          const int level = levels[key * step.group + head];
          if (level < shared.low[head] || level >= shared.high[head]) continue;
          mass[n][h] += Exp2(step.logits[(rows + i) * step.group + head] - anchors[n][h]);
        }
      }
    }
    __syncthreads();
    ScoreRows<Row>(
        step, unit, q, fresh, step.logits + (rows + before) * step.group,
        [&](int i) { return first + static_cast<int>(chosen[i] & 0xffffu); },
        [&](int i, int n, int h, float logit) {
          const int head = n * kTileHeads + 2 * (lane & 3) + h;
          const int level = levels[static_cast<int>(chosen[i] >> 16) * step.group + head];
          if (level >= shared.low[head] && level < shared.high[head])
            mass[n][h] += Exp2(logit - anchors[n][h]);
        });
    SumHeads(mass, step.group, shared.by_warp, step.exact + base * step.group);
    if (thread == 0) step.counts[base] = before + fresh;
  }
  if (EndsLast(step, unit, shared.flags)) PlanUnit(step, unit, step.round + 1, shared.flags);
}

}  // namespace

Status LaunchVerify(const Step& step, Element type, int round, Stream stream) {
  Step of_round = step;
  of_round.round = round;
  const size_t words = step.segment_size + step.segment_size / 32 + step.slots + 1;
  const size_t shared = words * sizeof(uint32_t);
  return DispatchStep(of_round, type, [&]<class Row, int kDim, int kHeadTiles>() {
    return Launch(VerifyKernel<Row, kDim, kHeadTiles>, of_round, of_round.parts, shared, stream);
  });
}

}  // namespace tactic::cuda
