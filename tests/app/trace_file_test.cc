// Trace files: what is written is read back, completely or not at all.
#include "trace_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "small_trace.h"
#include "subprocess.h"
#include "trace_writer.h"

namespace tactic::app {
namespace {

using nlohmann::json;

void ExpectSameRows(const RowsView& got, const RowsView& expected, int heads, int dim,
                    int64_t tokens) {
  ASSERT_EQ(got.type, expected.type);
  const size_t bytes = RowBytes(got.type, static_cast<size_t>(dim));
  EXPECT_EQ(got.row_stride, bytes);
  for (int head = 0; head < heads; ++head) {
    for (int64_t i = 0; i < tokens; ++i) {
      const auto row = [&](const RowsView& view) {
        return view.Head(head) + static_cast<size_t>(i) * view.row_stride;
      };
      ASSERT_EQ(std::memcmp(row(got), row(expected), bytes), 0) << "head " << head << " row " << i;
    }
  }
}

TEST(TraceFile, IsReadAsItWasWritten) {
  const TemporaryFolder folder;
  const SmallTrace written;
  const Status status = written.Write(folder.path("a"));
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(folder.Files().size(), 1U);
  std::unique_ptr<TraceFile> read;
  const Status opened = TraceFile::Open(folder.path("a"), &read);
  ASSERT_TRUE(opened.ok()) << opened.message();

  const TraceInfo &a = read->info(), &b = written.info;
  EXPECT_EQ(read->path(), folder.path("a"));
  EXPECT_EQ(a.model, b.model);
  EXPECT_EQ(a.lora, b.lora);
  EXPECT_EQ(a.text, b.text);
  EXPECT_EQ(a.llama_build, b.llama_build);
  EXPECT_EQ(a.skip, b.skip);
  EXPECT_EQ(a.depth, b.depth);
  EXPECT_EQ(a.steps, b.steps);
  EXPECT_EQ(a.generated, b.generated);
  EXPECT_EQ(a.rope_freq_base, b.rope_freq_base);
  EXPECT_EQ(a.sliding_layers, b.sliding_layers);
  ASSERT_EQ(a.layers.size(), b.layers.size());
  EXPECT_TRUE(std::equal(read->token_ids().begin(), read->token_ids().end(), written.tokens.begin(),
                         written.tokens.end()));
  for (size_t i = 0; i < a.layers.size(); ++i) {
    const LayerShape& shape = b.layers[i].shape;
    EXPECT_EQ(a.layers[i].layer, b.layers[i].layer);
    EXPECT_EQ(a.layers[i].shape, shape);
    EXPECT_EQ(a.layers[i].scale, b.layers[i].scale);
    EXPECT_EQ(a.layers[i].softcap, b.layers[i].softcap);
    ExpectSameRows(read->Keys(i), written.keys[i].rows, shape.kv_heads, shape.head_dim, b.tokens());
    ExpectSameRows(read->Values(i), written.values[i].rows, shape.kv_heads, shape.value_dim,
                   b.tokens());
    for (int step = 0; step < b.steps; ++step) {
      for (int head = 0; head < shape.q_heads; ++head) {
        const float* expected =
            written.queries[i].data() + (step * shape.q_heads + head) * shape.head_dim;
        EXPECT_TRUE(std::equal(expected, expected + shape.head_dim, read->Query(i, step, head)));
      }
    }
  }
}

// The format as its specification has it, taken apart by hand.
TEST(TraceFile, IsASafetensorsFile) {
  const TemporaryFolder folder;
  const SmallTrace written;
  ASSERT_TRUE(written.Write(folder.path("a")).ok());
  const std::string bytes = ReadFile(folder.path("a"));
  uint64_t length = 0;
  for (int i = 0; i < 8; ++i) length |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  ASSERT_LT(length, bytes.size());
  EXPECT_EQ(bytes[8], '{');
  EXPECT_EQ((8 + length) % 64, 0U);
  const json header = json::parse(bytes.substr(8, length));
  for (const auto& [name, value] : header["__metadata__"].items()) {
    EXPECT_TRUE(value.is_string()) << name;
  }
  EXPECT_EQ(header["__metadata__"]["format"], "tactic-trace-1");
  EXPECT_EQ(header["__metadata__"]["depth"], "40");
  EXPECT_EQ(header["__metadata__"]["layers"], "[3,7]");
  EXPECT_EQ(header["__metadata__"]["q_heads"], "[4,2]");
  EXPECT_EQ(header["__metadata__"]["value_dim"], "8") << "the same in all layers";
  EXPECT_EQ(header["k.3"]["dtype"], "F16");
  EXPECT_EQ(header["k.3"]["shape"], json({2, 43, 16}));
  EXPECT_EQ(header["k.7"]["dtype"], "BF16");
  EXPECT_EQ(header["v.7"]["dtype"], "F32");
  EXPECT_EQ(header["v.7"]["shape"], json({1, 43, 8}));
  EXPECT_EQ(header["q.7"]["dtype"], "F32");
  EXPECT_EQ(header["q.7"]["shape"], json({3, 2, 24}));
  EXPECT_EQ(header["tokens"]["dtype"], "I32");
  EXPECT_EQ(header["tokens"]["shape"], json({44}));
  EXPECT_EQ(header["tokens"]["data_offsets"][1], bytes.size() - 8 - length);
  EXPECT_EQ(header.size(), 8U);
  EXPECT_EQ(bytes.find(std::string(kGapBytes, kUnused)), std::string::npos)
      << "bytes between the rows of the cache got into the file";
  float first = 0;
  const size_t at = 8 + length + header["q.7"]["data_offsets"][0].get<size_t>();
  std::memcpy(&first, bytes.data() + at, sizeof(first));
  EXPECT_EQ(first, written.queries[1][0]);
}

TEST(TraceFile, RefusesShortFiles) {
  const TemporaryFolder folder;
  ASSERT_TRUE(SmallTrace().Write(folder.path("a")).ok());
  const std::string bytes = ReadFile(folder.path("a"));
  const std::string path = folder.path("short");
  std::unique_ptr<TraceFile> trace;
  for (const size_t size : {0, 7, 8, 100}) {
    std::ofstream(path, std::ios::binary) << bytes.substr(0, size);
    const Status status = TraceFile::Open(path, &trace);
    EXPECT_EQ(status.code(), StatusCode::kUnsupported) << size;
    EXPECT_NE(status.message().find("header"), std::string::npos) << status.message();
  }
}

TEST(TraceFile, NamesWhatCannotBeRead) {
  std::unique_ptr<TraceFile> trace;
  const Status missing = TraceFile::Open("/nowhere/a", &trace);
  EXPECT_EQ(missing.code(), StatusCode::kNotFound);
  EXPECT_NE(missing.message().find("'/nowhere/a' cannot be read: No such file"), std::string::npos)
      << missing.message();
  EXPECT_NE(TraceFile::Open("/tmp", &trace).message().find("Is a directory"), std::string::npos);
  EXPECT_EQ(TraceFile::Open("/dev/null", &trace).code(), StatusCode::kNotFound);
}

TEST(TraceWriter, LeavesNothingUnlessFinished) {
  const TemporaryFolder folder;
  const SmallTrace trace;
  {
    std::unique_ptr<TraceWriter> writer;
    ASSERT_TRUE(TraceWriter::Open(folder.path("a"), trace.info, &writer).ok());
    ASSERT_TRUE(
        writer->WriteLayer(trace.keys[0].rows, trace.values[0].rows, trace.queries[0]).ok());
    EXPECT_FALSE(writer->Finish(trace.tokens).ok()) << "a layer is missing";
    EXPECT_FALSE(
        writer->WriteLayer(trace.keys[0].rows, trace.values[0].rows, trace.queries[0]).ok())
        << "not the layer that comes next";
  }
  EXPECT_TRUE(folder.Files().empty());
}

TEST(TraceWriter, NamesAPathThatCannotBeWritten) {
  std::unique_ptr<TraceWriter> writer;
  const Status status = TraceWriter::Open("/nowhere/a", SmallInfo(), &writer);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("'/nowhere/a': No such file"), std::string::npos)
      << status.message();
}

// A limit on the size of files stands for a disk that is full.
TEST(TraceWriter, FullDiskIsAnErrorThatLeavesNothing) {
  const TemporaryFolder folder;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small = {4096, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status status = SmallTrace().Write(folder.path("a"));
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_NE(status.message().find("writing '" + folder.path("a") + "' failed: File too large"),
            std::string::npos)
      << status.message();
  EXPECT_TRUE(folder.Files().empty());
}

}  // namespace
}  // namespace tactic::app
