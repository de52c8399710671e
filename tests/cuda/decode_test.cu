// Decode steps of every mode on shapes an engine may have, and on awkward ones, judged stage by
// stage.
#include <cstring>

#include "tests/cuda/judge_paper.h"
#include "tests/cuda/judge_tactic.h"

namespace tactic::cuda {
namespace {

struct Case {
  std::string name;
  WorldSpec world;
  Options options;
  float softcap = 0;
};

LayerShape Shape(int kv_heads, int group, int dim) {
  return {kv_heads * group, kv_heads, dim, dim};
}

Options Small(Mode mode, int segment = 512) {
  Options options = OptionsFor(mode);
  options.segment_size = segment;
  options.dense_below = 64;
  return options;
}

std::unique_ptr<Decoder> MakeDecoder(const World& world, const Options& options) {
  std::unique_ptr<Decoder> decoder;
  Must(Decoder::Create(world.spec.shape, options, world.batch, world.request.max_length, &decoder),
       "Decoder::Create");
  return decoder;
}

// Judges the last step for the given lengths.
void JudgeStep(const World& world, const Options& options, const Decoder& decoder,
               const std::vector<int>& lengths, Verdict* verdict, Tally* tally, PaperTally* paper) {
  const Step step = DecoderAccess::LastStep(decoder);
  const std::string name = verdict->where;
  for (int s = 0; s < world.batch; ++s) {
    for (int h = 0; h < step.kv_heads; ++h) {
      verdict->where = name + ", sequence " + std::to_string(s) + ", head " + std::to_string(h);
      const UnitView unit(world, options, step, s, h, lengths[s]);
      tally->Add(unit);
      std::vector<int32_t> rows;
      Must(decoder.SelectedRows(s, h, &rows), "SelectedRows");
      verdict->That(static_cast<int>(rows.size()) == unit.reports[0].union_rows, "selected rows");
      verdict->That(std::set<int32_t>(rows.begin(), rows.end()).size() == rows.size(),
                    "no row twice");
      if (unit.dense) {
        JudgeDense(unit, verdict);
        continue;
      }
      const HeadIndex index = ReadIndex(*world.indexes[s], h, lengths[s], options);
      if (step.mode == Mode::kPaper)
        PaperJudge(unit, index, verdict, paper).Judge();
      else
        TacticJudge(unit, index, verdict).Judge();
    }
  }
  verdict->where = name;
}

void RunCase(const Case& c, Verdict* verdict, Tally* all) {
  verdict->where = c.name;
  World world(c.world);
  world.request.softcap = c.softcap;
  if (c.options.mode != Mode::kDense) world.MakeIndexes(c.options);
  const auto decoder = MakeDecoder(world, c.options);
  const auto step = [&] {
    Must(decoder->Decode(world.request, nullptr), "Decode");
    Must(cudaDeviceSynchronize(), "a step");
  };
  step();
  Tally tally;
  PaperTally paper;
  JudgeStep(world, c.options, *decoder, c.world.lengths, verdict, &tally, &paper);
  // Again: nothing is left over from the first, and every bit is the same.
  const std::vector<float> first = world.Out();
  step();
  const std::vector<float> second = world.Out();
  verdict->That(std::memcmp(first.data(), second.data(), first.size() * sizeof(float)) == 0,
                "a second step gives the same bits");
  DecoderAccess::WidenSpans(decoder.get());
  step();
  Tally wide;
  verdict->where = c.name + ", wide spans";
  JudgeStep(world, c.options, *decoder, c.world.lengths, verdict, &wide, &paper);
  tally.Print(c.name.c_str());
  if (paper.oracle_rows > 0)
    std::printf("    own rows over those of the published order: %.3f\n",
                paper.rows / paper.oracle_rows);
  all->heads += tally.heads;
  all->reached += tally.reached;
}

// A graph captured once, replayed while sequences and their indexes grow.
void RunGraph(Mode mode, Verdict* verdict) {
  verdict->where = std::string("graph, ") + ModeName(mode);
  WorldSpec spec;
  spec.shape = Shape(2, 4, 128);
  spec.lengths = {2600, 3000};
  spec.page_size = 16;
  World world(spec);
  const Options options = Small(mode);
  const auto decoder = MakeDecoder(world, options);
  if (mode != Mode::kDense) world.MakeIndexes(options, {0, 0});
  cudaStream_t stream;
  Must(cudaStreamCreate(&stream), "stream");
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  Must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  Must(decoder->Decode(world.request, stream), "Decode in a graph");
  Must(cudaStreamEndCapture(stream, &graph), "capture");
  Must(cudaGraphInstantiate(&replay, graph, 0), "graph");
  Tally tally;
  PaperTally paper;
  for (const std::vector<int>& lengths : std::vector<std::vector<int>>{
           {40, 65}, {700, 1200}, {1024, 1300}, {2000, 2999}, {2600, 3000}}) {
    for (int s = 0; s < std::ssize(world.indexes); ++s)
      Must(world.indexes[s]->Append(world.cache, s, lengths[s], stream), "Append");
    world.SetLengths({lengths.begin(), lengths.end()});
    Must(cudaGraphLaunch(replay, stream), "replay");
    Must(cudaStreamSynchronize(stream), "replay");
    JudgeStep(world, options, *decoder, lengths, verdict, &tally, &paper);
  }
  tally.Print(verdict->where.c_str());
  Must(cudaGraphExecDestroy(replay), "graph");
  Must(cudaGraphDestroy(graph), "graph");
  Must(cudaStreamDestroy(stream), "stream");
}

void RunBadInput(Verdict* verdict) {
  verdict->where = "bad input";
  WorldSpec spec;
  spec.shape = Shape(2, 2, 64);
  spec.lengths = {300};
  World world(spec);
  const auto decoder = MakeDecoder(world, Small(Mode::kDense));
  const auto refuses = [&](auto change, const char* named) {
    DecodeRequest request = world.request;
    change(request);
    const Status status = decoder->Decode(request, nullptr);
    verdict->That(!status.ok() && status.message().find(named) != std::string::npos,
                  std::string("names ") + named + ": " + status.message());
  };
  refuses([](auto& r) { r.q = nullptr; }, "q is null");
  refuses([](auto& r) { r.out = nullptr; }, "out is null");
  refuses([](auto& r) { r.lengths = nullptr; }, "lengths is null");
  refuses([](auto& r) { r.batch = 2; }, "batch is 2");
  refuses([](auto& r) { r.max_length = 301; }, "max_length is 301");
  refuses([](auto& r) { r.softcap = -1; }, "softcap");
  refuses([](auto& r) { r.dense_below = -2; }, "dense_below is -2");
  refuses([](auto& r) { r.cache.keys = nullptr; }, "cache.keys");
  refuses([](auto& r) { r.cache.row_stride = 60; }, "row_stride");
  std::unique_ptr<Decoder> none;
  const auto unsupported = [&](const LayerShape& shape, const Options& options, const char* named) {
    const Status status = Decoder::Create(shape, options, 1, 1000, &none);
    verdict->That(!status.ok() && status.message().find(named) != std::string::npos,
                  std::string("names ") + named + ": " + status.message());
  };
  unsupported(Shape(2, 2, 80), Small(Mode::kDense), "head_dim is 80");
  unsupported(Shape(1, 20, 64), Small(Mode::kDense), "q_heads / kv_heads is 20");
  unsupported(Shape(2, 2, 64), Small(Mode::kTactic, 700), "segment_size is 700");
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto add = [&](std::string name, Options options, LayerShape shape,
                       std::vector<int> lengths, auto change) {
    Case c = {std::move(name), {}, options};
    c.world.shape = shape;
    c.world.lengths = std::move(lengths);
    c.world.seed = cases.size() + 1;
    change(c);
    cases.push_back(c);
  };
  const auto plain = [](Case&) {};
  const auto of_type = [](Element type, int page) {
    return [=](Case& c) {
      c.world.type = type;
      c.world.page_size = page;
      if (type == Element::kE4M3) c.world.key_scale = 0.5f, c.world.value_scale = 0.25f;
    };
  };
  for (const Mode mode : {Mode::kDense, Mode::kPaper, Mode::kTactic}) {
    const std::string m = ModeName(mode);
    add(m + " d128 4:1", Small(mode), Shape(2, 4, 128), {3000, 1700}, plain);
    add(m + " d64 3:1 f16 pages of 16", Small(mode), Shape(3, 3, 64), {2222},
        of_type(Element::kF16, 16));
    add(m + " d96 1:1 bf16 pages of 1", Small(mode), Shape(2, 1, 96), {1500},
        of_type(Element::kBF16, 1));
    add(m + " d256 8:1 e4m3 pages of 64", Small(mode), Shape(1, 8, 256), {1800},
        of_type(Element::kE4M3, 64));
    add(m + " d128 16:1 pages of 256", Small(mode), Shape(1, 16, 128), {2100, 1000, 300},
        of_type(Element::kBF16, 256));
    add(m + " d64 12:1 e4m3 pages of 32", Small(mode, 256), Shape(1, 12, 64), {1400},
        of_type(Element::kE4M3, 32));
    add(m + " d128 softcap", Small(mode), Shape(1, 4, 128), {2000}, [](Case& c) {
      c.softcap = 20;
      c.world.sharpness = 4;
    });
    add(m + " lengths around edges", Small(mode, 256), Shape(1, 2, 64),
        {17, 63, 64, 100, 320, 321, 351, 352, 600}, plain);
    add(m + " d128 segments of 2048", OptionsFor(mode), Shape(1, 4, 128), {5000}, plain);
  }
  for (const int bits : {3, 4}) {
    Options options = Small(Mode::kTactic);
    options.bits = bits;
    add("tactic bits " + std::to_string(bits), options, Shape(2, 4, 128), {2500}, plain);
    add("tactic d64 bits " + std::to_string(bits), options, Shape(2, 3, 64), {2500}, plain);
    add("tactic d96 bits " + std::to_string(bits), options, Shape(1, 4, 96), {1500}, plain);
    add("tactic d256 bits " + std::to_string(bits), options, Shape(1, 2, 256), {1500}, plain);
  }
  for (const double target : {0.5, 0.8, 0.95, 0.99, 1.0}) {
    for (const Mode mode : {Mode::kPaper, Mode::kTactic}) {
      Options options = Small(mode);
      options.target = target;
      add(std::string(ModeName(mode)) + " P " + std::to_string(target), options, Shape(2, 4, 128),
          {2500}, plain);
    }
  }
  Options no_rounds = Small(Mode::kTactic);
  no_rounds.rounds = 0;
  no_rounds.tail = false;
  add("tactic without rounds and tail", no_rounds, Shape(2, 4, 64), {2500}, plain);
  Options no_sinks = Small(Mode::kTactic);
  no_sinks.sinks = 0;
  no_sinks.recent = 0;
  add("tactic without sinks", no_sinks, Shape(2, 4, 64), {2500, 2048}, plain);
  for (const Mode mode : {Mode::kPaper, Mode::kTactic}) {
    const std::string m = ModeName(mode);
    add(m + " flat", Small(mode), Shape(1, 4, 64), {2500},
        [](Case& c) { c.world.sharpness = 0.02f; });
    add(m + " sharp", Small(mode), Shape(2, 4, 64), {2500}, [](Case& c) { c.world.sharpness = 9; });
    // Most logits lie below the lowest bin.
    add(m + " too sharp for the bins", Small(mode), Shape(2, 4, 64), {2500},
        [](Case& c) { c.world.sharpness = 25; });
    add(m + " equal keys", Small(mode), Shape(1, 4, 64), {2500},
        [](Case& c) { c.world.noise = 0; });
    add(m + " loose clusters", Small(mode), Shape(1, 4, 128), {2500},
        [](Case& c) { c.world.noise = 2; });
  }
  return cases;
}

}  // namespace
}  // namespace tactic::cuda

// Arguments: parts of the names of the cases to run; all without.
int main(int argc, char** argv) {
  using namespace tactic;
  using namespace tactic::cuda;
  if (const Status status = Available(); !status.ok()) {
    std::printf("skipped: %s\n", status.message().c_str());
    return 77;  // ctest: SKIP_RETURN_CODE
  }
  Verdict verdict;
  Tally all;
  for (const auto& c : Cases()) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted = wanted || c.name.find(argv[i]) != std::string::npos;
    if (wanted) RunCase(c, &verdict, &all);
  }
  if (argc == 1) {
    RunGraph(Mode::kDense, &verdict);
    RunGraph(Mode::kPaper, &verdict);
    RunGraph(Mode::kTactic, &verdict);
    RunBadInput(&verdict);
  }
  std::printf("%lld checks, %lld failed; %.2f %% of %lld heads reached their target\n",
              static_cast<long long>(verdict.checks()), static_cast<long long>(verdict.failures()),
              100.0 * all.reached / std::max<int64_t>(1, all.heads),
              static_cast<long long>(all.heads));
  return verdict.failures() == 0 ? 0 : 1;
}
