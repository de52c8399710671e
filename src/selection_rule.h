// Numbers of mode tactic's stop rule, for all backends (docs/verified_selection.md).
#ifndef TACTIC_SRC_SELECTION_RULE_H_
#define TACTIC_SRC_SELECTION_RULE_H_

namespace tactic {

// What a single member of a cluster may have is bounded by three standard deviations of its
// members' logits times L, how far the longest residual exceeds the root mean square one. That
// holds for draws of a Gaussian. But a residual is long because it has a direction of its own, and
// a query may look for that: a cosine of up to 0.3 L between the two is reckoned with, kAligned
// sqrt(head_dim) L times the bound. (docs/verified_selection.md)
inline constexpr float kAligned = 0.1f;

// A selection that believes, after its last round, to hold less than the target by more than this
// is no selection.
inline constexpr float kLargestShortfall = 0.1f;

// Keys keep less than their codes promise, since they are chosen for a high estimate: of errors e
// the ones upwards. On average they keep exp(-e^2) (measured on a text of 16K tokens: 0.95, 0.81,
// 0.71, 0.61 for e about 0.25, 0.45, 0.55, 0.65 logits). The first choice expects exp(-kCaution
// e^2), which leaves one selection of ten to be extended; with a caution of 1 it is half of them.
inline constexpr float kCaution = 1.5f;
// On a GPU, where to extend a selection takes a launch that looks at every level once more, not
// some rows of bins that are at hand: more rows at first are faster than more selections to extend.
inline constexpr float kGpuCaution = 2;
// Nothing is taken to keep less.
inline constexpr float kLeastRatio = 0.2f;

// What a total in single precision cannot tell from nothing. As much counts as unread at least:
// where a few estimates are too high by dozens of logits, the rest vanishes beside them, and a
// selection that holds nothing would seem whole.
inline constexpr float kResolution = 0x1p-22f;

}  // namespace tactic

#endif  // TACTIC_SRC_SELECTION_RULE_H_
