// Half precision against its definition, for every bit pattern and every rounding boundary.
#include "src/half.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "gtest/gtest.h"

namespace tactic {
namespace {

// The value of finite half bits by the definition of the format.
double HalfValue(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

TEST(Half, EveryPatternReadsAsItsValueAndWritesBack) {
  for (uint32_t i = 0; i <= 0xFFFF; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const float value = HalfToFloat(bits);
    if ((bits & 0x7C00) == 0x7C00) {
      ASSERT_EQ(std::isnan(value), (bits & 0x3FF) != 0) << i;
      ASSERT_EQ(std::isinf(value), (bits & 0x3FF) == 0) << i;
    } else {
      ASSERT_EQ(value, HalfValue(bits)) << i;
    }
    ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0) << i;
    if (!std::isnan(value)) {
      ASSERT_EQ(FloatToHalf(value), bits) << i;
    }
  }
}

// Between two neighbours: below the middle goes down, above it up, the middle to the even one.
TEST(Half, RoundsToNearestTiesToEven) {
  for (uint16_t low = 0; low < 0x7BFF; ++low) {
    const auto high = static_cast<uint16_t>(low + 1);
    const auto middle = static_cast<float>((HalfValue(low) + HalfValue(high)) / 2);  // exact
    ASSERT_EQ(FloatToHalf(middle), low % 2 == 0 ? low : high) << low;
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 0.0f)), low) << low;
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 1e9f)), high) << low;
    ASSERT_EQ(FloatToHalf(-middle), (low % 2 == 0 ? low : high) | 0x8000) << low;
  }
}

TEST(Half, TooLargeBecomesInfiniteAndNanStaysNan) {
  EXPECT_EQ(FloatToHalf(65504.0f), 0x7BFF);
  EXPECT_EQ(FloatToHalf(std::nextafter(65520.0f, 0.0f)), 0x7BFF);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7C00);
  EXPECT_EQ(FloatToHalf(-std::numeric_limits<float>::infinity()), 0xFC00);
  EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Bf16, RoundsToNearestTiesToEven) {
  for (uint32_t low = 0; low < 0x7F7F; ++low) {
    const float a = Bf16ToFloat(static_cast<uint16_t>(low));
    const float b = Bf16ToFloat(static_cast<uint16_t>(low + 1));
    const auto middle = static_cast<float>((static_cast<double>(a) + b) / 2);
    ASSERT_EQ(FloatToBf16(a), low);
    ASSERT_EQ(FloatToBf16(middle), low % 2 == 0 ? low : low + 1) << low;
    ASSERT_EQ(FloatToBf16(std::nextafter(middle, 0.0f)), low) << low;
    ASSERT_EQ(FloatToBf16(std::nextafter(middle, std::numeric_limits<float>::max())), low + 1);
  }
  EXPECT_EQ(FloatToBf16(std::numeric_limits<float>::max()), 0x7F80);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::numeric_limits<float>::quiet_NaN()))));
}

}  // namespace
}  // namespace tactic
