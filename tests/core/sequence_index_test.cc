// SequenceIndex: what is indexed depends on the sequence alone, however it came about; forks share;
// aborted builds leave no trace.
#include "tactic/sequence_index.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "src/segment.h"
#include "tactic/thread_team.h"
#include "tests/core/rows.h"

namespace tactic {
namespace {

constexpr LayerShape kShape{4, 2, 8, 8};

Options TestOptions(int segment_size, int update_interval = 64) {
  Options options = Options::For(Mode::kPaper);
  options.segment_size = segment_size;
  options.update_interval = update_interval;
  options.cluster_size = 8;
  options.sinks = 3;
  options.recent = 20;
  return options;
}

// Key storage of an engine: cells are handed out at random and may be rewritten.
class Storage {
 public:
  explicit Storage(int cells) : rows_(ElementType::kF32, kShape.head_dim, kShape.kv_heads, cells) {
    for (int c = 0; c < cells; ++c) free_.push_back(static_cast<uint32_t>(c));
    std::shuffle(free_.begin(), free_.end(), random_);
  }
  uint32_t Take() {
    const uint32_t cell = free_.back();
    free_.pop_back();
    Rewrite(cell);
    return cell;
  }
  void Rewrite(uint32_t cell) {
    for (int h = 0; h < kShape.kv_heads; ++h) rows_.Set(cell, h, RandomRow(8, random_));
  }
  RowsView View() const { return rows_.View(); }

 private:
  std::mt19937 random_{7};
  Rows rows_;
  std::vector<uint32_t> free_;
};

struct Sequence {
  SequenceIndex index;
  std::vector<uint32_t> cells;
};

Sequence NewSequence(const Options& options, Storage* storage, int length) {
  Sequence sequence{SequenceIndex(kShape, options), {}};
  for (int i = 0; i < length; ++i) sequence.cells.push_back(storage->Take());
  sequence.index.Append(length);
  return sequence;
}

int Build(Sequence* sequence, const Storage& storage) {
  const int units = sequence->index.PlanBuild();
  for (int u = 0; u < units; ++u)
    sequence->index.BuildUnit(u, storage.View(), storage.View(), sequence->cells);
  return units;
}

void ExpectSameClusters(const Clusters& a, const Clusters& b) {
  EXPECT_EQ(a.count, b.count);
  EXPECT_EQ(a.always, b.always);
  EXPECT_EQ(a.centroids, b.centroids);
  EXPECT_EQ(a.starts, b.starts);
  EXPECT_EQ(a.members, b.members);
}

// Bit for bit what an index has that saw nothing but the present keys.
void ExpectAsFresh(const Sequence& sequence, const Storage& storage) {
  Sequence fresh{SequenceIndex(kShape, sequence.index.options()), sequence.cells};
  fresh.index.Append(std::ssize(sequence.cells));
  Build(&fresh, storage);
  ASSERT_EQ(sequence.index.size(), std::ssize(sequence.cells));
  const int usable = fresh.index.UsableSegments(fresh.index.size());
  ASSERT_EQ(sequence.index.UsableSegments(sequence.index.size()), usable);
  for (int j = 0; j < usable; ++j) {
    const Segment* a = sequence.index.segments()[j].get();
    const Segment* b = fresh.index.segments()[j].get();
    ASSERT_EQ(a == nullptr, b == nullptr) << j;
    if (a == nullptr) continue;
    ASSERT_TRUE(a->Filled());
    ASSERT_EQ(a->first(), b->first());
    ASSERT_EQ(a->end(), b->end());
    for (int h = 0; h < kShape.kv_heads; ++h) ExpectSameClusters(a->head(h), b->head(h));
  }
}

// One random edit of a sequence, as an engine would make it: cells, keys and index together.
void Edit(Sequence* s, Storage* storage, std::mt19937& random) {
  const auto size = static_cast<int64_t>(s->cells.size());
  const auto upto = [&](int64_t n) { return static_cast<int64_t>(random() % (n + 1)); };
  int64_t begin = upto(size);
  int64_t end = upto(size);
  if (begin > end) std::swap(begin, end);
  switch (random() % 6) {
    case 0:
    case 1: {
      const int64_t n = random() % 3 == 0 ? upto(200) : upto(10);
      for (int64_t i = 0; i < n; ++i) s->cells.push_back(storage->Take());
      s->index.Append(n);
      break;
    }
    case 2: {
      const int64_t keep = size - upto(std::min<int64_t>(size, 100));
      ASSERT_TRUE(s->index.Truncate(keep).ok());
      s->cells.resize(keep);
      break;
    }
    case 3:
      end = std::min(end, begin + 30);
      ASSERT_TRUE(s->index.RemoveRange(begin, end).ok());
      s->cells.erase(s->cells.begin() + begin, s->cells.begin() + end);
      break;
    case 4:
      end = std::min(end, begin + 5);
      for (int64_t p = begin; p < end; ++p) storage->Rewrite(s->cells[p]);
      ASSERT_TRUE(s->index.Invalidate(begin, end).ok());
      break;
    default: {  // a build that is aborted after some of its units
      const int units = s->index.PlanBuild();
      const int run = units == 0 ? 0 : static_cast<int>(random() % units);
      for (int u = 0; u < run; ++u)
        s->index.BuildUnit(u, storage->View(), storage->View(), s->cells);
    }
  }
}

TEST(SequenceIndex, AnyHistoryGivesTheIndexOfAFreshSequence) {
  for (const Options& options :
       {TestOptions(64), TestOptions(100), TestOptions(0, 64), TestOptions(0, 1)}) {
    std::mt19937 random(1);
    for (int repeat = 0; repeat < 6; ++repeat) {
      Storage storage(20000);
      Sequence sequence = NewSequence(options, &storage, static_cast<int>(random() % 500));
      for (int edit = 0; edit < 40; ++edit) {
        Edit(&sequence, &storage, random);
        if (random() % 2 == 0) continue;  // several edits before the next build
        Build(&sequence, storage);
        ASSERT_NO_FATAL_FAILURE(ExpectAsFresh(sequence, storage))
            << "segment_size " << options.segment_size << " edit " << edit;
        EXPECT_EQ(sequence.index.PlanBuild(), 0) << "up to date";
      }
    }
  }
}

// Edits that begin or end at the first or last position of a segment.
TEST(SequenceIndex, EditsAtBoundariesDropExactlyTheSegmentsTheyTouch) {
  for (int64_t begin : {63, 64, 65, 127, 128}) {
    for (int64_t end : {begin + 1, int64_t{128}, int64_t{129}, int64_t{192}}) {
      if (end <= begin) continue;
      Storage storage(1000);
      Sequence removed = NewSequence(TestOptions(64), &storage, 300);
      Build(&removed, storage);
      Sequence rewritten{removed.index.Fork(), removed.cells};
      ASSERT_TRUE(removed.index.RemoveRange(begin, end).ok());
      removed.cells.erase(removed.cells.begin() + begin, removed.cells.begin() + end);
      EXPECT_EQ(std::ssize(removed.index.segments()), begin / 64) << begin;
      Build(&removed, storage);
      EXPECT_NO_FATAL_FAILURE(ExpectAsFresh(removed, storage)) << begin << " " << end;

      ASSERT_TRUE(rewritten.index.Invalidate(begin, end).ok());
      for (int64_t j = 0; j < 4; ++j) {
        const bool touched = begin < 64 * (j + 1) && end > 64 * j;
        EXPECT_EQ(rewritten.index.segments()[j] == nullptr, touched) << begin << " " << end;
      }
      Sequence cut = NewSequence(TestOptions(64), &storage, 300);
      Build(&cut, storage);
      ASSERT_TRUE(cut.index.Truncate(begin).ok());
      EXPECT_EQ(std::ssize(cut.index.segments()), begin / 64) << begin;
    }
  }
}

TEST(SequenceIndex, ASegmentClosesOnceRecentPositionsFollow) {
  Storage storage(500);
  Sequence s = NewSequence(TestOptions(64), &storage, 64 + 19);
  EXPECT_EQ(s.index.PlanBuild(), 0);
  s.cells.push_back(storage.Take());
  s.index.Append(1);
  EXPECT_EQ(s.index.PlanBuild(), kShape.kv_heads);
  EXPECT_EQ(Build(&s, storage), kShape.kv_heads) << "planned again until it has run";
  ASSERT_EQ(s.index.segments().size(), 1u);
  EXPECT_EQ(s.index.segments()[0]->first(), 3) << "sinks are not clustered";
  EXPECT_EQ(s.index.segments()[0]->end(), 64);
  // A token that sees fewer positions may use it only if `recent` of them follow.
  EXPECT_EQ(s.index.UsableSegments(84), 1);
  EXPECT_EQ(s.index.UsableSegments(83), 0);
  EXPECT_EQ(s.index.UsableSegments(0), 0);
}

TEST(SequenceIndex, AWholeClusteringGrowsByTheUpdateInterval) {
  Storage storage(500);
  Sequence s = NewSequence(TestOptions(0, 64), &storage, 83);
  EXPECT_EQ(Build(&s, storage), 0);
  for (int size = 84; size <= 300; ++size) {
    s.cells.push_back(storage.Take());
    s.index.Append(1);
    const bool due = (size - 20) % 64 == 0;
    ASSERT_EQ(Build(&s, storage), due ? kShape.kv_heads : 0) << size;
    ASSERT_EQ(s.index.segments().size(), 1u);
    ASSERT_EQ(s.index.segments()[0]->end(), (size - 20) / 64 * 64);
  }
}

TEST(SequenceIndex, SinksMayFillWholeSegments) {
  Options options = TestOptions(64);
  options.sinks = 130;
  Storage storage(500);
  Sequence s = NewSequence(options, &storage, 300);
  EXPECT_EQ(Build(&s, storage), 2 * kShape.kv_heads);
  ASSERT_EQ(s.index.segments().size(), 4u);
  EXPECT_EQ(s.index.segments()[0], nullptr);
  EXPECT_EQ(s.index.segments()[1], nullptr);
  EXPECT_EQ(s.index.segments()[2]->first(), 130);
  EXPECT_EQ(s.index.UsableSegments(300), 4);
}

TEST(SequenceIndex, AForkSharesSegmentsAndThenGoesItsOwnWay) {
  Storage storage(1000);
  Sequence a = NewSequence(TestOptions(64), &storage, 300);
  Build(&a, storage);
  Sequence b{a.index.Fork(), a.cells};
  ASSERT_EQ(b.index.segments().size(), 4u);
  for (int j = 0; j < 4; ++j) EXPECT_EQ(a.index.segments()[j], b.index.segments()[j]);
  EXPECT_EQ(a.index.MemoryBytes(), b.index.MemoryBytes());
  EXPECT_EQ(b.index.PlanBuild(), 0);

  ASSERT_TRUE(b.index.Truncate(150).ok());
  b.cells.resize(150);
  for (int i = 0; i < 250; ++i) b.cells.push_back(storage.Take());
  b.index.Append(250);
  Build(&b, storage);
  EXPECT_EQ(a.index.segments()[1], b.index.segments()[1]);
  EXPECT_NE(a.index.segments()[2], b.index.segments()[2]);
  ASSERT_TRUE(a.index.Invalidate(0, 1).ok());
  EXPECT_EQ(a.index.segments()[0], nullptr);
  EXPECT_NE(b.index.segments()[0], nullptr);
  EXPECT_NO_FATAL_FAILURE(ExpectAsFresh(b, storage));
  Build(&a, storage);
  EXPECT_NO_FATAL_FAILURE(ExpectAsFresh(a, storage));
}

// The fork must not take what the other may still be filling for its own.
TEST(SequenceIndex, AForkDuringABuildPlansForItself) {
  Storage storage(500);
  Sequence a = NewSequence(TestOptions(64), &storage, 300);
  const int units = a.index.PlanBuild();
  a.index.BuildUnit(0, storage.View(), storage.View(), a.cells);
  Sequence b{a.index.Fork(), a.cells};
  EXPECT_EQ(Build(&b, storage), units);
  EXPECT_NO_FATAL_FAILURE(ExpectAsFresh(b, storage));
  for (int u = 1; u < units; ++u) a.index.BuildUnit(u, storage.View(), storage.View(), a.cells);
  EXPECT_NO_FATAL_FAILURE(ExpectAsFresh(a, storage));
}

TEST(SequenceIndex, UnitsMayRunOnAnyThreads) {
  Storage storage(1000);
  Sequence s = NewSequence(TestOptions(64), &storage, 900);
  const int units = s.index.PlanBuild();
  std::unique_ptr<ThreadTeam> team;
  ASSERT_TRUE(ThreadTeam::Create(3, &team).ok());
  team->Run([&](int thread) {
    for (int u = thread; u < units; u += 3)
      s.index.BuildUnit(u, storage.View(), storage.View(), s.cells);
  });
  EXPECT_NO_FATAL_FAILURE(ExpectAsFresh(s, storage));
}

// The same keys in two segments and two heads: each draws samples of its own, others with another
// seed. One iteration: the samples still show.
TEST(SequenceIndex, EverySegmentAndHeadDrawsItsOwnSamples) {
  constexpr int kLength = 3 * 64 + 20;
  std::mt19937 random(5);
  Rows keys(ElementType::kF32, 8, 2, kLength);
  std::vector<std::vector<float>> rows;
  for (int i = 0; i < 64; ++i) rows.push_back(RandomRow(8, random));
  std::vector<uint32_t> cells;
  for (int p = 0; p < kLength; ++p) {
    cells.push_back(static_cast<uint32_t>(p));
    for (int h = 0; h < 2; ++h) keys.Set(p, h, rows[p % 64]);
  }
  const auto centroids = [&](uint64_t seed, int segment, int head) {
    Options options = TestOptions(64);
    options.kmeans_iterations = 1;
    options.seed = seed;
    SequenceIndex index(kShape, options);
    index.Append(kLength);
    const int units = index.PlanBuild();
    for (int u = 0; u < units; ++u) index.BuildUnit(u, keys.View(), keys.View(), cells);
    return index.segments()[segment]->head(head).centroids;
  };
  EXPECT_EQ(centroids(1, 1, 0), centroids(1, 1, 0));
  EXPECT_NE(centroids(1, 1, 0), centroids(1, 2, 0));
  EXPECT_NE(centroids(1, 1, 0), centroids(1, 1, 1));
  EXPECT_NE(centroids(1, 1, 0), centroids(2, 1, 0));
}

TEST(SequenceIndex, MemoryIsThatOfTheSegments) {
  Storage storage(500);
  Sequence s = NewSequence(TestOptions(64), &storage, 300);
  EXPECT_EQ(s.index.MemoryBytes(), 0u);
  Build(&s, storage);
  const size_t all = s.index.MemoryBytes();
  // Per segment and head: centroids in f16 for 16 slots, their starts, the members' offsets.
  const size_t least = 4 * 2 * (16 * 8 * 2 + 17 * 4 + 61 * 2);
  EXPECT_GE(all, least);
  EXPECT_LE(all, 2 * least);
  ASSERT_TRUE(s.index.Truncate(70).ok());
  EXPECT_LT(s.index.MemoryBytes(), all / 2);
}

TEST(SequenceIndex, ARangeOutsideOfTheSequenceIsNamed) {
  SequenceIndex index(kShape, TestOptions(64));
  index.Append(10);
  const auto expect = [](const Status& status, const std::string& message) {
    EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
    EXPECT_EQ(status.message(), message);
  };
  const std::string rule = " are not within the sequence; expected 0 <= begin <= end <= 10";
  expect(index.RemoveRange(-1, 5), "positions [-1, 5)" + rule);
  expect(index.RemoveRange(6, 5), "positions [6, 5)" + rule);
  expect(index.RemoveRange(0, 11), "positions [0, 11)" + rule);
  expect(index.Invalidate(3, 11), "positions [3, 11)" + rule);
  expect(index.Truncate(11), "n is 11; expected a number of positions from 0 to 10");
  expect(index.Truncate(-1), "n is -1; expected a number of positions from 0 to 10");
  EXPECT_EQ(index.size(), 10) << "a refused call changes nothing";
  EXPECT_TRUE(index.RemoveRange(10, 10).ok());
  EXPECT_TRUE(index.Invalidate(0, 10).ok());
  EXPECT_TRUE(index.Truncate(10).ok());
  EXPECT_TRUE(index.Truncate(0).ok());
  EXPECT_EQ(index.size(), 0);
}

}  // namespace
}  // namespace tactic
