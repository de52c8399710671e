// Compiles cluster-inl.h for every instruction set and dispatches.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/cluster.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.
#include "src/cpu/cluster-inl.h"

#if HWY_ONCE
namespace tactic::cpu {

HWY_EXPORT(LoadRows);
HWY_EXPORT(AssignNearest);
HWY_EXPORT(ScoreCentroids);

void LoadRows(const HeadRows& rows, const uint32_t* cells, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(LoadRows)(rows, cells, n, out);
}

void AssignNearest(const float* x, size_t n, int dim, const float* centroids,
                   const float* half_norms, int padded, uint16_t* labels) {
  HWY_DYNAMIC_DISPATCH(AssignNearest)(x, n, dim, centroids, half_norms, padded, labels);
}

void ScoreCentroids(const QueryHeads& query, int dim, const uint16_t* centroids, int padded,
                    float* scores, size_t score_stride) {
  HWY_DYNAMIC_DISPATCH(ScoreCentroids)(query, dim, centroids, padded, scores, score_stride);
}

}  // namespace tactic::cpu
#endif  // HWY_ONCE
