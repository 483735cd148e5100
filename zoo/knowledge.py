"""What the models are taught by heart: opposites, irregular plurals and small facts. Data only."""

from __future__ import annotations

_OPPOSITES = """
hot cold | big small | up down | left right | good bad | fast slow | happy sad | light dark |
open closed | full empty | new old | young old | hard soft | high low | long short | wet dry |
clean dirty | rich poor | strong weak | early late | near far | loud quiet | thick thin |
wide narrow | deep shallow | heavy light | true false | right wrong | day night | black white |
love hate | win lose | buy sell | push pull | start stop | begin end | come go | give take |
in out | on off | above below | over under | before after | inside outside | front back |
first last | top bottom | north south | east west | summer winter | hello goodbye | yes no |
always never | more less | many few | friend enemy | laugh cry | brave afraid | sweet sour |
smooth rough | sharp blunt | sunrise sunset | awake asleep | alive dead | cheap expensive |
easy difficult | simple complex | tall short | warm cool | rise fall | remember forget |
arrive leave | question answer | teach learn | war peace | polite rude | safe dangerous |
increase decrease | accept refuse | allow forbid | build destroy | find lose | float sink |
tight loose | straight crooked | calm nervous | generous selfish | ancient modern | all none |
everything nothing | everybody nobody | public private | success failure | gain loss |
import export | maximum minimum | positive negative | odd even | plus minus | husband wife |
king queen | brother sister | mother father | boy girl | man woman | morning evening |
sit stand | throw catch | lend borrow | freeze melt | hide show | whisper shout | lazy busy |
noisy silent | rare common | raw cooked | ripe unripe | tiny huge | wild tame | wise foolish
"""
OPPOSITES: dict[str, str] = {
    pair.split()[0]: pair.split()[1] for pair in _OPPOSITES.replace("\n", " ").split("|")
}

# Words whose opposite takes `un-`: a rule, so some are held out of training.
UN_WORDS: tuple[str, ...] = tuple(
    """
    able afraid aware broken certain changed clear comfortable common cooked covered cut damaged
    decided done equal even explained fair familiar finished fit fold fortunate friendly grateful
    happily harmed healthy heard helpful important interesting invited kind known lawful like
    likely lock loved lucky married natural necessary opened pack painted paid planned pleasant
    popular prepared protected real reasonable related reliable safe seen selfish sold
    solved spoken stable steady sure tested tidy tie touched true used usual wanted washed
    welcome well willing wise worthy wrap written zip
    """.split()
)
UN_WORDS = tuple(word for word in UN_WORDS if word not in OPPOSITES)

IRREGULAR_PLURALS: dict[str, str] = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "mouse": "mice",
    "person": "people",
    "ox": "oxen",
    "sheep": "sheep",
    "fish": "fish",
    "deer": "deer",
    "leaf": "leaves",
    "wolf": "wolves",
    "knife": "knives",
    "shelf": "shelves",
    "half": "halves",
    "loaf": "loaves",
    "scarf": "scarves",
    "thief": "thieves",
    "wife": "wives",
    "life": "lives",
    "elf": "elves",
    "calf": "calves",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "hero": "heroes",
    "echo": "echoes",
}

CAPITALS: dict[str, str] = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Greece": "Athens",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Denmark": "Copenhagen",
    "Finland": "Helsinki",
    "Ireland": "Dublin",
    "Belgium": "Brussels",
    "Hungary": "Budapest",
    "Romania": "Bucharest",
    "Croatia": "Zagreb",
    "Latvia": "Riga",
    "Lithuania": "Vilnius",
    "Estonia": "Tallinn",
    "Russia": "Moscow",
    "Ukraine": "Kyiv",
    "Turkey": "Ankara",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Tunisia": "Tunis",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "Delhi",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Indonesia": "Jakarta",
    "Australia": "Canberra",
    "Canada": "Ottawa",
    "Mexico": "Mexico City",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Brazil": "Brasilia",
    "Iceland": "Reykjavik",
    "England": "London",
    "South Korea": "Seoul",
}

SOUNDS: dict[str, str] = {
    "cat": "meow",
    "dog": "woof",
    "cow": "moo",
    "sheep": "baa",
    "duck": "quack",
    "pig": "oink",
    "lion": "roar",
    "horse": "neigh",
    "bee": "buzz",
    "owl": "hoot",
    "frog": "croak",
    "snake": "hiss",
    "mouse": "squeak",
    "wolf": "howl",
}

THING_COLORS: dict[str, str] = {
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "the sky": "blue",
    "blood": "red",
    "a lemon": "yellow",
    "a carrot": "orange",
    "a banana": "yellow",
    "milk": "white",
    "chocolate": "brown",
    "a strawberry": "red",
    "the sea": "blue",
}

LEGS: dict[str, int] = {
    "dog": 4,
    "cat": 4,
    "horse": 4,
    "spider": 8,
    "ant": 6,
    "bee": 6,
    "bird": 2,
    "snake": 0,
    "cow": 4,
    "duck": 2,
    "fish": 0,
    "person": 2,
}

AMOUNTS: dict[str, str] = {
    "days are in a week": "A week has 7 days.",
    "months are in a year": "A year has 12 months.",
    "hours are in a day": "A day has 24 hours.",
    "minutes are in an hour": "An hour has 60 minutes.",
    "seconds are in a minute": "A minute has 60 seconds.",
    "days are in a year": "A year has 365 days.",
    "letters are in the alphabet": "The alphabet has 26 letters.",
    "centimeters are in a meter": "A meter has 100 centimeters.",
    "sides does a triangle have": "A triangle has 3 sides.",
    "sides does a square have": "A square has 4 sides.",
    "planets are in the solar system": "The solar system has 8 planets.",
    "colors are in a rainbow": "A rainbow has 7 colors.",
}

AFTER: dict[str, tuple[str, ...]] = {
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": (
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ),
}
