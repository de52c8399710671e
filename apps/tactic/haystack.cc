#include "haystack.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <string_view>

#include "random.h"

namespace tactic::app {
namespace {

bool EndsSentence(std::string_view piece) {
  while (!piece.empty() && (piece.back() == '"' || piece.back() == '\'' || piece.back() == ')')) {
    piece.remove_suffix(1);
  }
  return !piece.empty() && std::string_view(".!?").find(piece.back()) != std::string_view::npos;
}

// Indices of tokens with which a sentence starts: what was before ends one, and there is a gap.
std::vector<int> SentenceStarts(const Model& model, std::span<const llama_token> tokens) {
  std::vector<int> starts;
  bool ended = false;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::string piece = model.Piece(tokens[i]);
    if (ended && !piece.empty() && (piece[0] == ' ' || piece[0] == '\n')) {
      starts.push_back(static_cast<int>(i));
    }
    ended = EndsSentence(piece);
  }
  return starts;
}

// The value of ascending `values` that differs least from `wanted`. REQUIRES: there is one.
int Nearest(const std::vector<int>& values, int wanted) {
  const auto above = std::lower_bound(values.begin(), values.end(), wanted);
  if (above == values.begin()) return *above;
  if (above == values.end() || wanted - *(above - 1) <= *above - wanted) return *(above - 1);
  return *above;
}

struct Place {
  int at;  // index of a token of the text; the piece comes before it
  size_t piece;
};

// In ascending order. `starts`: the sentences of a text of `text_size` tokens.
std::vector<Place> Choose(const std::vector<int>& starts, int text_size, size_t pieces,
                          Placing placing, Random* random) {
  std::vector<Place> places;
  if (placing == Placing::kRandom) {
    for (size_t i = 0; i < pieces; ++i) {
      const int64_t start = random->Below(static_cast<int64_t>(starts.size()));
      places.push_back({starts[static_cast<size_t>(start)], i});
    }
    std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
      return a.at != b.at ? a.at < b.at : a.piece < b.piece;
    });
    return places;
  }
  std::vector<size_t> order(pieces);
  for (size_t i = 0; i < pieces; ++i) order[i] = i;
  random->Shuffle(&order);
  for (size_t i = 0; i < pieces; ++i) {
    // The middle of the i-th of so many equal parts.
    const auto middle =
        static_cast<int>((2 * i + 1) * static_cast<size_t>(text_size) / (2 * pieces));
    places.push_back({Nearest(starts, middle), order[i]});
  }
  return places;
}

}  // namespace

Status HidePieces(const Model& model, const std::vector<llama_token>& book, int size,
                  const std::vector<std::string>& pieces, Placing placing, uint64_t seed,
                  Haystack* haystack) {
  std::vector<std::vector<llama_token>> needles;
  int text_size = size;
  for (const std::string& piece : pieces) {
    TACTIC_RETURN_IF_ERROR(model.Tokenize(piece, false, false, &needles.emplace_back()));
    text_size -= static_cast<int>(needles.back().size());
  }
  if (text_size < 1) {
    return Status::OutOfRange(
        fmt::format("{} pieces of text with {} tokens together cannot be hidden among {} tokens",
                    pieces.size(), size - text_size, size));
  }
  const auto too_short = [&] {
    return Status::OutOfRange(fmt::format(
        "the text has {} tokens, expected at least {} of whole sentences to hide {} pieces among "
        "{} tokens",
        book.size(), text_size, pieces.size(), size));
  };
  if (static_cast<int>(book.size()) < text_size) return too_short();

  Random random(seed);
  const std::vector<int> starts = SentenceStarts(model, book);
  const auto last =
      std::upper_bound(starts.begin(), starts.end(), static_cast<int>(book.size()) - text_size);
  if (last == starts.begin()) return too_short();
  const int start = starts[static_cast<size_t>(random.Below(last - starts.begin()))];
  const std::span<const llama_token> text(book.data() + start, static_cast<size_t>(text_size));
  const std::vector<int> sentences = SentenceStarts(model, text);
  if (sentences.empty()) return too_short();

  haystack->tokens.clear();
  haystack->depths.assign(pieces.size(), 0);
  const auto append = [&](std::span<const llama_token> tokens) {
    haystack->tokens.insert(haystack->tokens.end(), tokens.begin(), tokens.end());
  };
  size_t done = 0;
  for (const Place& place : Choose(sentences, text_size, pieces.size(), placing, &random)) {
    const auto at = static_cast<size_t>(place.at);
    append(text.subspan(done, at - done));
    haystack->depths[place.piece] = static_cast<double>(haystack->tokens.size()) / size;
    append(needles[place.piece]);
    done = at;
  }
  append(text.subspan(done));
  return Status::Ok();
}

}  // namespace tactic::app
