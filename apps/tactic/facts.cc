#include "facts.h"

#include <fmt/format.h>

#include <array>
#include <string_view>

#include "random.h"

namespace tactic::app {
namespace {

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

}  // namespace tactic::app
