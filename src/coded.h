// What the stages of mode tactic share within one step: coded keys and what is believed of them.
//
// Masses are sums of exp(logit - reference); every query head has one reference for the whole step.
#ifndef TACTIC_SRC_CODED_H_
#define TACTIC_SRC_CODED_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "src/cpu/kernels.h"
#include "src/segment.h"

namespace tactic {

// A segment as a request may use it: the first `clusters` clusters of an open one.
struct CodedSegment {
  const Segment* segment = nullptr;
  int clusters = 0;       // at most; a KV head may have fewer
  int64_t tokens = 0;     // members of these
  int64_t first_key = 0;  // where its keys begin in the request's arrays: a multiple of kKeyUnit
  bool pages = false;     // not clustered: the filter knows too little to skip any
};

// Keys of a segment are padded to whole words of the `read` bitmap.
inline constexpr int64_t kKeyUnit = 64;

// Thresholds for levels of keys: none reaches the first; all but skipped ones reach the second.
inline constexpr uint32_t kNoKey = uint32_t{cpu::kLastKey} + 1;
inline constexpr uint32_t kEveryKey = uint32_t{cpu::kSkippedKey} + 1;

// What is known of one query head.
struct CodedHead {
  float reference = 0;
  double fixed = 0;                        // mass of the forced rows, exact
  double skipped = 0;                      // estimated mass of skipped clusters
  double total = 0;                        // estimated mass of all scanned keys
  uint32_t floor = kEveryKey;              // keys below are not in the bins
  uint32_t threshold = kNoKey;             // keys from here up are the head's own selection
  double exact = 0;                        // mass of fixed and own rows
  double estimated = 0;                    // what the codes said of the own rows
  int64_t rows = 0;                        // own rows, forced ones left out
  float norm = 0;                          // |q * scale|^2
  cpu::KeyRange range = {kNoKey, kNoKey};  // keys that are read in this round
  bool tail = false;                       // unread mass counts in the output
  cpu::CodeQuery query = {};               // but half_variance, which depends on the segment's bits
};

// What is known of one KV head.
struct CodedGroup {
  std::atomic<int> waiting[3];   // units of stages rank, budget and select that are not done
  bool everything = false;       // all rows are read: something was not finite, or most are needed
  int64_t scored = 0;            // clusters scored
  std::atomic<int64_t> scanned;  // blocks of codes read, in bytes
  std::atomic<int64_t> means;    // means of values read
  std::atomic<int> round_next;   // part to be claimed in this round of reading on
  std::atomic<int> round_left;   // parts of it that are not done
  int rounds = 0;                // how many there were
};

struct CodedStep {
  std::vector<CodedSegment> segments;    // of all requests, back to back
  std::atomic<int> next[4];              // units claimed, by stage
  std::atomic<int> unverified;           // KV heads whose selection is not settled
  std::vector<CodedHead> heads;          // [request][q_head]
  std::unique_ptr<CodedGroup[]> groups;  // [request][kv_head]
  int64_t group_capacity = 0;
  std::vector<int32_t> packed;  // [request][q_head][CodeQueryDim / 4]
  // [request][q_head][cluster], beside Step::scores
  std::vector<float> masses;  // estimated
  std::vector<float> tokens;  // log of what one member could have; scratch of the filter
  std::vector<float> floors;  // scratch of the filter
  std::vector<uint8_t> kept;  // [request][kv_head][cluster]: its codes are read
  // [request][q_head][key]
  std::vector<cpu::KeyLevel> keys;      // estimated logit + v / 2 - reference
  std::vector<float> logits;            // exact, of the rows listed, at the rows' places
  std::vector<cpu::KeyLevel> row_keys;  // of the rows listed, likewise
  // [request][kv_head][key]
  std::vector<uint32_t> numbers;  // of the rows listed: their key
  std::vector<uint64_t> read;     // one bit per key
  // [request][kv_head][key / kCodeBlock]: blocks that were scanned, by part; [..][part]: how many
  std::vector<uint32_t> blocks;
  std::vector<uint32_t> block_counts;
  // [request][kv_head][part][group]
  std::vector<cpu::MassBins> bins;
  std::vector<float> sums;
  // [request][kv_head][part][group]: SumRange of a part
  struct PartMass {
    double exact;
    double estimated;
    int64_t rows;
  };
  std::vector<PartMass> part_masses;
};

}  // namespace tactic

#endif  // TACTIC_SRC_CODED_H_
