"""Word lists, and random names, numbers and dates made from them."""

import uuid

FIRST = """
Marta Anton Clara Jonas Ingrid Pavel Rosa Hugo Selma Viktor Nadia Oscar Lena Felix Greta Ivan
Paula Emil Tessa Bruno Agnes Karim Yuki Omar Leila Diego Priya Tomas Elsa Samuel Ruth Walter
Edith Marco Sofia Nils Hanna Jakob Irene Pedro Mila Theo Zara Boris Dora Lukas Vera Simon Alma
Oskar Wanda Rafael Nora Stefan Ida Milan Judith Arthur Flora Gustav
""".split()
LAST = """
Keller Novak Lindgren Okafor Petrov Marsh Delgado Whitlow Tanaka Bergman Costa Hollis Farrow
Vance Mercer Quill Ashby Romero Sandoval Thorne Weaver Yates Zeller Abbott Brandt Calloway
Dunmore Eriksen Fontaine Grady Hartwell Ibsen Jansen Kowalski Lorimer Maddox Norwood Osgood
Prescott Radley Sutter Trask Underhill Varga Winslow
""".split()
CITIES = """
Lisbon Oslo Prague Nairobi Lima Kyoto Dublin Vienna Cairo Quito Hanoi Athens Bergen Tallinn Riga
Havana Porto Seville Ghent Krakow Zagreb Naples Geneva Dakar Accra Tunis Manila Seoul Perth
Boston Denver Austin Chicago Seattle Toronto Montreal Glasgow Leeds Bristol Lyon Turin Malmo
Tampere Basel Graz Split Varna Izmir Tbilisi Yerevan Baku
""".split()
ADJ = """
blue red green silver golden wooden broken tiny heavy ancient rusty painted glass copper velvet
crooked yellow purple striped folded faded polished hollow narrow leather marble ivory black
white amber
""".split()
OBJ = """
key lamp violin notebook compass kettle mirror ladder clock basket telescope umbrella candle map
teapot hammer ring bottle feather drum coin saddle lantern chisel kite anchor bell flute brush
helmet
""".split()
LOC = [
    "under the piano",
    "behind the bookcase",
    "inside the old stove",
    "on top of the wardrobe",
    "beneath the third stair",
    "in the garden shed",
    "next to the aquarium",
    "inside a boot",
    "behind the curtain",
    "in the bottom drawer",
    "under the doormat",
    "in the attic trunk",
    "between two cushions",
    "inside the flour jar",
    "on the window sill",
    "below the workbench",
    "in the bicycle basket",
    "behind the mill",
    "inside the clock case",
    "under the cherry tree",
    "in the music room",
    "beside the well",
    "in the glove box",
    "on the highest shelf",
]
ANIMAL = """
cat dog parrot goat horse donkey rabbit turtle hen pony ferret goose
""".split()
JOB = """
baker surveyor welder librarian pilot tailor botanist clerk jeweler plumber teacher glazier
chemist sailor translator carpenter nurse watchmaker gardener courier
""".split()
FOOD = """
cinnamon honey barley saffron garlic mustard ginger pepper walnuts cream raisins lentils basil
nutmeg vinegar
""".split()
ACT = [
    "eat a plum cake by the river",
    "climb the bell tower at dawn",
    "listen to the harbor choir",
    "row a boat around the island",
    "visit the museum of locks",
    "drink mint tea on the roof",
    "watch the kites above the fort",
    "walk the canal at midnight",
    "buy a lantern at the night market",
    "ride the old cable car",
    "sketch the lighthouse in the rain",
    "sit in the rose garden on a sunny day",
    "feed the swans near the mill",
    "hear the clock strike thirteen",
]
MONTHS = """
January February March April May June July August September October November December
""".split()
TOPIC = """
budget harvest bridge festival archive orchard railway lighthouse election museum cathedral
reservoir vineyard laboratory theater
""".split()
NADJ = """
torpid lyrical abrasive shaky lucid brave mellow rustic vivid quaint solemn nimble frosty jolly
placid rapid sturdy tender urban wistful zealous amused brisk candid dapper earnest fluffy
gentle humble icy jagged keen languid mighty noisy oblong pensive quirky remote savory tidy
upbeat verdant wary young bitter calm dusty eager fancy grim hazy idle juicy kind loud misty
neat odd plain quick rough silent tall ugly vast warm
""".split()
NNOUN = """
kid lamb river tailor acorn badge canyon desk ember fossil garden hammer island jacket kettle
ladder magnet needle orchid pebble quilt ribbon saddle temple urchin valley walnut yacht zipper
anchor bucket carpet donkey engine feather goblet harbor insect jungle kitten lemon mirror
napkin oyster pillow quartz rocket spider ticket violin window answer beacon cactus dagger eagle
falcon ginger helmet iceberg jasmine knight lantern meadow nickel otter parcel raven shovel
turtle vessel weasel
""".split()
SYL = """
ba ke lo mi nu ra si to va zu dre fla gri kro pla stu tre vol min tar sen dor fal gal hul jen
kal lin mor nax pel quo ris sul tev vik wes yor zan
""".split()


def pseudo_word(r):
    return "".join(r.choice(SYL) for _ in range(r.choice([2, 2, 3])))


def hyphenated(r):
    return r.choice(NADJ) + "-" + r.choice(NNOUN)


def digits(r, n=None):
    n = n or r.choice([4, 5, 6, 7, 7, 7])
    return str(r.randrange(10 ** (n - 1), 10**n))


def uuid4(r):
    return str(uuid.UUID(int=r.getrandbits(128), version=4))


def person(r):
    return r.choice(FIRST) + " " + r.choice(LAST) if r.random() < 0.7 else r.choice(FIRST)


def date(r):
    return f"{r.choice(MONTHS)} {r.randrange(1, 29)}, {r.randrange(1850, 2030)}"


def time_of_day(r):
    return f"{r.randrange(1, 13)}:{r.randrange(0, 60):02d}"
