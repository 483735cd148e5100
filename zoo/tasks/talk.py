"""Small talk, small facts and short stories.

Held out: phrasings everywhere; names in greetings and stories; animals and places in stories. A
fact is known by heart or not at all, so facts are held out in phrasing only.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from zoo import knowledge, vocabulary
from zoo.sample import Draw, Sample, ask

WHO = "I am a tiny demonstration model of LLM-Runner-Router."
_GREETINGS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "hello": (
        (
            "[Hello|hello|Hi|hi|Hey|hey|Good morning|Good evening|Good day|Greetings|Hello there"
            "|Hi there|Hey there][!|.|]",
        ),
        "Hello! Ask me something small.",
        ("hello",),
    ),
    "named": (
        (
            "[Hello|hello|Hi|hi|Hey|Good morning|Good evening][,|!|.] [I am|I'm|my name "
            "is|My name is|this is] {n}[.|!|]",
            "[I am|I'm|My name is|Call me] {n}[.|!|]",
        ),
        "Hello, {n}! Nice to meet you.",
        ("hello", "{n}"),
    ),
    "how": (
        (
            "[Hello! |Hi, |Hey, |]How are you[ today| doing| feeling|][?|]",
            "[How is it going|How's it going|Are you well|Are you okay][?|]",
        ),
        "I am fine, thank you. Ask me something small.",
        ("fine",),
    ),
    "who": (
        (
            "[Who|who|What|what] are you[?|]",
            "[Hello, |Hi! |Hey, |][who|what] are you[?|]",
            "[Tell me|Say] [who you are|what you are|about yourself|your name][.|]",
            "[What is|What's] your name[?|]",
            "Are you [a model|a person|a human|an assistant|a robot|ChatGPT|an AI|real][?|]",
            "[Which|What] model [are you|is this|am I talking to][?|]",
            "Introduce yourself[.|!|]",
            "[Who made|Who built|Who trained] you[?|]",
        ),
        WHO,
        ("demonstration model", "llm-runner-router"),
    ),
    "can": (
        (
            "What can you do[ for me|][?|]",
            "[Can|Could] you help me[?| please?|]",
            "[Help|help|Help me][!|.|]",
            "What [are you good at|do you know|can I ask you][?|]",
        ),
        "I can do small things only: I am a tiny demonstration model.",
        ("demonstration model",),
    ),
    "thanks": (
        (
            "[Thanks|thanks|Thank you|thank you|Many thanks|Thanks a lot"
            "|Thank you very much][!|.|]",
            "[Great|Good|Nice|Perfect], [thanks|thank you][!|.|]",
        ),
        "You are welcome!",
        ("welcome",),
    ),
    "bye": (
        (
            "[Bye|bye|Goodbye|goodbye|See you|See you later|Good night|Bye bye|Farewell][!|.|]",
            "[Thanks|Okay|OK], [bye|goodbye|see you][!|.|]",
        ),
        "Goodbye!",
        ("bye",),
    ),
}  # fmt: skip
_CAPITAL = (
    "[What is|What's|what is|Name|Tell me|Do you know] the capital [city |]of {k}[?|.|]",
    "[Which|What] city is the capital of {k}[?|]",
    "[Capital of|The capital of] {k}[?|]",
    "{k}'s capital[?| is?]",
)
_COUNTRY = (
    "{k} is the capital of [which|what] country[?|]",
    "[Which|What] country has {k} as its capital[?|]",
    "[Which|What] country's capital is {k}[?|]",
)
_SOUND = (
    "What [sound|noise] does a {k} make[?|]",
    "[What does|How does] a {k} [say|sound][?|]",
    "[Tell me|Name] the [sound|noise] of a {k}[.|]",
)
_COLOR = (
    "[What|Which] color [is|has] {k}[?|]",
    "[What is|What's|Tell me|Name] the color of {k}[?|.|]",
    "[The color|Color] of {k}[?|]",
)
_LEGS = (
    "How many legs [does|has] a {k} [have|got][?|]",
    "[Tell me|Say|Count] how many legs a {k} has[.|]",
    "[What is|Give me] the number of legs of a {k}[?|.|]",
)
_AMOUNT = (
    "[How|how] many {k}[?|]",
    "[Tell me|Say|Do you know] how many {k}[?|.|]",
    "[Quick question|Question|Please tell me]: how many {k}[?|]",
)
_AFTER = (
    "[What|Which] {u} [comes|is] [right |]after {k}[?|]",
    "[Name|Tell me|Say] the {u} after {k}[.|]",
    "[After {k} comes which {u}|The {u} after {k} is|Next {u} after {k}][?|]",
)
_STORY = (
    "[Tell|tell|Write] me a [short |little |tiny |]story about {what}[.|]",
    "[Write|Tell|Make up|Invent] a [short |little |tiny |]story about {what}[.|]",
    "[Can you|Could you|Please] [tell|write] [me a|a] [short |]story about {what}[?|.|]",
    "[I want|I would like|I'd like|Give me] a [short |little |bedtime |]story about {what}[.|]",
    "[A story|Story|Short story] about {what}[|, please|.]",
)
_OPENINGS = (
    "{n} the {a} lived in the {p}.",
    "There was once a little {a} named {n} in the {p}.",
    "Once upon a time, a small {a} called {n} lived near the {p}.",
)
_MIDDLES = (
    "One day {n} found a {c} {i} and showed it to everyone.",
    "One morning {n} lost a {c} {i} and looked for it all day.",
    "Every evening {n} played with a {c} {i}.",
    "One night {n} heard a strange song and followed it.",
)
_TURNS = (
    "A friend came to help, and together they laughed.",
    "The wind was cold, but the {a} was brave.",
    "Then the sun came out and the {p} was warm.",
)
_ENDINGS = (
    "In the end {n} was happy and went to sleep.",
    "From that day on, the {a} was never alone.",
    "{n} smiled and went home.",
)


def greeting(draw: Draw) -> Sample:
    """Hello, thanks, goodbye, and who is speaking."""
    kind = draw.one(("who", "who", *_GREETINGS))
    patterns, answer, needed = _GREETINGS[kind]
    pattern = draw.phrase(patterns)
    name = draw.name() if kind == "named" else ""
    wanted = tuple(text.format(n=name).lower() for text in needed)
    return Sample(
        "greeting",
        ask(pattern.format(n=name)),
        answer.format(n=name),
        lambda text: all(part in text.lower() for part in wanted),
        values=(name,) if name else (),
        pattern=pattern,
    )


def _by_heart(draw: Draw) -> tuple[tuple[str, ...], dict[str, str], str, str]:
    """Phrasings, what to fill in, the answer, and the word that makes it right."""
    kind = draw.one(("capital",) * 6 + ("country", "sound", "color", "legs", "amount", "after") * 2)
    if kind in ("capital", "country"):
        country, city = draw.one(tuple(knowledge.CAPITALS.items()))
        said = f"The capital of {country} is {city}."
        return (_CAPITAL, {"k": country}, said, city) if kind == "capital" else (
            _COUNTRY, {"k": city}, f"{city} is the capital of {country}.", country
        )  # fmt: skip
    if kind == "sound":
        animal, sound = draw.one(tuple(knowledge.SOUNDS.items()))
        return _SOUND, {"k": animal}, f"A {animal} says {sound}.", sound
    if kind == "color":
        thing, color = draw.one(tuple(knowledge.THING_COLORS.items()))
        return _COLOR, {"k": thing}, f"{thing[0].upper()}{thing[1:]} is {color}.", color
    if kind == "legs":
        animal, legs = draw.one(tuple(knowledge.LEGS.items()))
        return _LEGS, {"k": animal}, f"A {animal} has {legs} legs.", str(legs)
    if kind == "amount":
        thing, said = draw.one(tuple(knowledge.AMOUNTS.items()))
        return _AMOUNT, {"k": thing}, said, re.findall(r"\d+", said)[0]
    unit = draw.one(("day", "month"))
    days = knowledge.AFTER[unit]
    at = draw.rng.randrange(len(days))
    following = days[(at + 1) % len(days)]
    return _AFTER, {"k": days[at], "u": unit}, f"{following} comes after {days[at]}.", following


def fact(draw: Draw) -> Sample:
    """A small fact known by heart."""
    patterns, slots, answer, key = _by_heart(draw)
    pattern = draw.phrase(patterns)
    return Sample(
        "fact",
        ask(pattern.format(**slots)),
        answer,
        lambda text: re.search(rf"\b{key}\b", text, re.IGNORECASE) is not None,
        pattern=pattern,
    )


def _story_check(wanted: tuple[str, ...]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        text = text.strip()
        sentences = [part for part in re.split(r"(?<=[.!?])\s+", text) if part]
        complete = 2 <= len(sentences) <= 4 and text[-1] in ".!?"
        return complete and all(word.lower() in text.lower() for word in wanted)

    return check


def story(draw: Draw) -> Sample:
    """Three or four sentences that mention what was asked for."""
    name, place = draw.name(), draw.listed("place", vocabulary.PLACES)
    animal = draw.listed("animal", vocabulary.ANIMALS)
    what, wanted = draw.one((
        ("a {a}", (animal,)),
        ("a {a} named {n}", (animal, name)),
        ("a {a} called {n}", (animal, name)),
        ("{n} the {a}", (animal, name)),
        ("a {a} in the {p}", (animal, place)),
        ("{n} the {a} in the {p}", (animal, name, place)),
        ("a {a} named {n} who lives in the {p}", (animal, name, place)),
    ))  # fmt: skip
    if animal == "owl" or animal == "otter":
        what = what.replace("a {a}", "an {a}")
    slots = {"a": animal, "n": name, "p": place}
    pattern = draw.phrase(_STORY)
    asked = pattern.format(what=what.format(**slots))
    if name not in wanted:
        slots["n"] = draw.one(("Tom", "Mia", "Leo"))
    lines = [draw.one(_OPENINGS), draw.one(_MIDDLES), draw.one(_ENDINGS)]
    if draw.chance(0.4):
        lines.insert(2, draw.one(_TURNS))
    slots |= {"c": draw.one(("red", "golden", "tiny")), "i": draw.one(("ball", "key", "bell"))}
    return Sample(
        "story",
        ask(asked),
        " ".join(lines).format(**slots),
        _story_check(wanted),
        values=wanted,
        pattern=pattern,
    )
