// Compiles scan-inl.h for every instruction set and dispatches.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/scan.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.
#include "src/cpu/estimate-inl.h"
#include "src/cpu/scan-inl.h"

#if HWY_ONCE
namespace tactic::cpu {

HWY_EXPORT(ScoreByteCentroids);
HWY_EXPORT(EstimateClusters);
HWY_EXPORT(SumUpTo);
HWY_EXPORT(ScanCodes);
HWY_EXPORT(AddToBins);
HWY_EXPORT(SelectKeys);
HWY_EXPORT(SumRange);
HWY_EXPORT(UnreadWeights);
HWY_EXPORT(AddMeans);

void ScoreByteCentroids(const QueryHeads& query, int dim, const int8_t* centroids,
                        const uint16_t* centroid_scales, int padded, float* scores,
                        size_t score_stride) {
  HWY_DYNAMIC_DISPATCH(ScoreByteCentroids)
  (query, dim, centroids, centroid_scales, padded, scores, score_stride);
}

void EstimateClusters(const ClusterFacts& facts, const float* scores, const float* run_energy,
                      float softcap, float* masses, float* floors, float* tokens) {
  HWY_DYNAMIC_DISPATCH(EstimateClusters)
  (facts, scores, run_energy, softcap, masses, floors, tokens);
}

float SumUpTo(const float* x, size_t n, float limit) {
  return HWY_DYNAMIC_DISPATCH(SumUpTo)(x, n, limit);
}

void ScanCodes(const CodedKeys& codes, const CodeQuery* queries, int heads, float softcap,
               const uint16_t* blocks, size_t num_blocks, float* keys, size_t key_stride,
               float* sums) {
  HWY_DYNAMIC_DISPATCH(ScanCodes)
  (codes, queries, heads, softcap, blocks, num_blocks, keys, key_stride, sums);
}

void AddToBins(const float* keys, size_t n, float low, MassBins* bins) {
  HWY_DYNAMIC_DISPATCH(AddToBins)(keys, n, low, bins);
}

size_t SelectKeys(const float* keys, size_t key_stride, int heads, const float* low,
                  const float* high, size_t n, uint64_t* read, uint32_t* out) {
  return HWY_DYNAMIC_DISPATCH(SelectKeys)(keys, key_stride, heads, low, high, n, read, out);
}

size_t SumRange(const float* keys, const uint32_t* numbers, const float* logits, size_t n,
                float low, float high, float reference, double* exact, double* estimated) {
  return HWY_DYNAMIC_DISPATCH(SumRange)(keys, numbers, logits, n, low, high, reference, exact,
                                        estimated);
}

void UnreadWeights(const float* keys, const uint8_t* scales, size_t n, float half_variance,
                   const uint64_t* read, float* weights) {
  HWY_DYNAMIC_DISPATCH(UnreadWeights)(keys, scales, n, half_variance, read, weights);
}

void AddMeans(const float* weights, const int8_t* means, const uint16_t* mean_scales, size_t n,
              int dim, float* state) {
  HWY_DYNAMIC_DISPATCH(AddMeans)(weights, means, mean_scales, n, dim, state);
}

}  // namespace tactic::cpu
#endif  // HWY_ONCE
