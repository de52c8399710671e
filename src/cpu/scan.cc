// Compiles bins-, estimate-, filter-, scan- and select-inl.h for every instruction set and
// dispatches.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/scan.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.
#include "src/cpu/bins-inl.h"
#include "src/cpu/estimate-inl.h"
#include "src/cpu/filter-inl.h"
#include "src/cpu/scan-inl.h"
#include "src/cpu/select-inl.h"

#if HWY_ONCE
namespace tactic::cpu {

HWY_EXPORT(ScoreByteCentroids);
HWY_EXPORT(EstimateClusters);
HWY_EXPORT(SumUpTo);
HWY_EXPORT(LargestMass);
HWY_EXPORT(KeepClusters);
HWY_EXPORT(SumMasses);
HWY_EXPORT(SpreadScores);
HWY_EXPORT(ScanCodes);
HWY_EXPORT(AddToBins);
HWY_EXPORT(SelectKeys);
HWY_EXPORT(SumRange);
HWY_EXPORT(UnreadMasses);
HWY_EXPORT(AddMeans);

void ScoreByteCentroids(const CentroidQuery* queries, int heads, int dim, const int8_t* centroids,
                        const uint16_t* centroid_scales, int padded, float* scores,
                        size_t score_stride) {
  HWY_DYNAMIC_DISPATCH(ScoreByteCentroids)
  (queries, heads, dim, centroids, centroid_scales, padded, scores, score_stride);
}

void EstimateClusters(const ClusterFacts& facts, const float* scores, const float* run_energy,
                      int head_dim, float softcap, float* masses, float* floors, float* tokens) {
  HWY_DYNAMIC_DISPATCH(EstimateClusters)
  (facts, scores, run_energy, head_dim, softcap, masses, floors, tokens);
}

float SumUpTo(const float* x, size_t n, float limit) {
  return HWY_DYNAMIC_DISPATCH(SumUpTo)(x, n, limit);
}

bool LargestMass(const float* masses, size_t n, float* most) {
  return HWY_DYNAMIC_DISPATCH(LargestMass)(masses, n, most);
}

void KeepClusters(const float* masses, const float* tokens, size_t n, float mass, float token,
                  uint8_t* kept) {
  HWY_DYNAMIC_DISPATCH(KeepClusters)(masses, tokens, n, mass, token, kept);
}

MassSums SumMasses(const float* masses, const uint8_t* kept, size_t n) {
  return HWY_DYNAMIC_DISPATCH(SumMasses)(masses, kept, n);
}

void SpreadScores(const uint32_t* starts, const uint8_t* kept, int clusters, const float* scores,
                  float* by_key) {
  HWY_DYNAMIC_DISPATCH(SpreadScores)(starts, kept, clusters, scores, by_key);
}

void ScanCodes(const CodedKeys& codes, const CodeQuery* queries, int heads, float softcap,
               const uint32_t* blocks, size_t n, uint32_t first, const float* scores,
               size_t score_stride, KeyLevel* keys, size_t key_stride, float* sums,
               MassBins* bins) {
  HWY_DYNAMIC_DISPATCH(ScanCodes)
  (codes, queries, heads, softcap, blocks, n, first, scores, score_stride, keys, key_stride, sums,
   bins);
}

void AddToBins(const KeyLevel* keys, const uint32_t* blocks, size_t n, uint32_t floor,
               MassBins* bins) {
  HWY_DYNAMIC_DISPATCH(AddToBins)(keys, blocks, n, floor, bins);
}

size_t SelectKeys(const KeyLevel* keys, size_t key_stride, int heads, const KeyRange* ranges,
                  const uint32_t* blocks, size_t n, uint64_t* read, uint32_t* numbers,
                  KeyLevel* levels, size_t level_stride) {
  return HWY_DYNAMIC_DISPATCH(SelectKeys)(keys, key_stride, heads, ranges, blocks, n, read, numbers,
                                          levels, level_stride);
}

size_t SumRange(const KeyLevel* keys, const float* logits, size_t n, KeyRange range,
                float reference, double* exact, double* estimated) {
  return HWY_DYNAMIC_DISPATCH(SumRange)(keys, logits, n, range, reference, exact, estimated);
}

void UnreadMasses(const UnreadKeys& unread, int heads, const float* half_variances, float* masses,
                  size_t mass_stride) {
  HWY_DYNAMIC_DISPATCH(UnreadMasses)(unread, heads, half_variances, masses, mass_stride);
}

void AddMeans(const float* weights, size_t weight_stride, int heads, const int8_t* means,
              const uint16_t* mean_scales, size_t n, int dim, float* states, size_t state_stride) {
  HWY_DYNAMIC_DISPATCH(AddMeans)
  (weights, weight_stride, heads, means, mean_scales, n, dim, states, state_stride);
}

}  // namespace tactic::cpu
#endif  // HWY_ONCE
