// Damaged trace files: each is refused, and the error names the file and the fault.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <ostream>

#include "small_trace.h"
#include "subprocess.h"
#include "trace_file.h"

namespace tactic::app {
namespace {

using nlohmann::json;

// A valid file whose parts a test changes.
struct Parts {
  json header;
  std::string data;
  std::string padding = " ";  // made up to the alignment

  std::string Bytes() const {
    std::string text = header.is_string() ? header.get<std::string>() : header.dump();
    text.append((64 - (8 + text.size()) % 64) % 64, ' ');
    text += padding.substr(1);
    const uint64_t length = text.size();
    std::string bytes(sizeof(length), '\0');
    std::memcpy(bytes.data(), &length, sizeof(length));
    return bytes + text + data;
  }
};

struct Fault {
  const char* name;
  const char* message;  // what the error has to say
  std::function<void(Parts*)> damage;

  friend void PrintTo(const Fault& fault, std::ostream* out) { *out << fault.name; }
};

std::function<void(Parts*)> Metadata(const char* field, const char* value) {
  return [=](Parts* parts) { parts->header["__metadata__"][field] = value; };
}

const std::vector<Fault>& Faults() {
  static const std::vector<Fault> faults = {
      {"NoJson", "header is not a JSON object", [](Parts* p) { p->header = "\"{\""; }},
      {"JsonArray", "header is not a JSON object", [](Parts* p) { p->header = json::array(); }},
      {"MetadataIsAList", "metadata is not a JSON object",
       [](Parts* p) { p->header["__metadata__"] = json::array(); }},
      {"MetadataIsANumber", "metadata 'depth' is 40, expected a string",
       [](Parts* p) { p->header["__metadata__"]["depth"] = 40; }},
      {"NoMetadata", "metadata lacks 'format'", [](Parts* p) { p->header.erase("__metadata__"); }},
      {"FieldMissing", "metadata lacks 'skip'",
       [](Parts* p) { p->header["__metadata__"].erase("skip"); }},
      {"OtherFormat", "'format' is 'tactic-trace-9', expected tactic-trace-1",
       Metadata("format", "tactic-trace-9")},
      {"DepthIsNoNumber", "'depth' is '4k', expected a number from 1", Metadata("depth", "4k")},
      {"DepthIsZero", "'depth' is '0'", Metadata("depth", "0")},
      {"DepthIsHuge", "'depth' is '18446744073709551615'",
       Metadata("depth", "18446744073709551615")},
      {"DepthIsAFraction", "'depth' is '40.5'", Metadata("depth", "40.5")},
      {"StepsAreNegative", "'steps' is '-3'", Metadata("steps", "-3")},
      {"LayersAreNoList", "'layers' is '3', expected a list", Metadata("layers", "3")},
      {"LayersAreEmpty", "'layers' is '[]', expected at least one", Metadata("layers", "[]")},
      {"LayersDescend", "'layers' is '[7,3]', expected a list of ascending layers",
       Metadata("layers", "[7,3]")},
      {"LayerIsNegative", "'layers' is '[-1,3]'", Metadata("layers", "[-1,3]")},
      {"LayerWithoutTensors", "no tensor 'k.8'",
       [](Parts* p) {
         json& metadata = p->header["__metadata__"];
         metadata["layers"] = "[3,7,8]";
         metadata["q_heads"] = "[4,2,2]";
         metadata["kv_heads"] = "[2,1,1]";
         metadata["head_dim"] = "[16,24,8]";
         metadata["scale"] = metadata["softcap"] = "1";
       }},
      {"HeadsDoNotDivide", "layer 3: q_heads",
       [](Parts* p) { p->header["__metadata__"]["q_heads"] = "[3,2]"; }},
      {"HeadDimIsOdd", "layer 7: head_dim", Metadata("head_dim", "[16,23]")},
      {"HeadsOfOneLayer", "'kv_heads' is '[2]', expected a number", Metadata("kv_heads", "[2]")},
      {"ScaleIsNegative", "'scale' is '-1'", Metadata("scale", "-1")},
      {"ScaleIsInfinite", "'scale' is '1e999'", Metadata("scale", "1e999")},
      {"SoftcapIsText", "'softcap' is '\"a\"'", Metadata("softcap", "\"a\"")},
      {"TensorMissing", "start",  // the hole that it leaves is noticed first
       [](Parts* p) { p->header.erase("v.3"); }},
      {"TokensMissing", "bytes behind the last tensor",
       [](Parts* p) { p->header.erase("tokens"); }},
      {"TensorTooMany", "it has 8 tensors, expected the 7",
       [](Parts* p) {
         const size_t end = p->data.size();
         p->header["tokens2"] = {{"dtype", "F32"}, {"shape", {0}}, {"data_offsets", {end, end}}};
       }},
      {"TensorIsNoObject", "tensor 'q.3' is described by something else",
       [](Parts* p) { p->header["q.3"] = 1; }},
      {"NoDtype", "tensor 'q.3' has no dtype", [](Parts* p) { p->header["q.3"].erase("dtype"); }},
      {"UnknownDtype", "tensor 'q.3' has dtype 'F64', expected F32, F16",
       [](Parts* p) { p->header["q.3"]["dtype"] = "F64"; }},
      {"QueriesAreIntegers", "tensor 'q.3' is I32 of shape [3, 4, 16], expected F32",
       [](Parts* p) { p->header["q.3"]["dtype"] = "I32"; }},
      {"ValuesAreIntegers", "tensor 'v.7' has dtype 'I32', expected F16, BF16 or F32",
       [](Parts* p) { p->header["v.7"]["dtype"] = "I32"; }},
      {"NoShape", "tensor 'k.3' has no shape", [](Parts* p) { p->header["k.3"].erase("shape"); }},
      {"DimensionIsNegative", "tensor 'k.3' has a dimension of -2",
       [](Parts* p) { p->header["k.3"]["shape"][0] = -2; }},
      {"ShapeOverflows", "tensor 'k.3' has a shape that no file can hold",
       [](Parts* p) { p->header["k.3"]["shape"] = {uint64_t{1} << 40, uint64_t{1} << 40, 16}; }},
      {"ShapeIsLarger", "tensor 'k.3' has 2752 bytes, expected 4128",
       [](Parts* p) { p->header["k.3"]["shape"][0] = 3; }},
      {"ShapeIsTurned", "tensor 'k.3' is F16 of shape [43, 2, 16], expected F16 of [2, 43, 16]",
       [](Parts* p) { p->header["k.3"]["shape"] = {43, 2, 16}; }},
      {"OffsetsMissing", "tensor 'k.3' has no data_offsets",
       [](Parts* p) { p->header["k.3"].erase("data_offsets"); }},
      {"OffsetsAreTurned", "tensor 'k.3' lies at 2752 to 0",
       [](Parts* p) { p->header["k.3"]["data_offsets"] = {2752, 0}; }},
      {"OffsetsBeyondTheFile", "tensor 'tokens' lies at",
       [](Parts* p) {
         for (json& offset : p->header["tokens"]["data_offsets"]) {
           offset = offset.get<uint64_t>() + (uint64_t{1} << 40);
         }
       }},
      {"TensorsOverlap", "tensor 'v.3' starts at byte",
       [](Parts* p) {
         for (json& offset : p->header["v.3"]["data_offsets"]) offset = offset.get<int>() - 64;
       }},
      {"Truncated", "tensor 'tokens' lies at",
       [](Parts* p) { p->data.resize(p->data.size() - 10); }},
      {"BytesTooMany", "10 bytes behind the last tensor",
       [](Parts* p) { p->data += "0123456789"; }},
      {"Misaligned", "is not aligned", [](Parts* p) { p->padding += " "; }},
      {"NegativeToken", "token 43 is -1",
       [](Parts* p) {
         for (size_t i = p->data.size() - 4; i < p->data.size(); ++i) p->data[i] = '\xff';
       }},
  };
  return faults;
}

class BrokenTraceTest : public testing::TestWithParam<Fault> {};

TEST_P(BrokenTraceTest, IsRefused) {
  const TemporaryFolder folder;
  ASSERT_TRUE(SmallTrace().Write(folder.path("a")).ok());
  const std::string bytes = ReadFile(folder.path("a"));
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  Parts parts{json::parse(bytes.substr(8, length)), bytes.substr(8 + length)};
  const std::string path = folder.path("broken");
  std::unique_ptr<TraceFile> trace;
  std::ofstream(path, std::ios::binary) << parts.Bytes();
  ASSERT_TRUE(TraceFile::Open(path, &trace).ok()) << "the undamaged parts";

  GetParam().damage(&parts);
  std::ofstream(path, std::ios::binary) << parts.Bytes();
  const Status status = TraceFile::Open(path, &trace);
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("'" + path + "' is not a trace: "), std::string::npos);
  EXPECT_NE(status.message().find(GetParam().message), std::string::npos)
      << "no '" << GetParam().message << "' in: " << status.message();
}

INSTANTIATE_TEST_SUITE_P(Faults, BrokenTraceTest, testing::ValuesIn(Faults()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tactic::app
