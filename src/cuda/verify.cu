// Stage select (mode tactic): exact keys of the rows that the codes point at, and, where these fall
// short of what the codes promised, of more.
//
// Round 0 reads what the estimates ask for. A later round knows the exact mass of what was read and
// lowers the thresholds of heads that miss the target; a unit none of whose heads does ends at once.
// Rows are listed by segment, in an order that does not depend on timing.
#include "src/cuda/heads.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/score_rows.cuh"
#include "src/cuda/step.cuh"

namespace tactic::cuda {
namespace {

struct VerifyShared {
  int low[kMaxGroup];   // keys from here up are read after this round
  int high[kMaxGroup];  // and from here up before
  float half_variances[kMaxGroup];
  int everything;
  int scratch[kBlockWarps];
  int kept[kMaxSlots];
  int counts[kMaxSlots];  // of new rows, then where they go
  float by_warp[kBlockWarps][kMaxGroup];
};

// Thresholds of head g for this round. One warp.
__device__ void FindThresholds(const Step& step, const Unit& unit, int g, VerifyShared& shared) {
  const int lane = threadIdx.x & 31;
  const int64_t head = int64_t{unit.number} * step.group + g;
  const int64_t heads = int64_t{step.batch} * step.kv_heads * step.group;
  LaneBins all;
  const HeadMass m = MassAfter(step, unit, g, step.round, &all);
  const int before =
      step.round > 0 ? __ldcg(step.thresholds + (step.round - 1) * heads + head) : kNoKey;
  const float unread = Cautious(step, m, m.estimated);
  int now = before;
  if (m.exact < step.target * (m.exact + unread)) {
    // Keys are selected for being estimated high, so they keep less than they promise.
    const float ratio =
        m.estimated > 0 ? fminf(fmaxf((m.exact - m.fixed) / m.estimated, 0.5f), 1.0f) : 1.0f;
    const float need = m.estimated + MassToAdd(step, m, unread, ratio);
    const int bin = FindBin(step.key_bins + head * kBins, need, all, lane);
    now = min(before, bin * kLevelsPerBin);
  }
  const int rows = WarpSum(
      now == kNoKey ? 0
                    : ReadLaneBins(step.key_bins + head * kBins, lane, now / kLevelsPerBin).rows);
  if (lane == 0) {
    shared.low[g] = now;
    shared.high[g] = before;
    shared.half_variances[g] = CodeError(step.bits) * step.queries[head].norm / 2 * kLog2e;
    if (static_cast<float>(rows + unit.forced) > step.dense_share * unit.tokens)
      atomicOr(&shared.everything, 1);
    if (blockIdx.x == 0) step.thresholds[step.round * heads + head] = now;
  }
}

// Whether a key with these levels is read when the heads' thresholds are `thresholds`.
__device__ __forceinline__ bool Chosen(const uint16_t* levels, const int* thresholds, int group) {
  bool chosen = false;
  for (int g = 0; g < group; ++g) chosen = chosen || levels[g] >= thresholds[g];
  return chosen;
}

template <class Row, int kDim, int kHeadTiles>
__global__ void __launch_bounds__(kBlockThreads) VerifyKernel(const __grid_constant__ Step step) {
  extern __shared__ uint32_t chosen[];  // place among the members << 16 | offset in the segment
  __shared__ VerifyShared shared;
  constexpr float kLargestHalf = 20 * kLog2e;
  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int warp = thread >> 5;
  const Unit unit = MakeUnit(step, blockIdx.y);
  if (thread == 0) shared.everything = 0;
  QueryTile<kDim, kHeadTiles> q;
  LoadQuery<Row::kIsBF16>(step, unit, q);
  __syncthreads();
  WaitForPrevious();
  LetNextBegin();
  if (IsDense(step, unit)) return;
  for (int g = warp; g < step.group; g += kBlockWarps) FindThresholds(step, unit, g, shared);
  __syncthreads();
  if (shared.everything != 0) {
    // Every block finds the same: whether the others have seen it yet does not matter.
    if (blockIdx.x == 0 && thread == 0) step.dense[unit.number] = 1;
    return;
  }
  bool any = false;
  for (int g = 0; g < step.group; ++g) any = any || shared.low[g] < shared.high[g];
  if (!any && step.round > 0) return;

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
  const int64_t rounds_before =
      int64_t{step.round} * step.batch * step.kv_heads * step.segments;
  for (int segment = blockIdx.x; segment < unit.segments; segment += gridDim.x) {
    const int64_t base = int64_t{unit.number} * step.segments + segment;
    const uint16_t* starts = index.starts + unit.Slot(segment, step.slots + 1);
    const uint16_t* members = index.members + unit.Slot(segment, step.segment_size);
    const uint8_t* scales = index.key_scales + unit.Slot(segment, step.segment_size);
    const uint16_t* levels = step.levels + base * step.segment_size * step.group;
    const int first = segment * step.segment_size;

    const bool keep = thread < step.slots && __ldcg(step.kept + base * step.slots + thread) != 0;
    int kept;
    const int at = BlockScan(keep ? 1 : 0, shared.scratch, &kept);
    if (keep) shared.kept[at] = thread;
    __syncthreads();
    // How many new rows each cluster has, and what of it is not read.
    for (int e = warp; e < kept; e += kBlockWarps) {
      const int cluster = shared.kept[e];
      const int begin = __ldg(starts + cluster);
      const int end = __ldg(starts + cluster + 1);
      int count = 0;
      for (int key = begin + lane; key - lane < end; key += 32) {
        bool fresh = false;
        if (key < end) {
          const uint16_t* of = levels + key * step.group;
          fresh = Chosen(of, shared.low, step.group) &&
                  (step.round == 0 || !Chosen(of, shared.high, step.group));
        }
        count += __popc(__ballot_sync(kAllLanes, fresh));
      }
      if (lane == 0) shared.counts[e] = count;
      if (step.tail == 0) continue;
      for (int g = 0; g < step.group; ++g) {
        float mass = 0;
        for (int key = begin + lane; key < end; key += 32) {
          const uint16_t* of = levels + key * step.group;
          if (Chosen(of, shared.low, step.group)) continue;
          const float scale =
              __uint_as_float(uint32_t{__ldg(scales + key)} << 20) * kByteFloatUnit;
          // Without v / 2, which corrects the mean of an exponential and not this sum.
          const float half = fminf(shared.half_variances[g] * scale * scale, kLargestHalf);
          mass += Exp2(LogitOfLevel(of[g]) - half);
        }
        mass = WarpSum(mass);
        if (lane == 0) step.unread[(base * step.slots + cluster) * step.group + g] = mass;
      }
    }
    __syncthreads();
    int fresh_rows;
    const int place = BlockScan(thread < kept ? shared.counts[thread] : 0, shared.scratch,
                                &fresh_rows);
    if (thread < kept) shared.counts[thread] = place;
    __syncthreads();
    const int before = step.round > 0 ? step.counts[base] : 0;
    const int64_t rows = base * step.segment_size;
    for (int e = warp; e < kept; e += kBlockWarps) {
      const int cluster = shared.kept[e];
      const int begin = __ldg(starts + cluster);
      const int end = __ldg(starts + cluster + 1);
      int to = shared.counts[e];
      for (int key = begin + lane; key - lane < end; key += 32) {
        bool fresh = false;
        if (key < end) {
          const uint16_t* of = levels + key * step.group;
          fresh = Chosen(of, shared.low, step.group) &&
                  (step.round == 0 || !Chosen(of, shared.high, step.group));
        }
        const unsigned all = __ballot_sync(kAllLanes, fresh);
        if (fresh) {
          const int i = to + __popc(all & ((1u << lane) - 1));
          const uint32_t offset = __ldg(members + key);
          chosen[i] = static_cast<uint32_t>(key) << 16 | offset;
          step.rows[rows + before + i] = first + static_cast<int>(offset);
          step.tags[rows + before + i] = static_cast<uint16_t>(key);
        }
        to += __popc(all);
      }
    }
    float mass[kHeadTiles][2] = {};
    // Rows that another head had read may lie in a head's new range.
    if (step.round > 0) {
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
    }
    __syncthreads();
    ScoreRows<Row>(
        step, unit, q, fresh_rows, step.logits + (rows + before) * step.group,
        [&](int i) { return first + static_cast<int>(chosen[i] & 0xffffu); },
        [&](int i, int n, int h, float logit) {
          const int head = n * kTileHeads + 2 * (lane & 3) + h;
          const int level = levels[static_cast<int>(chosen[i] >> 16) * step.group + head];
          if (level >= shared.low[head] && level < shared.high[head])
            mass[n][h] += Exp2(logit - anchors[n][h]);
        });
    SumHeads(mass, step.group, shared.by_warp,
             step.exact + (rounds_before + base) * step.group);
    if (thread == 0) step.counts[base] = before + fresh_rows;
  }
}

}  // namespace

Status LaunchVerify(const Step& step, Element type, int round, Stream stream) {
  Step of_round = step;
  of_round.round = round;
  const size_t shared = static_cast<size_t>(step.segment_size) * sizeof(uint32_t);
  return DispatchStep(of_round, type, [&]<class Row, int kDim, int kHeadTiles>() {
    return Launch(VerifyKernel<Row, kDim, kHeadTiles>, of_round, step.parts,
                  shared, stream);
  });
}

}  // namespace tactic::cuda
