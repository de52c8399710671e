// Decoder: checks a request, lays out the buffers, launches the stages.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "src/cuda/carver.h"
#include "src/cuda/check.h"
#include "src/cuda/code_tile.cuh"
#include "src/cuda/crossover.h"
#include "src/cuda/decoder_access.h"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/signs.h"

namespace tactic::cuda {
namespace {

// Blocks that a stage's grid should have for each multiprocessor.
constexpr int kRankBlocks = 2;
constexpr int kSelectBlocks = 32;  // at most: they come and go
constexpr int kAttendBlocks = 2;   // as many as fit
constexpr int kAttendWaves = 8;    // of them, at most

template <class T>
Status Bad(const char* name, const T& value, const char* expected) {
  return Status::InvalidArgument(std::string(name) + " is " + std::to_string(value) +
                                 "; expected " + expected);
}

// Segments of a span of at most so many clusters.
int SpanSegments(const Step& step, int slots) { return std::max(1, slots / step.slots); }

// Spans of all units for each multiprocessor, at least, where they are wider than the narrowest.
constexpr int kLeastSpans = 15;

// How wide a step's spans are; returns how many a unit may have. Selections crowd: what a query
// looks for fills some spans and leaves most of the others empty, and the block of a full one ends
// last. But every span costs a chain of reads, whatever it holds. So spans are as wide as leaves
// `least` of all units, among which full ones get lost. Measured, 32 query and 8 KV
// heads on an H100, mode tactic with 64, 128, 256 clusters, us: 8 sequences of 127K tokens 397,
// 360, 380; 32 of 31K 458, 420, 442.
int ChooseSpans(int64_t tokens, int units, int least, Step* step) {
  constexpr int kNarrowest = 64;
  int spans = 0;
  for (int slots = kMaxSlots; slots >= kNarrowest; slots /= 2) {
    step->span_segments = SpanSegments(*step, slots);
    step->span_slots = step->span_segments * step->slots;
    step->span_keys = step->span_segments * step->segment_size;
    spans = static_cast<int>((tokens + step->span_keys - 1) / step->span_keys);
    if (int64_t{spans} * units >= least) break;
  }
  step->spans = step->segments / step->span_segments;
  return spans;
}

// Bytes per second, by the memory's clock and the width of its bus; 0 where these are not known.
double MemoryBandwidth(int device) {
  int kilohertz = 0;
  int bits = 0;
  if (cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, device) != cudaSuccess)
    return 0;
  constexpr double kPerCycle = 2;  // double data rate
  return kPerCycle * 1e3 * kilohertz * bits / 8;
}

int PartsFor(int units, int blocks) { return std::max(1, (blocks + units / 2) / units); }

// Blocks of rank for each unit. They are all under way at once, and one on a multiprocessor alone
// is faster than one of two: so there is one on each where that makes enough of them for a unit of
// up to so many tokens. At least two, since in mode tactic the last is for the queries (rank.cu).
int RankParts(int64_t tokens, int units, int multiprocessors) {
  constexpr int kMany = 8;
  constexpr int64_t kMostTokens = 16384;  // of a block
  const int alone = multiprocessors / units;
  if (alone >= kMany && tokens <= kMostTokens * alone) return alone;
  return std::max(2, kRankBlocks * multiprocessors / units);
}

// How many waves of blocks attend's grid is when everything is read. Multiprocessors differ in how
// fast they get at memory: with one wave, the average one was done after 89 % of the time (H100, 8
// sequences of 127K tokens, rows of 256 bytes), while blocks of later waves go to those that are
// done first. Short rows do not gain by it (128 bytes: at most 1 % faster, 19 % slower at batch 1),
// and selections are too small for it (a state to merge for each block: 1 % faster or 3 % slower).
int AttendWaves(const Step& step, int64_t tokens, int units, int row_bytes) {
  constexpr int kShortRow = 128;
  if (step.mode != Mode::kDense || row_bytes <= kShortRow) return 1;
  const int64_t worthwhile = tokens * units / kTileRows / (kLeastTiles * step.attend_wave);
  return static_cast<int>(std::clamp<int64_t>(worthwhile, 1, kAttendWaves));
}

}  // namespace

struct Decoder::Impl {
  LayerShape shape;
  Options options;
  int max_batch = 0;
  int64_t max_tokens = 0;
  int multiprocessors = 0;
  int least_spans = 0;   // see ChooseSpans
  double bandwidth = 0;  // of device memory, see DenseBelow
  uint8_t* memory = nullptr;
  size_t bytes = 0;
  Step step = {};  // what all steps have in common
  Step last = {};  // the last one
  ~Impl() {
    if (memory != nullptr) cudaFree(memory);
  }

  void Carve(Carver* carver) {
    Step& s = step;
    const size_t units = static_cast<size_t>(max_batch) * shape.kv_heads;
    const size_t group = s.group;
    const size_t heads = units * group;
    const size_t segments = units * s.segments;
    const size_t clusters = segments * s.slots;
    const size_t rows = segments * s.segment_size;
    const size_t rank_parts = kRankBlocks * multiprocessors + 2 * units;  // of all units, at most
    const size_t waves = s.mode == Mode::kDense ? kAttendWaves : 1;
    const size_t states = waves * kAttendBlocks * multiprocessors + units;
    const bool tactic = s.mode == Mode::kTactic;
    const bool paper = s.mode == Mode::kPaper;
    carver->Take(&s.dense, units);
    carver->Take(&s.states, states * group * StateSize(shape.head_dim));
    carver->Take(&s.finished, units);
    carver->Take(&s.reports, heads);
    carver->Take(&s.listed, 2 * units);
    if (s.mode == Mode::kDense) return;
    carver->Take(&s.units, units);
    carver->Take(&s.anchors, heads);
    carver->Take(&s.scores, clusters * group);
    carver->Take(&s.cluster_bins, heads * kBins);
    carver->Take(&s.part_forced, rank_parts * group);
    carver->Take(&s.part_floors, rank_parts * group);
    carver->Take(&s.forced_rows, units * s.forced_room);
    carver->Take(&s.forced_logits, units * s.forced_room * group);
    carver->Take(&s.rows, rows);
    carver->Take(&s.logits, rows * group);
    carver->Take(&s.counts, segments);
    carver->Take(&s.tiles, units);
    if (tactic) {
      carver->Take(&s.queries, heads);
      carver->Take(&s.rotated, units * ((group + kTileHeads - 1) / kTileHeads) *
                                   CodeQueryWords(shape.head_dim, s.bits) * 32);
      carver->Take(&s.filters, heads);
      carver->Take(&s.masses, heads);
      carver->Take(&s.reading, units);
      carver->Take(&s.exact, segments * group);
      carver->Take(&s.tags, rows);
      carver->Take(&s.bounds, clusters * group);
      carver->Take(&s.levels, rows * s.level_stride);
      carver->Take(&s.kept_list, clusters);
      carver->Take(&s.kept_counts, segments);
      carver->Take(&s.scan_tiles, rows / kTileRows + clusters);
      carver->Take(&s.scan_counts, segments);
      carver->Take(&s.key_bins, heads * kBins);
      carver->Take(&s.skipped, segments * group);
      carver->Take(&s.unread, clusters * group);
    }
    if (paper) {
      carver->Take(&s.bin_masses, heads * kBins);
      carver->Take(&s.ranks, heads);
      carver->Take(&s.windows, heads * 2);
      carver->Take(&s.owners, rows);
      carver->Take(&s.fresh_counts, segments);
      carver->Take(&s.sampled, units);
      carver->Take(&s.selected, units);
    }
  }
};

Decoder::Decoder() : impl_(std::make_unique<Impl>()) {}
Decoder::~Decoder() = default;

Status Decoder::Create(const LayerShape& shape, const Options& options, int max_batch,
                       int64_t max_tokens, std::unique_ptr<Decoder>* decoder) {
  TACTIC_RETURN_IF_ERROR(Available());
  TACTIC_RETURN_IF_ERROR(CheckShape(shape));
  TACTIC_RETURN_IF_ERROR(options.Validate());
  if (options.mode != Mode::kDense) TACTIC_RETURN_IF_ERROR(CheckIndexOptions(options));
  if (max_batch < 1) return Bad("max_batch", max_batch, "at least 1");
  TACTIC_RETURN_IF_ERROR(CheckMaxTokens(max_tokens));

  std::unique_ptr<Decoder> made(new Decoder());
  Impl& impl = *made->impl_;
  impl.shape = shape;
  impl.options = options;
  impl.max_batch = max_batch;
  impl.max_tokens = max_tokens;
  int device = 0;
  TACTIC_RETURN_IF_ERROR(FromCuda(cudaGetDevice(&device), "the current device"));
  TACTIC_RETURN_IF_ERROR(FromCuda(
      cudaDeviceGetAttribute(&impl.multiprocessors, cudaDevAttrMultiProcessorCount, device),
      "its multiprocessors"));
  impl.least_spans = kLeastSpans * impl.multiprocessors;
  impl.bandwidth = MemoryBandwidth(device);
  Step& s = impl.step;
  s.kv_heads = shape.kv_heads;
  s.group = shape.group();
  s.head_dim = shape.head_dim;
  s.mode = options.mode;
  s.target = static_cast<float>(options.target);
  s.sinks = options.sinks;
  s.recent = options.recent;
  s.segment_size = options.segment_size;
  s.slots = options.segment_size / options.cluster_size;
  s.slots_inverse = ((1u << 31) + s.slots - 1) / s.slots;
  s.skip_share = static_cast<float>(options.skip_share);
  s.skip_token = static_cast<float>(options.skip_token);
  s.unread_margin = static_cast<float>(options.unread_margin);
  s.skipped_margin = static_cast<float>(options.skipped_margin);
  s.rounds = options.rounds;
  s.tail = options.tail ? 1 : 0;
  s.bits = CodeBits(options);
  s.dense_share = static_cast<float>(options.dense_share);
  s.head_share = static_cast<float>(options.head_share);
  s.near_window = static_cast<float>(options.near_window);
  s.far_window = static_cast<float>(options.far_window);
  s.window_share = static_cast<float>(options.window_share);
  s.level_stride = (s.group + 1) / 2 * 2;
  // Whole spans, however wide.
  const int widest = SpanSegments(s, kMaxSlots);
  s.segments = static_cast<int>((max_tokens + s.segment_size - 1) / s.segment_size);
  s.segments = (s.segments + widest - 1) / widest * widest;
  // Rows of all units are numbered in 32 bits.
  constexpr int64_t kMostRows = UINT32_MAX;
  const int64_t rows = int64_t{max_batch} * shape.kv_heads * s.segments * s.segment_size;
  if (options.mode != Mode::kDense && rows > kMostRows) {
    return Status::InvalidArgument("max_batch " + std::to_string(max_batch) + " times max_tokens " +
                                   std::to_string(max_tokens) +
                                   " are too many rows; expected fewer than 2^32 of all KV heads");
  }
  // What no cluster holds: mode tactic indexes pages as they come, mode paper whole segments; an
  // index may be a segment behind.
  s.forced_room = options.sinks + options.recent + 2 * options.segment_size;
  RotationSigns(shape.head_dim, s.signs);

  Carver counter(nullptr);
  impl.Carve(&counter);
  impl.bytes = counter.used();
  TACTIC_RETURN_IF_ERROR(FromCuda(cudaMalloc(&impl.memory, impl.bytes), "a step's buffers"));
  TACTIC_RETURN_IF_ERROR(FromCuda(cudaMemset(impl.memory, 0, impl.bytes), "a step's buffers"));
  // The caller's streams need not wait for the default one.
  TACTIC_RETURN_IF_ERROR(FromCuda(cudaStreamSynchronize(nullptr), "a step's buffers"));
  Carver carver(impl.memory);
  impl.Carve(&carver);
  *decoder = std::move(made);
  return Status::Ok();
}

Status Decoder::Decode(const DecodeRequest& request, Stream stream) {
  Impl& impl = *impl_;
  if (request.batch < 1 || request.batch > impl.max_batch)
    return Bad("batch", request.batch, "a number from 1 to max_batch");
  if (request.max_length < 1 || request.max_length > impl.max_tokens)
    return Bad("max_length", request.max_length, "a number from 1 to max_tokens");
  if (request.q == nullptr) return Status::InvalidArgument("q is null");
  if (reinterpret_cast<uintptr_t>(request.q) % 16 != 0)
    return Status::InvalidArgument("q is not aligned to 16 bytes");
  if (request.out == nullptr) return Status::InvalidArgument("out is null");
  if (request.lengths == nullptr) return Status::InvalidArgument("lengths is null");
  if (request.q_type == Element::kE4M3) return Status::InvalidArgument("q_type is e4m3");
  if (request.out_type == Element::kE4M3) return Status::InvalidArgument("out_type is e4m3");
  if (!std::isfinite(request.scale)) return Bad("scale", request.scale, "a finite number");
  if (!(request.softcap >= 0)) return Bad("softcap", request.softcap, "0 or more");
  Step step = impl.step;
  TACTIC_RETURN_IF_ERROR(MakeCacheView(request.cache, impl.shape.head_dim, &step.cache));
  const bool fp8 = request.cache.type == Element::kE4M3;
  step.batch = request.batch;
  const int units = request.batch * impl.shape.kv_heads;
  step.rank_parts = RankParts(request.max_length, units, impl.multiprocessors);
  step.sample_blocks = kSampleBlocks * impl.multiprocessors;
  step.attend_wave = kAttendBlocks * impl.multiprocessors;
  const int row_bytes = impl.shape.head_dim * (fp8 ? 1 : 2);
  step.attend_blocks = step.attend_wave * AttendWaves(step, request.max_length, units, row_bytes);
  const int spans = ChooseSpans(request.max_length, units, impl.least_spans, &step);
  step.parts = std::min(spans, PartsFor(units, kSelectBlocks * impl.multiprocessors));
  step.q = request.q;
  step.q_type = request.q_type;
  step.out = request.out;
  step.out_type = request.out_type;
  step.scale = request.scale * kLog2e;
  const float cap = request.softcap * kLog2e;
  step.softcap = {cap, cap > 0 ? 2 * kLog2e / cap : 0};
  step.key_unit = step.scale * (fp8 ? request.cache.key_scale * kE4M3Unit : 1.0f);
  step.value_unit = fp8 ? request.cache.value_scale * kE4M3Unit : 1.0f;
  step.lengths = request.lengths;
  step.indexes = reinterpret_cast<const DeviceIndex* const*>(request.indexes);
  const Element type = request.cache.type;
  if (request.dense_below < -1) return Bad("dense_below", request.dense_below, "-1 or more");
  const int64_t dense_below =
      request.dense_below >= 0
          ? request.dense_below
          : std::max<int64_t>(
                impl.options.dense_below,
                DenseBelow(impl.options.mode, impl.shape.head_dim, units, impl.bandwidth));
  // The anchor's tile takes so many rows.
  step.dense_below =
      static_cast<int>(std::clamp<int64_t>(dense_below, kTileRows, impl.max_tokens + 1));
  if (step.indexes == nullptr || request.max_length < step.dense_below) step.mode = Mode::kDense;
  impl.last = step;
  if (step.mode == Mode::kPaper) {
    TACTIC_RETURN_IF_ERROR(LaunchRank(step, type, stream));
    TACTIC_RETURN_IF_ERROR(LaunchSample(step, type, stream));
    TACTIC_RETURN_IF_ERROR(LaunchCut(step, stream));
  } else if (step.mode == Mode::kTactic) {
    TACTIC_RETURN_IF_ERROR(LaunchRank(step, type, stream));
    TACTIC_RETURN_IF_ERROR(LaunchScan(step, stream));
    for (int round = 0; round <= step.rounds; ++round)
      TACTIC_RETURN_IF_ERROR(LaunchVerify(step, type, round, stream));
  }
  return LaunchAttend(step, type, stream);
}

const Step& DecoderAccess::LastStep(const Decoder& decoder) { return decoder.impl_->last; }
void DecoderAccess::WidenSpans(Decoder* decoder) { decoder->impl_->least_spans = 0; }

const DeviceReport* Decoder::reports() const { return impl_->step.reports; }
size_t Decoder::WorkspaceBytes() const { return impl_->bytes; }

Status Decoder::SelectedRows(int sequence, int kv_head, std::vector<int32_t>* rows) const {
  const Step& s = impl_->last;
  if (sequence < 0 || sequence >= impl_->max_batch)
    return Bad("sequence", sequence, "one of the batch");
  if (kv_head < 0 || kv_head >= s.kv_heads) return Bad("kv_head", kv_head, "one of the layer's");
  TACTIC_RETURN_IF_ERROR(FromCuda(cudaDeviceSynchronize(), "waiting for the step"));
  const auto copy = [](void* to, const void* from, size_t bytes) {
    return FromCuda(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "reading a step's rows");
  };
  const int64_t unit = static_cast<int64_t>(sequence) * s.kv_heads + kv_head;
  int32_t listed[2];
  DeviceReport report;
  TACTIC_RETURN_IF_ERROR(copy(listed, s.listed + 2 * unit, sizeof(listed)));
  TACTIC_RETURN_IF_ERROR(copy(&report, s.reports + unit * s.group, sizeof(report)));
  rows->clear();
  if (listed[1] == 0) {
    for (int32_t p = 0; p < report.union_rows; ++p) rows->push_back(p);
    return Status::Ok();
  }
  rows->resize(listed[0]);
  TACTIC_RETURN_IF_ERROR(
      copy(rows->data(), s.forced_rows + unit * s.forced_room, rows->size() * sizeof(int32_t)));
  std::vector<int32_t> counts(listed[1]);
  TACTIC_RETURN_IF_ERROR(
      copy(counts.data(), s.counts + unit * s.spans, counts.size() * sizeof(int32_t)));
  Unit seen = {};
  std::vector<int32_t> fresh(listed[1]);
  if (s.mode == Mode::kPaper) {
    TACTIC_RETURN_IF_ERROR(copy(&seen, s.units + unit, sizeof(seen)));
    TACTIC_RETURN_IF_ERROR(
        copy(fresh.data(), s.fresh_counts + unit * s.spans, fresh.size() * sizeof(int32_t)));
  }
  for (size_t j = 0; j < counts.size(); ++j) {
    const int64_t first = static_cast<int64_t>(j) * s.span_keys;
    const uint32_t* of_span = s.rows + unit * s.spans * s.span_keys + first;
    std::vector<uint32_t> list(counts[j] + fresh[j]);
    TACTIC_RETURN_IF_ERROR(copy(list.data(), of_span, counts[j] * sizeof(uint32_t)));
    TACTIC_RETURN_IF_ERROR(copy(list.data() + counts[j], of_span + s.span_keys - fresh[j],
                                fresh[j] * sizeof(uint32_t)));
    if (s.mode == Mode::kTactic) {
      for (const uint32_t row : list)
        rows->push_back(static_cast<int32_t>(first) + PlaceOfRow(row));
      continue;
    }
    const int64_t keys =
        std::min<int64_t>(s.span_keys, int64_t{seen.closed} * s.segment_size - first);
    std::vector<uint16_t> members(keys);
    TACTIC_RETURN_IF_ERROR(
        copy(members.data(), seen.members + first, members.size() * sizeof(uint16_t)));
    for (const uint32_t word : list) {
      const ListedTile tile = {word};
      const int64_t segment = first + tile.Cluster() / s.slots * s.segment_size;
      for (int i = 0; i < tile.Rows(); ++i)
        rows->push_back(static_cast<int32_t>(segment + members[tile.First() + i]));
    }
  }
  std::sort(rows->begin(), rows->end());
  return Status::Ok();
}

}  // namespace tactic::cuda
