#include "llama/src/cell_tracker.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace tactic::llama {
namespace {

constexpr uint64_t kUnknownPrint = 0;
// Sequences remembered besides those of the current batch: rolled-back branches and sequences that
// pause.
constexpr size_t kSpareTracks = 16;
// Bytes of a key that are fingerprinted: the first dimensions turn fastest with the position, so a
// shift shows there.
constexpr size_t kPrintBytes = 16;

constexpr uint16_t kHalfZero = 0;
constexpr uint16_t kHalfMinusInf = 0xFC00;

// Removes the elements of `list` whose ordinal is in the ascending list `gone`.
template <class T>
void EraseOrdinals(const std::vector<size_t>& gone, std::vector<T>* list) {
  size_t to = gone.front();
  size_t next = 0;
  for (size_t from = gone.front(); from < list->size(); ++from) {
    if (next < gone.size() && gone[next] == from) {
      ++next;
    } else {
      (*list)[to++] = (*list)[from];
    }
  }
  list->resize(to);
}

}  // namespace

bool CellSet::ReadMask(const uint16_t* mask, int64_t n) {
  bits_.assign(static_cast<size_t>((n + 63) / 64), 0);
  bool understood = true;
  for (int64_t begin = 0; begin < n; begin += 64) {
    uint64_t word = 0;
    const int64_t count = std::min<int64_t>(64, n - begin);
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t m = mask[begin + i];
      word |= static_cast<uint64_t>(m == kHalfZero) << i;
      understood = understood && (m == kHalfZero || m == kHalfMinusInf);
    }
    bits_[static_cast<size_t>(begin / 64)] = word;
  }
  return understood;
}

void CellSet::Add(int64_t cell) {
  const auto word = static_cast<size_t>(cell / 64);
  if (word >= bits_.size()) bits_.resize(word + 1, 0);
  bits_[word] |= uint64_t{1} << (cell % 64);
}

int64_t CellSet::Count() const {
  int64_t count = 0;
  for (uint64_t word : bits_) count += std::popcount(word);
  return count;
}

int64_t CellSet::CountMissingFrom(const CellSet& other) const {
  int64_t count = 0;
  for (size_t w = 0; w < bits_.size(); ++w) {
    count += std::popcount(bits_[w] & ~(w < other.bits_.size() ? other.bits_[w] : 0));
  }
  return count;
}

void CellTracker::SetPrintSource(const RowsView& keys, size_t row_bytes) {
  if (keys.data == print_keys_.data && keys.row_stride == print_keys_.row_stride) return;
  print_keys_ = keys;
  print_bytes_ = std::min(kPrintBytes, row_bytes);
  // Fingerprints of another layer say nothing about this one's.
  for (auto& track : tracks_) {
    for (size_t p = 0; p < std::min(track->unprinted, track->cells.size()); ++p)
      track->prints[p] = Print(track->cells[p]);
  }
}

uint64_t CellTracker::Print(uint32_t cell) const {
  if (print_keys_.data == nullptr) return kUnknownPrint;
  uint64_t half[2] = {0, 0};
  std::memcpy(half, print_keys_.data + cell * print_keys_.row_stride, print_bytes_);
  uint64_t h = (half[0] ^ std::rotl(half[1], 32)) * 0x9E3779B97F4A7C15u;
  h = (h ^ (h >> 29) ^ half[1]) * 0xBF58476D1CE4E5B9u;
  h ^= h >> 32;
  return h == kUnknownPrint ? 1 : h;
}

void CellTracker::RecordPrints() {
  for (auto& track : tracks_) {
    for (size_t p = track->unprinted; p < track->cells.size(); ++p)
      track->prints[p] = Print(track->cells[p]);
    track->unprinted = track->cells.size();
  }
}

Track* CellTracker::Match(int64_t base, const CellSet& visible) {
  Track* best = nullptr;
  int64_t best_removed = 0;
  int64_t best_difference = 0;
  for (auto& track : tracks_) {
    if (track->base != base) continue;
    const int64_t removed = track->set.CountMissingFrom(visible);
    const int64_t difference = removed + visible.CountMissingFrom(track->set);
    if (best == nullptr || difference < best_difference) {
      best = track.get();
      best_removed = removed;
      best_difference = difference;
    }
  }
  // Less than half in common: another sequence, whose index would have to be rebuilt anyway.
  const bool same = best != nullptr && 2 * best_removed < std::ssize(best->cells);
  if (same && best_removed == 0) return best;
  // A sequence that lost cells may have been rolled back, or be a branch of one that goes on: keep
  // the other as it was. Its segments are shared, so this costs a copy of the list.
  auto track = same ? std::make_unique<Track>(*best) : std::make_unique<Track>();
  track->base = base;
  tracks_.push_back(std::move(track));
  return tracks_.back().get();
}

void CellTracker::Apply(Track* track, const CellSet& visible, std::span<const int64_t> written) {
  const auto relative = [&](uint32_t cell) { return static_cast<int64_t>(cell) - track->base; };
  CellSet rewritten;
  for (int64_t cell : written) {
    if (cell >= track->base) rewritten.Add(cell - track->base);
  }
  std::vector<size_t> gone;
  for (size_t p = 0; p < track->cells.size(); ++p) {
    const int64_t cell = relative(track->cells[p]);
    if (!visible.Has(cell) || rewritten.Has(cell)) gone.push_back(p);
  }
  if (!gone.empty()) {
    ++edits_;
    for (size_t p : gone) track->set.Remove(relative(track->cells[p]));
    for (auto& [key, index] : track->indexes) {
      // Runs of positions, the last first so that earlier ones keep their numbers.
      for (size_t end = gone.size(); end > 0;) {
        size_t begin = end - 1;
        while (begin > 0 && gone[begin - 1] + 1 == gone[begin]) --begin;
        (void)index.RemoveRange(static_cast<int64_t>(gone[begin]),
                                static_cast<int64_t>(gone[end - 1]) + 1);
        end = begin;
      }
    }
    EraseOrdinals(gone, &track->cells);
    EraseOrdinals(gone, &track->prints);
    track->unprinted = std::min(track->unprinted, track->cells.size());
  }

  // What is still there must still be what it was.
  if (print_keys_.data != nullptr) {
    bool changed = false;
    for (size_t p = 0; p < track->cells.size(); ++p) {
      const uint64_t print = Print(track->cells[p]);
      if (print == track->prints[p]) continue;
      changed = true;
      track->prints[p] = print;
      for (auto& [key, index] : track->indexes) {
        (void)index.Invalidate(static_cast<int64_t>(p), static_cast<int64_t>(p) + 1);
      }
    }
    edits_ += changed ? 1 : 0;
  }

  // New cells: those of this batch in its order, after any that appeared otherwise (a state that
  // was loaded, a copy).
  std::vector<uint32_t> added;
  visible.ForEach([&](int64_t cell) {
    if (!track->set.Has(cell)) added.push_back(static_cast<uint32_t>(track->base + cell));
  });
  std::stable_sort(added.begin(), added.end(),
                   [&](uint32_t a, uint32_t b) { return stamps_[a] < stamps_[b]; });
  if (!track->cells.empty() && added.size() > written.size()) ++edits_;
  for (uint32_t cell : added) {
    track->cells.push_back(cell);
    track->prints.push_back(rewritten.Has(relative(cell)) ? kUnknownPrint : Print(cell));
    track->set.Add(relative(cell));
  }
  // Keys of this batch are not written yet; stamps put them last.
  size_t first_new = track->cells.size();
  while (first_new > 0 && rewritten.Has(relative(track->cells[first_new - 1]))) --first_new;
  track->unprinted = first_new;
  for (auto& [key, index] : track->indexes) index.Append(std::ssize(added));
  track->last_used = clock_;
}

bool CellTracker::Update(const BatchView& batch, bool all_rows, std::vector<TrackedRow>* rows) {
  rows->clear();
  for (int64_t cell : batch.written) {
    if (cell >= std::ssize(stamps_)) stamps_.resize(static_cast<size_t>(cell) + 1, 0);
    stamps_[static_cast<size_t>(cell)] = ++clock_;
  }
  ++clock_;
  for (int64_t s = 0; s < batch.streams; ++s) {
    const int64_t base = batch.stream_base[s];
    const auto needed = static_cast<size_t>(base + batch.num_cells);
    if (stamps_.size() < needed) stamps_.resize(needed, 0);
    const std::span<const int64_t> written = batch.written.subspan(s * batch.tokens, batch.tokens);
    std::vector<Track*> track_of(batch.tokens, nullptr);
    std::vector<CellSet> sets(all_rows ? batch.tokens : 0);
    CellSet scratch;
    for (int64_t t = batch.tokens - 1; t >= 0; --t) {
      if (!all_rows && track_of[t] != nullptr) continue;
      CellSet& visible = all_rows ? sets[t] : scratch;
      const uint8_t* row = batch.mask + t * batch.mask_row_bytes + s * batch.mask_stream_bytes;
      if (!visible.ReadMask(reinterpret_cast<const uint16_t*>(row), batch.num_cells)) return false;
      if (track_of[t] != nullptr || !visible.Has(written[t] - base)) continue;
      // The last row of its sequence in this batch: earlier tokens it sees belong to the same one.
      Track* track = Match(base, visible);
      Apply(track, visible, written);
      for (int64_t u = 0; u <= t; ++u) {
        if (track_of[u] == nullptr && visible.Has(written[u] - base)) track_of[u] = track;
      }
      if (!all_rows) rows->push_back({track, std::ssize(track->cells), {}});
    }
    if (!all_rows) continue;
    for (int64_t t = 0; t < batch.tokens; ++t) {
      TrackedRow row;
      const int64_t count = sets[t].Count();
      Track* track = track_of[t];
      bool prefix = track != nullptr && count <= std::ssize(track->cells) &&
                    sets[t].CountMissingFrom(track->set) == 0;
      if (prefix) {
        for (size_t p = static_cast<size_t>(count); p < track->cells.size(); ++p) {
          prefix = prefix && !sets[t].Has(static_cast<int64_t>(track->cells[p]) - base);
        }
      }
      if (prefix) {
        row.track = track;
        row.num_tokens = count;
      } else {
        sets[t].ForEach([&](int64_t cell) {
          row.explicit_cells.push_back(static_cast<uint32_t>(base + cell));
        });
      }
      rows->push_back(std::move(row));
    }
  }
  Evict();
  return true;
}

void CellTracker::Evict() {
  size_t current = 0;
  for (const auto& track : tracks_) current += track->last_used == clock_ ? 1 : 0;
  while (tracks_.size() > current + kSpareTracks) {
    const auto oldest =
        std::min_element(tracks_.begin(), tracks_.end(),
                         [](const auto& a, const auto& b) { return a->last_used < b->last_used; });
    tracks_.erase(oldest);
  }
}

void CellTracker::InvalidateAll() {
  ++edits_;
  for (auto& track : tracks_) {
    for (auto& [key, index] : track->indexes) (void)index.Invalidate(0, index.size());
  }
}

void CellTracker::DropIndexes(Mode mode) {
  for (auto& track : tracks_) {
    std::erase_if(track->indexes, [&](const auto& entry) { return entry.first.first == mode; });
  }
}

size_t CellTracker::IndexBytes(Mode mode) const {
  size_t bytes = 0;
  for (const auto& track : tracks_) {
    if (track->last_used != clock_) continue;
    for (const auto& [key, index] : track->indexes)
      bytes += key.first == mode ? index.MemoryBytes() : 0;
    bytes +=
        track->cells.capacity() * sizeof(uint32_t) + track->prints.capacity() * sizeof(uint64_t);
  }
  return bytes;
}

}  // namespace tactic::llama
