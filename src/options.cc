#include "tactic/options.h"

#include <cmath>
#include <iomanip>
#include <sstream>
#include <string>

#include "tactic/rows_view.h"
#include "tactic/shape.h"

namespace tactic {
namespace {

// "name is value; expected rule."
template <class T>
Status Bad(const char* name, const T& value, const char* rule) {
  std::ostringstream text;
  text << name << " is " << value << "; expected " << rule;
  return Status::InvalidArgument(text.str());
}

template <class T>
Status InRange(const char* name, T value, T low, T high) {
  if (value >= low && value <= high) return Status::Ok();
  std::ostringstream rule;
  rule << "a number from " << low << " to " << high;
  return Bad(name, value, rule.str().c_str());
}

}  // namespace

const char* ModeName(Mode mode) {
  switch (mode) {
    case Mode::kDense:
      return "dense";
    case Mode::kPaper:
      return "paper";
    case Mode::kTactic:
      return "tactic";
  }
  return "unknown";
}

Status ParseMode(std::string_view name, Mode* mode) {
  for (Mode m : {Mode::kDense, Mode::kPaper, Mode::kTactic}) {
    if (name == ModeName(m)) {
      *mode = m;
      return Status::Ok();
    }
  }
  return Bad("mode", std::quoted(std::string(name)), "dense, paper or tactic");
}

const char* IndexKindName(IndexKind kind) {
  return kind == IndexKind::kPages ? "pages" : "clusters";
}

Status ParseIndexKind(std::string_view name, IndexKind* kind) {
  for (IndexKind k : {IndexKind::kClusters, IndexKind::kPages}) {
    if (name == IndexKindName(k)) {
      *kind = k;
      return Status::Ok();
    }
  }
  return Bad("index", std::quoted(std::string(name)), "clusters or pages");
}

Options Options::For(Mode mode) {
  Options options;
  options.mode = mode;
  if (mode == Mode::kPaper) {
    options.cluster_size = 16;
    options.kmeans_iterations = 10;
    options.sinks = 16;
    options.recent = 128;
  }
  return options;
}

const char* ElementTypeName(ElementType type) {
  switch (type) {
    case ElementType::kF32:
      return "f32";
    case ElementType::kF16:
      return "f16";
    case ElementType::kBF16:
      return "bf16";
    case ElementType::kQ8_0:
      return "q8_0";
    case ElementType::kQ4_0:
      return "q4_0";
  }
  return "unknown";
}

Status Options::Validate() const {
  if (mode > Mode::kTactic) return Bad("mode", static_cast<int>(mode), "dense, paper or tactic");
  if (!(target > 0 && target <= 1))
    return Bad("target", target, "a share of attention mass above 0 and at most 1");
  TACTIC_RETURN_IF_ERROR(InRange("cluster_size", cluster_size, 2, 1024));
  TACTIC_RETURN_IF_ERROR(InRange("kmeans_iterations", kmeans_iterations, 1, 1000));
  if (segment_size != 0)
    TACTIC_RETURN_IF_ERROR(InRange("segment_size", segment_size, cluster_size, kLargestSegment));
  TACTIC_RETURN_IF_ERROR(InRange("update_interval", update_interval, 1, kLargestSegment));
  TACTIC_RETURN_IF_ERROR(InRange("sinks", sinks, 0, kLargestSegment));
  TACTIC_RETURN_IF_ERROR(InRange("recent", recent, 0, kLargestSegment));
  if (index > IndexKind::kPages) {
    return Bad("index", static_cast<int>(index), "clusters or pages");
  }
  if (bits != 0) TACTIC_RETURN_IF_ERROR(InRange("bits", bits, 2, 4));
  if (!(bits_error > 0 && bits_error <= 100))
    return Bad("bits_error", bits_error, "above 0 and at most 100 logits");
  TACTIC_RETURN_IF_ERROR(InRange("skip_share", skip_share, 0.0, 1.0));
  TACTIC_RETURN_IF_ERROR(InRange("skip_token", skip_token, 0.0, 1.0));
  TACTIC_RETURN_IF_ERROR(InRange("unread_margin", unread_margin, 1.0, 10.0));
  TACTIC_RETURN_IF_ERROR(InRange("skipped_margin", skipped_margin, 1.0, 10.0));
  TACTIC_RETURN_IF_ERROR(InRange("rounds", rounds, 0, 16));
  if (!(dense_share > 0 && dense_share <= 1))
    return Bad("dense_share", dense_share, "above 0 and at most 1");
  if (!(head_share > 0 && head_share <= 0.5))
    return Bad("head_share", head_share, "above 0 and at most 0.5");
  if (!(window_share > 0 && window_share <= 0.1))
    return Bad("window_share", window_share, "above 0 and at most 0.1");
  if (!(far_window > 0 && far_window < 1))
    return Bad("far_window", far_window, "above 0 and below 1");
  if (!(near_window > 0 && near_window < far_window)) {
    std::ostringstream rule;
    rule << "above 0 and below far_window (" << far_window << ")";
    return Bad("near_window", near_window, rule.str().c_str());
  }
  TACTIC_RETURN_IF_ERROR(InRange("dense_below", dense_below, 0, INT32_MAX));
  return Status::Ok();
}

Status LayerShape::Validate() const {
  if (kv_heads < 1) return Bad("kv_heads", kv_heads, "at least 1");
  if (q_heads < 1 || q_heads % kv_heads != 0)
    return Bad("q_heads", q_heads, "a multiple of kv_heads");
  if (group() > kMaxGroup) return Bad("q_heads / kv_heads", group(), "at most 32");
  for (auto [name, dim] : {std::pair{"head_dim", head_dim}, std::pair{"value_dim", value_dim}}) {
    if (dim < 8 || dim > kMaxDim || dim % 8 != 0)
      return Bad(name, dim, "a multiple of 8 from 8 to 512");
  }
  return Status::Ok();
}

}  // namespace tactic
