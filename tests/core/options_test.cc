// Every field that is out of its range is refused with a sentence that names it, its value and the
// range; what is in range passes.
#include "tactic/options.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tactic/rows_view.h"
#include "tactic/shape.h"

namespace tactic {
namespace {

struct BadField {
  const char* field;
  const char* value;
  const char* range;
  std::function<void(Options&)> set;
};

TEST(Options, DefaultsAreValid) {
  for (Mode mode : {Mode::kDense, Mode::kPaper, Mode::kTactic}) {
    const Options options = Options::For(mode);
    EXPECT_EQ(options.mode, mode);
    EXPECT_TRUE(options.Validate().ok()) << options.Validate().message();
  }
}

TEST(Options, AFieldOutOfRangeIsNamedWithValueAndRange) {
  const std::vector<BadField> cases = {
      {"mode", "77", "dense, paper or tactic", [](Options& o) { o.mode = static_cast<Mode>(77); }},
      {"target", "0", "above 0 and at most 1", [](Options& o) { o.target = 0; }},
      {"target", "1.5", "above 0 and at most 1", [](Options& o) { o.target = 1.5; }},
      {"target", "nan", "above 0 and at most 1", [](Options& o) { o.target = std::nan(""); }},
      {"cluster_size", "1", "from 2 to 1024", [](Options& o) { o.cluster_size = 1; }},
      {"cluster_size", "1025", "from 2 to 1024", [](Options& o) { o.cluster_size = 1025; }},
      {"kmeans_iterations", "0", "from 1 to 1000", [](Options& o) { o.kmeans_iterations = 0; }},
      {"kmeans_iterations", "1001", "from 1 to 1000",
       [](Options& o) { o.kmeans_iterations = 1001; }},
      {"segment_size", "31", "from 32 to 65536", [](Options& o) { o.segment_size = 31; }},
      {"segment_size", "-1", "from 32 to 65536", [](Options& o) { o.segment_size = -1; }},
      {"segment_size", "65537", "from 32 to 65536", [](Options& o) { o.segment_size = 65537; }},
      {"update_interval", "0", "from 1 to 65536", [](Options& o) { o.update_interval = 0; }},
      {"update_interval", "65537", "from 1 to 65536",
       [](Options& o) { o.update_interval = 65537; }},
      {"sinks", "-1", "from 0 to 65536", [](Options& o) { o.sinks = -1; }},
      {"sinks", "65537", "from 0 to 65536", [](Options& o) { o.sinks = 65537; }},
      {"recent", "-2", "from 0 to 65536", [](Options& o) { o.recent = -2; }},
      {"recent", "65537", "from 0 to 65536", [](Options& o) { o.recent = 65537; }},
      {"head_share", "0", "above 0 and at most 0.5", [](Options& o) { o.head_share = 0; }},
      {"head_share", "0.6", "above 0 and at most 0.5", [](Options& o) { o.head_share = 0.6; }},
      {"head_share", "nan", "above 0 and at most 0.5",
       [](Options& o) { o.head_share = std::nan(""); }},
      {"near_window", "0", "above 0 and below far_window (0.6)",
       [](Options& o) { o.near_window = 0; }},
      {"near_window", "0.7", "above 0 and below far_window (0.6)",
       [](Options& o) { o.near_window = 0.7; }},
      {"near_window", "nan", "above 0 and below far_window (0.6)",
       [](Options& o) { o.near_window = std::nan(""); }},
      {"far_window", "1", "below 1", [](Options& o) { o.far_window = 1; }},
      {"far_window", "nan", "below 1", [](Options& o) { o.far_window = std::nan(""); }},
      {"window_share", "0", "above 0 and at most 0.1", [](Options& o) { o.window_share = 0; }},
      {"window_share", "0.2", "above 0 and at most 0.1", [](Options& o) { o.window_share = 0.2; }},
      {"window_share", "inf", "above 0 and at most 0.1",
       [](Options& o) { o.window_share = std::numeric_limits<double>::infinity(); }},
      {"index", "7", "clusters or pages", [](Options& o) { o.index = static_cast<IndexKind>(7); }},
      {"bits", "1", "from 2 to 4", [](Options& o) { o.bits = 1; }},
      {"bits", "5", "from 2 to 4", [](Options& o) { o.bits = 5; }},
      {"bits_error", "0", "above 0 and at most 100", [](Options& o) { o.bits_error = 0; }},
      {"bits_error", "nan", "above 0 and at most 100",
       [](Options& o) { o.bits_error = std::nan(""); }},
      {"skip_share", "-1", "from 0 to 1", [](Options& o) { o.skip_share = -1; }},
      {"skip_share", "nan", "from 0 to 1", [](Options& o) { o.skip_share = std::nan(""); }},
      {"skip_token", "2", "from 0 to 1", [](Options& o) { o.skip_token = 2; }},
      {"unread_margin", "0.5", "from 1 to 10", [](Options& o) { o.unread_margin = 0.5; }},
      {"skipped_margin", "11", "from 1 to 10", [](Options& o) { o.skipped_margin = 11; }},
      {"rounds", "-1", "from 0 to 16", [](Options& o) { o.rounds = -1; }},
      {"dense_share", "0", "above 0 and at most 1", [](Options& o) { o.dense_share = 0; }},
      {"dense_below", "-1", "from 0 to 2147483647", [](Options& o) { o.dense_below = -1; }},
  };
  for (const BadField& bad : cases) {
    Options options = Options::For(Mode::kPaper);
    options.cluster_size = 32;  // the least segment_size
    bad.set(options);
    const Status status = options.Validate();
    const std::string& text = status.message();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad.field << " " << bad.value;
    EXPECT_EQ(text.find(std::string(bad.field) + " is " + bad.value), 0u) << text;
    EXPECT_NE(text.find(bad.range), std::string::npos) << text;
  }
}

TEST(Options, EndsOfTheRangesAreValid) {
  const std::vector<std::function<void(Options&)>> ends = {
      [](Options& o) { o.target = 1; },
      [](Options& o) { o.target = 1e-300; },
      [](Options& o) { o.cluster_size = 2; },
      [](Options& o) { o.cluster_size = o.segment_size = 1024; },
      [](Options& o) { o.kmeans_iterations = 1; },
      [](Options& o) { o.kmeans_iterations = 1000; },
      [](Options& o) { o.segment_size = 0; },
      [](Options& o) { o.segment_size = o.cluster_size; },
      [](Options& o) { o.segment_size = 65536; },
      [](Options& o) { o.update_interval = 1; },
      [](Options& o) { o.sinks = o.recent = 0; },
      [](Options& o) { o.sinks = o.recent = 65536; },
      [](Options& o) { o.head_share = 0.5; },
      [](Options& o) { o.window_share = 0.1; },
      [](Options& o) { o.dense_below = std::numeric_limits<int>::max(); },
  };
  for (size_t i = 0; i < ends.size(); ++i) {
    Options options = Options::For(Mode::kPaper);
    ends[i](options);
    EXPECT_TRUE(options.Validate().ok()) << i << ": " << options.Validate().message();
  }
}

TEST(Options, ModesReadAsTheyPrint) {
  for (Mode mode : {Mode::kDense, Mode::kPaper, Mode::kTactic}) {
    Mode parsed{};
    EXPECT_TRUE(ParseMode(ModeName(mode), &parsed).ok());
    EXPECT_EQ(parsed, mode);
  }
  Mode untouched = Mode::kPaper;
  const Status status = ParseMode("Paper", &untouched);
  EXPECT_EQ(status.message(), "mode is \"Paper\"; expected dense, paper or tactic");
  EXPECT_EQ(untouched, Mode::kPaper);
}

TEST(LayerShape, ASizeOutOfRangeIsNamedWithValueAndRange) {
  const LayerShape good{8, 2, 64, 128};
  EXPECT_TRUE(good.Validate().ok());
  EXPECT_EQ(good.group(), 4);
  struct BadSize {
    LayerShape shape;
    const char* message;
  };
  const char* dim_rule = "; expected a multiple of 8 from 8 to 512";
  const std::vector<BadSize> cases = {
      {{8, 0, 64, 64}, "kv_heads is 0; expected at least 1"},
      {{0, 2, 64, 64}, "q_heads is 0; expected a multiple of kv_heads"},
      {{7, 2, 64, 64}, "q_heads is 7; expected a multiple of kv_heads"},
      {{66, 2, 64, 64}, "q_heads / kv_heads is 33; expected at most 32"},
      {{8, 2, 0, 64}, "head_dim is 0"},
      {{8, 2, 520, 64}, "head_dim is 520"},
      {{8, 2, 60, 64}, "head_dim is 60"},
      {{8, 2, 64, -8}, "value_dim is -8"},
  };
  for (const BadSize& bad : cases) {
    const Status status = bad.shape.Validate();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message().find(bad.message), 0u) << status.message();
    if (std::string(bad.message).find("dim") != std::string::npos) {
      EXPECT_NE(status.message().find(dim_rule), std::string::npos) << status.message();
    }
  }
}

TEST(RowBytes, CountsWholeBlocks) {
  EXPECT_EQ(RowBytes(ElementType::kF32, 8), 32u);
  EXPECT_EQ(RowBytes(ElementType::kF16, 8), 16u);
  EXPECT_EQ(RowBytes(ElementType::kBF16, 8), 16u);
  EXPECT_EQ(RowBytes(ElementType::kQ8_0, 64), 68u);
  EXPECT_EQ(RowBytes(ElementType::kQ4_0, 64), 36u);
  EXPECT_STREQ(ElementTypeName(ElementType::kQ4_0), "q4_0");
  EXPECT_STREQ(ElementTypeName(static_cast<ElementType>(99)), "unknown");
}

}  // namespace
}  // namespace tactic
