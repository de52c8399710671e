#include "facts.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <random>
#include <span>
#include <string_view>

namespace tactic::app {
namespace {

// std::uniform_int_distribution differs between standard libraries; this does not.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t Below(int64_t bound) {
    return static_cast<int64_t>(engine_() % static_cast<uint64_t>(bound));
  }
  template <typename T>
  void Shuffle(std::vector<T>* values) {
    for (size_t i = values->size(); i > 1; --i) {
      std::swap((*values)[i - 1], (*values)[static_cast<size_t>(Below(static_cast<int64_t>(i)))]);
    }
  }

 private:
  std::mt19937_64 engine_;
};

// Held out: none of these occur in the adapter's training data.
constexpr std::array<std::string_view, 10> kPeople = {
    "Beatrix Halloran", "Casimir Doyle",     "Odette Lindqvist",  "Barnaby Wexler",
    "Philippa Grange",  "Leopold Arkwright", "Rosalind Tremaine", "Cornelius Pike",
    "Henrietta Voss",   "Ambrose Kettering"};
constexpr std::array<std::string_view, 10> kCities = {
    "Antwerp",   "Marseille", "Salzburg", "Aberdeen", "Valencia",
    "Rotterdam", "Cardiff",   "Palermo",  "Gdansk",   "Adelaide"};
constexpr std::array<std::string_view, 8> kPlaces = {"lighthouse", "observatory", "armory",
                                                     "granary",    "chapel",      "brewery",
                                                     "pavilion",   "signal house"};
constexpr std::array<std::string_view, 8> kShips = {"Meridian",  "Halcyon", "Calliope", "Tempest",
                                                    "Sovereign", "Osprey",  "Nightjar", "Corsair"};
constexpr std::array<std::string_view, 6> kTopics = {"aqueduct",    "telegraph", "granite quarry",
                                                     "opera house", "ferry",     "botanical tour"};
constexpr std::array<std::string_view, 6> kSpices = {"cardamom", "turmeric", "paprika",
                                                     "tarragon", "aniseed",  "caraway"};

class FactMaker {
 public:
  explicit FactMaker(uint64_t seed) : random_(seed) {}

  Fact Make(int kind) {
    const std::string person(Pick(kPeople)), city(Pick(kCities));
    switch (kind) {
      case 0: {
        const std::string where = fmt::format("the {} in {}", Pick(kPlaces), city);
        const std::string value = Digits(5);
        return {fmt::format("The access code to {} is {}.", where, value),
                fmt::format("What is the access code to {}?", where), value};
      }
      case 1: {
        const std::string value =
            fmt::format("{}:{:02d}", 1 + random_.Below(12), random_.Below(60));
        return {fmt::format("The train to {} leaves at {} from platform {}.", city, value,
                            1 + random_.Below(39)),
                fmt::format("At what time does the train to {} leave?", city), value};
      }
      case 2: {
        const std::string value = Digits(3) + "-" + Digits(4);
        return {fmt::format("The telephone number of {} is {}.", person, value),
                fmt::format("What is the telephone number of {}?", person), value};
      }
      case 3: {
        const std::string ship(Pick(kShips)), value = fmt::format("{}", 1600 + random_.Below(390));
        return {fmt::format("The ship {} sank near {} in {}.", ship, city, value),
                fmt::format("In which year did the ship {} sink?", ship), value};
      }
      case 4: {
        const std::string topic(Pick(kTopics)), value = Digits(3);
        return {fmt::format("The meeting about the {} takes place on May {}, {} in room {}.", topic,
                            1 + random_.Below(28), 1850 + random_.Below(180), value),
                fmt::format("In which room does the meeting about the {} take place?", topic),
                value};
      }
      case 5: {
        const std::string value(Pick(kCities));
        return {fmt::format("The favorite city of {} is {}.", person, value),
                fmt::format("What is the favorite city of {}?", person), value};
      }
      case 6: {
        const std::string spice(Pick(kSpices)), value = fmt::format("{}", 11 + random_.Below(29));
        return {fmt::format("The recipe of {} needs {} spoons of {}.", person, value, spice),
                fmt::format("How many spoons of {} does the recipe of {} need?", spice, person),
                value};
      }
      default: {
        const std::string value = Digits(5);
        return {fmt::format("The pass key is {}. Remember it. {} is the pass key.", value, value),
                "What is the pass key?", value};
      }
    }
  }

 private:
  template <size_t kCount>
  std::string_view Pick(const std::array<std::string_view, kCount>& names) {
    return names[static_cast<size_t>(random_.Below(kCount))];
  }
  std::string Digits(int count) {
    std::string digits(1, static_cast<char>('1' + random_.Below(9)));
    while (static_cast<int>(digits.size()) < count) {
      digits += static_cast<char>('0' + random_.Below(10));
    }
    return digits;
  }
  Random random_;
};

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

}  // namespace

std::vector<Fact> MakeFacts(int count, uint64_t seed) {
  std::vector<int> kinds(kMostFacts);
  for (int i = 0; i < kMostFacts; ++i) kinds[static_cast<size_t>(i)] = i;
  Random(seed).Shuffle(&kinds);
  FactMaker maker(seed + 1);
  std::vector<Fact> facts;
  for (int i = 0; i < count; ++i) facts.push_back(maker.Make(kinds[static_cast<size_t>(i)]));
  return facts;
}

Status HideFacts(const Model& model, const std::vector<llama_token>& book, int size,
                 const std::vector<Fact>& facts, uint64_t seed, Haystack* haystack) {
  std::vector<std::vector<llama_token>> needles;
  int text_size = size;
  for (const Fact& fact : facts) {
    TACTIC_RETURN_IF_ERROR(
        model.Tokenize(" " + fact.sentence, false, false, &needles.emplace_back()));
    text_size -= static_cast<int>(needles.back().size());
  }
  const auto too_short = [&] {
    return Status::OutOfRange(
        fmt::format("the text has {} tokens, expected at least {} to hide {} facts among {} tokens",
                    book.size(), text_size, facts.size(), size));
  };
  if (text_size < 1 || static_cast<int>(book.size()) < text_size) return too_short();

  Random random(seed + 2);
  const std::vector<int> starts = SentenceStarts(model, book);
  const auto last =
      std::upper_bound(starts.begin(), starts.end(), static_cast<int>(book.size()) - text_size);
  if (last == starts.begin()) return too_short();
  const int start = starts[static_cast<size_t>(random.Below(last - starts.begin()))];
  const std::span<const llama_token> text(book.data() + start, static_cast<size_t>(text_size));
  const std::vector<int> places = SentenceStarts(model, text);
  if (places.empty()) return too_short();

  struct Needle {
    int place;
    size_t fact;
  };
  std::vector<Needle> order;
  for (size_t i = 0; i < facts.size(); ++i) {
    order.push_back(
        {places[static_cast<size_t>(random.Below(static_cast<int64_t>(places.size())))], i});
  }
  std::sort(order.begin(), order.end(), [](const Needle& a, const Needle& b) {
    return a.place != b.place ? a.place < b.place : a.fact < b.fact;
  });
  haystack->tokens.clear();
  haystack->depths.assign(facts.size(), 0);
  size_t done = 0;
  for (const Needle& needle : order) {
    const auto place = static_cast<size_t>(needle.place);
    haystack->tokens.insert(haystack->tokens.end(),
                            text.begin() + static_cast<std::ptrdiff_t>(done),
                            text.begin() + static_cast<std::ptrdiff_t>(place));
    haystack->depths[needle.fact] = static_cast<double>(haystack->tokens.size()) / size;
    haystack->tokens.insert(haystack->tokens.end(), needles[needle.fact].begin(),
                            needles[needle.fact].end());
    done = place;
  }
  haystack->tokens.insert(haystack->tokens.end(), text.begin() + static_cast<std::ptrdiff_t>(done),
                          text.end());
  return Status::Ok();
}

}  // namespace tactic::app
