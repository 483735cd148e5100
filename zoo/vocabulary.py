"""Plain word lists the generators draw from. Knows nothing of tasks or of the split."""

from __future__ import annotations

NOUNS: tuple[str, ...] = tuple(
    """
    apple arm army atom baby back bag ball banana band bank barn basket bat beach bean bear bed bee
    bell bench berry bird blanket board boat body bone book boot bottle bowl box boy branch bread
    breakfast brick bridge brush bucket butter button cabin cable cake camel camera camp candle
    candy canyon cap car card carpet carrot cart castle cat cave chain chair chalk cheese cherry
    chest chicken child church circle city class clock cloth cloud coast coat coffee coin comb
    cookie copper corner cotton couch cow crab crayon cream crow crown cup curtain dance desert
    desk dinner dirt dish doctor dog doll dollar donkey door dragon drawer dream dress drum duck
    dust eagle ear earth egg elbow elephant engine envelope eye face farm farmer father feather
    fence field finger fire fish flag flame flower flute fog food foot forest fork fountain fox
    frame friend frog fruit garden garlic gate ghost giant gift giraffe girl glass glove goat gold
    goose grape grass guitar hair hammer hand harbor hat hawk heart hill hive honey hook horn horse
    hotel house ice idea insect iron island jacket jar jelly jewel judge juice jungle key king
    kitchen kite kitten knee knife ladder lady lake lamp land lantern leaf leather lemon letter
    library light lightning lion lizard lock log lunch machine magnet mail map market marble mask
    meadow meal meat medal melon metal milk mirror money monkey moon morning mother mountain mouse
    mouth movie muffin museum music nail napkin neck needle nest net night noise north nose note
    notebook nurse nut oak ocean office oil olive onion orange oven owl page paint palace pan
    pancake panda paper parade parent park parrot party path peach peanut pear pearl pebble pen
    pencil pepper phone photo piano picture pie pig pillow pilot pin pipe pizza planet plant plate
    pocket poem poet pond pony potato powder prince prison puddle puppet puppy purse queen rabbit
    radio rain rainbow ranch rat ribbon rice ring river road robin robot rock rocket roof room
    root rope rose rug ruler sail salad salt sand sandwich saw scarf school science sea seed shade
    shadow shark sheep shelf shell ship shirt shoe shop shovel silver singer sister skirt sky sled
    smile smoke snail snake snow soap sock soil soldier song soup space spark spider spoon spring
    square squirrel stage star station statue stone store storm story stove strawberry stream
    street string sugar suit summer sun swan sweater swing table tail tea teacher team temple tent
    thread throat throne thumb ticket tiger toad toast tomato tongue tool tooth towel tower town
    toy track trail train tray tree truck trumpet tub tulip tunnel turkey turtle uncle valley van
    vase vest village violin voice wagon walnut wall watch water wave wheel whistle wind window
    wing winter wire wizard wolf woman wood wool word world worm yard year zebra zipper
    """.split()
)

OTHER_WORDS: tuple[str, ...] = tuple(
    """
    above accept across after again agree alive allow almost alone always angry answer appear
    arrive awake basic beautiful become before begin behind believe below between bitter black
    blue brave bright bring broken brown build busy calm careful carry catch change cheap clean
    clever climb close cold collect cool correct count cover crazy cross curious dark decide deep
    describe different draw drink drive dry early easy eight empty enjoy enter equal even every
    excited explain fair famous fast feel fifteen find finish five flat float follow forget forty
    free fresh friendly full funny gentle give glad good grand gray great green grow guess happy
    hard hear heavy hello help hidden high hollow honest hope huge hundred hungry hurry imagine
    inside jump keep kind know large laugh lazy lead learn leave left lift listen little lonely
    long loud love lucky make many mean meet mild million mix move narrow near neat nervous never
    new nice nine noisy normal number obey often old open orange other outside pack paint perfect
    plain play polite pour press pretty proud pull purple push quick quiet rare reach read ready
    really receive red remember repeat rest return rich ride right ripe rough round royal run safe
    search second secret seven shake shallow sharp shiny short shout silent simple sing sit six
    sleep slow small smart smooth soft solid sour speak speed spend stand start stay steady stop
    strange strong sudden sweet swim swift take talk tall taste teach tell ten thank thick thin
    think thirty thousand throw tight tiny tired together touch travel true try turn twelve twenty
    twist under understand upon useful visit wait walk warm wash wet white whole wide wild wise
    wish wonder work worry write yellow young zero
    """.split()
)

WORDS: tuple[str, ...] = tuple(dict.fromkeys(NOUNS + OTHER_WORDS))

NAMES: tuple[str, ...] = tuple(
    """
    Ada Adam Aisha Alan Alice Amir Amy Anna Anton Ben Bella Bob Carla Carlos Chen Chloe Clara
    Daniel David Diana Dora Elena Eli Ella Emma Eric Eva Farid Felix Finn Fiona Frank Gina Grace
    Greta Hana Hannah Harry Hugo Ida Igor Ines Iris Isaac Ivan Jack James Jane Jonas Julia Kai
    Karen Kate Kenji Lara Laura Leo Liam Lily Lina Lisa Lucas Lucy Luna Maria Mark Marta Max Maya
    Mei Mia Milo Nadia Nina Noah Nora Olga Oliver Omar Oscar Otto Paul Pedro Peter Priya Rosa Ruby
    Ryan Sam Sara Simon Sofia Sonia Tariq Theo Tina Tom Vera Victor Wendy Yara Yuki Zara Zoe
    """.split()
)

CITIES: tuple[str, ...] = tuple(
    """
    Amsterdam Athens Austin Bangkok Barcelona Beijing Berlin Bogota Boston Brussels Bucharest
    Budapest Cairo Chicago Copenhagen Dallas Delhi Denver Dublin Geneva Hamburg Hanoi Havana
    Helsinki Houston Istanbul Jakarta Kyoto Lagos Lima Lisbon London Lyon Madrid Manila Melbourne
    Miami Milan Montreal Moscow Mumbai Munich Nairobi Naples Osaka Oslo Ottawa Paris Perth Porto
    Prague Quito Riga Rome Santiago Seattle Seoul Shanghai Stockholm Sydney Tallinn Tokyo Toronto
    Tunis Turin Vienna Vilnius Warsaw Zagreb Zurich
    """.split()
)

ANIMALS: tuple[str, ...] = tuple(
    """
    cat dog fox bear rabbit mouse owl frog duck horse goat hen turtle wolf lion tiger monkey panda
    squirrel hedgehog beaver otter penguin parrot snail bee crab whale dolphin donkey sheep pony
    """.split()
)

PLACES: tuple[str, ...] = tuple(
    """
    forest garden castle village city valley desert meadow cave jungle farm harbor park library
    mountains barn orchard swamp palace market tower school mill
    """.split()
)

COLORS: tuple[str, ...] = (
    "red",
    "blue",
    "green",
    "yellow",
    "black",
    "white",
    "brown",
    "gray",
    "orange",
    "pink",
    "purple",
)

ITEMS: tuple[str, ...] = tuple(
    """
    apples pears lemons pens books cups plates chairs lamps shirts hats socks shoes towels candles
    notebooks pencils bottles baskets boxes bags keys clocks mirrors brushes forks spoons knives
    pillows blankets tickets stamps cookies muffins melons onions carrots eggs oranges buttons
    """.split()
)

CONDITIONS: tuple[str, ...] = (
    "sunny",
    "cloudy",
    "rainy",
    "windy",
    "snowy",
    "foggy",
    "stormy",
    "clear",
)

_ONSETS = "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr sh sl st tr th"
_VOWELS = "a e i o u a e i o ai ea ee oo ou"
_CODAS = "b d g k l m n p r s t x ck ll mp nd nt rd rk sh st"
ONSETS, VOWELS, CODAS = (tuple(text.split()) for text in (_ONSETS, _VOWELS, _CODAS))
