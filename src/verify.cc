// Stage select of mode tactic: exact logits of the keys that some head of the group selected, then,
// for each query head, whether they hold the target's share; if not, more keys.
#include <algorithm>
#include <cmath>
#include <thread>

#include "src/coded_units.h"
#include "src/mass.h"
#include "src/recount.h"

namespace tactic {
namespace {

// Turns the numbers of rows [begin, end) of a part's list into cells and reads their keys.
void ReadKeys(Step& step, int request, int kv_head, int part, size_t begin, size_t end) {
  if (begin == end) return;
  const RequestPlan& r = step.requests[request];
  const Share keys = PartKeys(step, r, part);
  const uint32_t* numbers = Numbers(step, r, kv_head) + keys.begin;
  uint32_t* cells = step.Rows(r, kv_head) + keys.begin;
  int64_t j = step.Part(r, part).begin;
  for (size_t i = begin; i < end; ++i) {
    const int64_t key = numbers[i];
    while (j + 1 < std::ssize(r.coded) && key >= r.coded[j + 1].first_key) ++j;
    const Segment& segment = *r.coded[j].segment;
    const uint16_t member = segment.head(kv_head).members[key - r.coded[j].first_key];
    cells[i] = r.request.cells[segment.first() + member];
  }
  const int first = kv_head * step.group();
  cpu::ScoreRows(step.Queries(r, first, step.group()), step.Keys(r, kv_head), cells + begin,
                 end - begin, Logits(step, r, first) + keys.begin + begin,
                 static_cast<size_t>(r.keys));
}

// Every key of the part.
size_t ListAll(Step& step, int request, int kv_head, int part) {
  const RequestPlan& r = step.requests[request];
  uint32_t* numbers = Numbers(step, r, kv_head) + PartKeys(step, r, part).begin;
  size_t count = 0;
  const Share segments = step.Part(r, part);
  for (int64_t j = segments.begin; j < segments.end; ++j) {
    for (int64_t i = 0; i < r.coded[j].tokens; ++i)
      numbers[count++] = static_cast<uint32_t>(r.coded[j].first_key + i);
  }
  return count;
}

// Appends the keys of the part that lie in some head's range.
void ReadRange(Step& step, int request, int kv_head, int part, const cpu::KeyRange* ranges) {
  const RequestPlan& r = step.requests[request];
  const Share keys = PartKeys(step, r, part);
  uint32_t& count = step.Counts(request, kv_head)[part];
  const size_t added = cpu::SelectKeys(
      Keys(step, r, kv_head * step.group()), static_cast<size_t>(r.keys), step.group(), ranges,
      Blocks(step, r, kv_head) + keys.begin / kCodeBlock, BlockCount(step, request, kv_head, part),
      Read(step, r, kv_head), Numbers(step, r, kv_head) + keys.begin + count,
      RowKeys(step, r, kv_head * step.group()) + keys.begin + count, static_cast<size_t>(r.keys));
  ReadKeys(step, request, kv_head, part, count, count + added);
  count += static_cast<uint32_t>(added);
}

// What query head `g` of the group finds in the part's rows with a key in `range`.
CodedStep::PartMass SumPart(Step& step, int request, int kv_head, int part, int g,
                            cpu::KeyRange range) {
  const RequestPlan& r = step.requests[request];
  const Share keys = PartKeys(step, r, part);
  const int q_head = kv_head * step.group() + g;
  CodedStep::PartMass sum = {};
  sum.rows = static_cast<int64_t>(
      cpu::SumRange(RowKeys(step, r, q_head) + keys.begin, Logits(step, r, q_head) + keys.begin,
                    step.Counts(request, kv_head)[part], range,
                    HeadOf(step, request, q_head).reference, &sum.exact, &sum.estimated));
  return sum;
}

void ReadAll(Step& step, int request, int kv_head, int part) {
  const size_t count = ListAll(step, request, kv_head, part);
  step.Counts(request, kv_head)[part] = static_cast<uint32_t>(count);
  ReadKeys(step, request, kv_head, part, 0, count);
}

// Sets and counts what the heads of a group that fell short read next. False when there is none.
bool PlanRound(Step& step, int request, int kv_head) {
  bool any = false;
  for (int g = 0; g < step.group(); ++g) {
    CodedHead& head = HeadOf(step, request, kv_head * step.group() + g);
    head.range = {kNoKey, kNoKey};
    const double unread = Unread(step.options, head, head.estimated);
    if (head.threshold == kEveryKey || Reached(step.options, head.exact, unread)) continue;
    // What the codes promised of the rows read so far, and what these kept.
    const double ratio =
        head.estimated > 0
            ? std::clamp<double>((head.exact - head.fixed) / head.estimated, kLeastRatio, 1)
            : 1;
    const double more = EstimatedMassFor(step.options, head.exact, unread, ratio);
    Threshold threshold = ThresholdFor(step, request, kv_head, g, head.estimated + more);
    // The bin's keys lie lower than if they were spread evenly: all of them.
    if (threshold.key >= head.threshold) threshold.key = threshold.edge;
    if (threshold.key >= head.threshold) continue;  // rounding: there is nothing in between
    head.range = {threshold.key, head.threshold};
    ++step.reports[step.Query(request, kv_head * step.group() + g)].rounds;
    any = true;
  }
  return any;
}

// Reads the part's keys that lie in some head's range, and sums up what each head found.
void ReadPart(Step& step, int request, int kv_head, int part) {
  cpu::KeyRange ranges[LayerShape::kMaxGroup];
  for (int g = 0; g < step.group(); ++g)
    ranges[g] = HeadOf(step, request, kv_head * step.group() + g).range;
  ReadRange(step, request, kv_head, part, ranges);
  for (int g = 0; g < step.group(); ++g) {
    step.coded.part_masses[PartSlot(step, request, kv_head, part, g)] =
        ranges[g].low < ranges[g].high ? SumPart(step, request, kv_head, part, g, ranges[g])
                                       : CodedStep::PartMass();
  }
}

// Adds what was found in the heads' ranges, once all parts are read.
void AddFound(Step& step, int request, int kv_head) {
  for (int g = 0; g < step.group(); ++g) {
    CodedHead& head = HeadOf(step, request, kv_head * step.group() + g);
    if (head.range.low == head.range.high) continue;
    for (int part = 0; part < step.requests[request].parts; ++part) {
      const auto& sum = step.coded.part_masses[PartSlot(step, request, kv_head, part, g)];
      head.exact += sum.exact;
      head.estimated += sum.estimated;
      head.rows += sum.rows;
    }
    head.threshold = head.range.low;
  }
}

double BelievedShare(const CodedHead& head) {
  const double unread = UnreadKeys(head, head.estimated) + head.skipped;
  return head.exact / (head.exact + unread);
}

// After the last round: a head that is still far from the target has codes that say too little, so
// that its group reads all rows. Text never came here (25,920 cases); a retrieval prompt did, with
// p_hat 0.03.
void GiveUpOnCodes(Step& step, int request, int kv_head) {
  const RequestPlan& r = step.requests[request];
  const int first = kv_head * step.group();
  bool far = false;
  for (int g = 0; g < step.group(); ++g) {
    const CodedHead& head = HeadOf(step, request, first + g);
    far = far || BelievedShare(head) < step.options.target - kLargestShortfall;
  }
  if (!far) return;
  GroupOf(step, request, kv_head).everything = true;
  for (int part = 0; part < r.parts; ++part) {
    // What was read is read again: counted twice, as it is.
    step.samples[step.Query(request, first)] += step.Counts(request, kv_head)[part];
    ReadAll(step, request, kv_head, part);
  }
  for (int g = 0; g < step.group(); ++g) ++step.reports[step.Query(request, first + g)].rounds;
}

// Log-sum-exp of a head's own selection; for measured steps.
double OwnLse(Step& step, int request, int kv_head, int q_head) {
  const RequestPlan& r = step.requests[request];
  const CodedHead& head = HeadOf(step, request, q_head);
  const bool everything = GroupOf(step, request, kv_head).everything;
  Mass mass = ForcedMass(step, request, q_head);
  for (int part = 0; part < r.parts; ++part) {
    const Share keys = PartKeys(step, r, part);
    const float* logits = Logits(step, r, q_head) + keys.begin;
    const cpu::KeyLevel* row_keys = RowKeys(step, r, q_head) + keys.begin;
    for (uint32_t i = 0; i < step.Counts(request, kv_head)[part]; ++i) {
      if (everything || row_keys[i] >= head.threshold) mass.Add(logits[i], 1);
    }
  }
  return mass.max + std::log(mass.sum);
}

// What is known of a group's selection when nothing more is read.
void Settle(Step& step, int request, int kv_head) {
  const RequestPlan& r = step.requests[request];
  const bool everything = GroupOf(step, request, kv_head).everything;
  const int first = kv_head * step.group();
  for (int g = 0; g < step.group(); ++g) {
    CodedHead& head = HeadOf(step, request, first + g);
    HeadReport& report = step.reports[step.Query(request, first + g)];
    if (everything) {
      head.rows = 0;
      for (int part = 0; part < r.parts; ++part) head.rows += step.Counts(request, kv_head)[part];
      report.code_error = 0;
    }
    report.own_rows = head.rows + std::ssize(r.forced);
    report.p_hat = everything ? 1 : BelievedShare(head);
    // Means weighted by estimates that are wrong by a factor do more harm than good.
    constexpr double kLargestTailError = 1;
    head.tail = !everything && step.options.tail && report.code_error <= kLargestTailError;
    if (step.params.measure_mass) {
      step.own_lse[step.Query(request, first + g)] = OwnLse(step, request, kv_head, first + g);
    }
  }
  step.coded.unverified.fetch_sub(1, std::memory_order_release);
}

// After all parts of a group were read: another round, whose parts any thread may claim, or none.
void NextRound(Step& step, int request, int kv_head) {
  CodedGroup& group = GroupOf(step, request, kv_head);
  if (!group.everything) {
    AddFound(step, request, kv_head);
    if (group.rounds < step.options.rounds && PlanRound(step, request, kv_head)) {
      ++group.rounds;
      group.round_left.store(step.requests[request].parts, std::memory_order_relaxed);
      group.round_next.store(0, std::memory_order_release);
      return;
    }
    if (step.options.rounds > 0) GiveUpOnCodes(step, request, kv_head);
  }
  Settle(step, request, kv_head);
}

// Reads the first choice of every head, or all keys.
void VerifyPart(Step& step, int request, int kv_head, int part) {
  if (GroupOf(step, request, kv_head).everything) {
    ReadAll(step, request, kv_head, part);
    return;
  }
  step.Counts(request, kv_head)[part] = 0;
  ReadPart(step, request, kv_head, part);
}

// Does the parts of rounds that are to be had. False when there were none.
bool ReadOn(Step& step) {
  bool any = false;
  for (int request = 0; request < step.num_requests(); ++request) {
    const RequestPlan& r = step.requests[request];
    for (int kv_head = 0; kv_head < step.shape.kv_heads && !r.coded.empty(); ++kv_head) {
      CodedGroup& group = GroupOf(step, request, kv_head);
      while (group.round_next.load(std::memory_order_relaxed) < r.parts) {
        const int part = group.round_next.fetch_add(1, std::memory_order_acquire);
        if (part >= r.parts) break;
        ReadPart(step, request, kv_head, part);
        if (group.round_left.fetch_sub(1, std::memory_order_acq_rel) == 1)
          NextRound(step, request, kv_head);
        any = true;
      }
    }
  }
  return any;
}

}  // namespace

void VerifyStage(Step& step) {
  ClaimParts(step, kVerifyUnits, [&](int request, int kv_head, int part) {
    VerifyPart(step, request, kv_head, part);
    if (LastUnit(step, kVerifyUnits, request, kv_head)) NextRound(step, request, kv_head);
  });
  // Selections are extended a KV head at a time: threads without a unit help with that rather than
  // wait at the end of the stage. What another thread is at takes microseconds.
  constexpr int kPatience = 1000;
  for (int idle = 0; step.coded.unverified.load(std::memory_order_acquire) > 0;) {
    if (ReadOn(step)) {
      idle = 0;
    } else if (++idle > kPatience) {
      std::this_thread::yield();
    }
  }
}

}  // namespace tactic
