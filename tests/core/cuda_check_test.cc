// What needs no GPU of the CUDA backend: which shapes and options it takes, and what it says of
// others and of machines without a device.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "src/cuda/check.h"
#include "src/cuda/crossover.h"
#include "tactic/cuda.h"

namespace tactic::cuda {
namespace {

LayerShape Shape(int q_heads, int kv_heads, int dim) { return {q_heads, kv_heads, dim, dim}; }

TEST(CudaCheck, TakesTheShapesThatModelsHave) {
  for (const int dim : {64, 96, 128, 256}) {
    for (const int group : {1, 2, 3, 4, 7, 8, 16}) {
      const Status status = CheckShape(Shape(2 * group, 2, dim));
      EXPECT_TRUE(status.ok()) << status.message();
    }
  }
}

TEST(CudaCheck, NamesWhatIsWrongWithAShape) {
  EXPECT_EQ(CheckShape(Shape(8, 2, 80)).message(),
            "head_dim is 80; on a GPU it is to be 64, 96, 128 or 256");
  EXPECT_EQ(CheckShape(Shape(17, 1, 64)).message(),
            "q_heads / kv_heads is 17; on a GPU it is to be at most 16");
  EXPECT_EQ(CheckShape(Shape(65, 65, 64)).message(),
            "kv_heads is 65; on a GPU it is to be at most 64");
  EXPECT_EQ(CheckShape({8, 2, 128, 64}).message(),
            "value_dim is 64; on a GPU it is to be equal to head_dim");
}

TEST(CudaCheck, TakesItsOwnDefaults) {
  for (const Mode mode : {Mode::kPaper, Mode::kTactic}) {
    const Options options = OptionsFor(mode);
    EXPECT_EQ(options.mode, mode);
    const Status status = CheckIndexOptions(options);
    EXPECT_TRUE(status.ok()) << status.message();
  }
  EXPECT_EQ(CodeBits(OptionsFor(Mode::kPaper)), 0);
  EXPECT_EQ(CodeBits(OptionsFor(Mode::kTactic)), 2);
}

TEST(CudaCheck, NamesWhatIsWrongWithOptions) {
  const auto message = [](auto change) {
    Options options = OptionsFor(Mode::kTactic);
    change(options);
    return CheckIndexOptions(options).message();
  };
  EXPECT_NE(message([](Options& o) { o.segment_size = 100; }).find("segment_size is 100"),
            std::string::npos);
  EXPECT_NE(message([](Options& o) { o.segment_size = 0; }).find("segment_size is 0"),
            std::string::npos);
  EXPECT_NE(message([](Options& o) { o.segment_size = 1536; }).find("segment_size is 1536"),
            std::string::npos);
  EXPECT_NE(message([](Options& o) { o.cluster_size = 64; }).find("cluster_size is 64"),
            std::string::npos);
  EXPECT_NE(message([](Options& o) { o.index = IndexKind::kPages; }).find("index is pages"),
            std::string::npos);
  EXPECT_NE(message([](Options& o) { o.target = 2; }).find("target"), std::string::npos);
}

// More sequences keep the device busy by themselves, so that selecting pays from fewer tokens on.
TEST(CudaCrossover, FallsWithTheBatch) {
  for (const Mode mode : {Mode::kPaper, Mode::kTactic}) {
    for (const int dim : {64, 128}) {
      int64_t last = 1 << 30;
      for (const int units : {1, 8, 24, 25, 64, 96, 97, 256, 100000}) {
        EXPECT_LE(DenseBelow(mode, dim, units, 0), last);
        last = DenseBelow(mode, dim, units, 0);
      }
      EXPECT_GT(last, 0);
    }
  }
  EXPECT_EQ(DenseBelow(Mode::kDense, 128, 8, 0), 0);
}

// A fast memory reads everything sooner; an H200, on which the lengths were measured, has 4.814
// TB/s.
TEST(CudaCrossover, ReadsEverythingLongerFromFastMemory) {
  for (const int units : {1, 8, 24, 64, 256}) {
    const int64_t measured = DenseBelow(Mode::kTactic, 128, units, 4.814e12);
    EXPECT_EQ(DenseBelow(Mode::kTactic, 128, units, 0), measured);  // not known
    EXPECT_EQ(DenseBelow(Mode::kTactic, 128, units, 4.814e12 / 2), measured / 2);
    EXPECT_LE(measured, DenseBelow(Mode::kTactic, 64, units, 4.814e12));
  }
}

// Where there is a device, tests/cuda look after it.
TEST(CudaCheck, SaysWhenThereIsNoDevice) {
  const Status available = Available();
  if (available.ok()) GTEST_SKIP() << "a device is there";
  EXPECT_EQ(available.code(), StatusCode::kUnsupported);
  EXPECT_FALSE(available.message().empty());
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<Index> index;
  const Options options = OptionsFor(Mode::kTactic);
  EXPECT_EQ(Decoder::Create(Shape(8, 2, 64), options, 1, 1000, &decoder).code(),
            StatusCode::kUnsupported);
  EXPECT_EQ(Index::Create(Shape(8, 2, 64), options, 1000, &index).code(), StatusCode::kUnsupported);
  EXPECT_EQ(decoder, nullptr);
  EXPECT_EQ(index, nullptr);
}

}  // namespace
}  // namespace tactic::cuda
