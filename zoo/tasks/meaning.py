"""Opposites and plurals: partly rules, partly known by heart.

Held out: phrasings for both; regular nouns for plurals; `un-` words for opposites. Pairs that can
only be known by heart (hot/cold, mouse/mice) appear in training and are held out in phrasing only.
"""

from __future__ import annotations

import re

from zoo import knowledge, vocabulary
from zoo.sample import Draw, Sample, ask

_OPPOSITE = (
    "[What is|What's|what is|Tell me|Give me|Name|Say] the opposite of [the word |]{w}[?|.|]",
    "[What is|Give me|Tell me|Name] [an|the] antonym [of|for] {w}[?|.|]",
    "[Opposite of|Antonym of|The opposite of] {w}[|?|:]",
    "Which word [means|is] the opposite of {w}[?|]",
    "{w} is the opposite of [what?|what|which word?]",
)
_PLURAL = (
    "[What is|What's|what is|Tell me|Give me|Write|Say] the plural [form |]of [the word "
    "|]{w}[?|.|]",
    "[Plural of|The plural of|Plural form of] {w}[|?|:]",
    "[Make|Turn|Put] [the word |]{w} [plural|into the plural|into its plural][.|]",
    "How do you [say|write|make] [more than one|the plural of] {w}[?|]",
)
_NOT_REGULAR = {
    "bread", "butter", "cotton", "dirt", "dust", "garlic", "grass", "hair", "honey", "ice", "iron",
    "juice", "leather", "lightning", "milk", "music", "noise", "rain", "rice", "sand", "smoke",
    "snow", "soap", "soil", "sugar", "water", "wood", "wool", "gold", "silver", "photo", "piano",
    "radio", "roof", "ghost", "chalk", "cheese", "metal", "north", "tea", "salt", "oil", "corn",
}  # fmt: skip
REGULAR_NOUNS = tuple(
    noun for noun in vocabulary.NOUNS
    if noun not in knowledge.IRREGULAR_PLURALS and noun not in _NOT_REGULAR
    and not noun.endswith(("f", "fe", "o"))
)  # fmt: skip


def pluralize(noun: str) -> str:
    """The plural, by rule or by heart."""
    if noun in knowledge.IRREGULAR_PLURALS:
        return knowledge.IRREGULAR_PLURALS[noun]
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    return noun[:-1] + "ies" if re.search(r"[^aeiou]y$", noun) else noun + "s"


def _has_word(word: str, text: str) -> bool:
    found = re.findall(r"[a-z]+", text.lower())
    return found[-1:] == [word]


def opposite(draw: Draw) -> Sample:
    """The opposite of a word."""
    pattern = draw.phrase(_OPPOSITE)
    values: tuple[str, ...] = ()
    if draw.chance(0.5):
        word = draw.listed("un", knowledge.UN_WORDS, made_up=0.6)
        expected, values = "un" + word, (word,)
        if draw.chance(0.3):
            word, expected = expected, word
    else:
        word, expected = draw.one(tuple(knowledge.OPPOSITES.items()))
        if draw.chance(0.5) and expected not in ("light", "old", "short", "lose", "light", "right"):
            word, expected = expected, word
    return Sample(
        "opposite",
        ask(pattern.format(w=word)),
        f"The opposite of {word} is {expected}.",
        lambda text: _has_word(expected, text),
        values=values,
        pattern=pattern,
    )


def plural(draw: Draw) -> Sample:
    """The plural of a noun."""
    pattern = draw.phrase(_PLURAL)
    values: tuple[str, ...] = ()
    if draw.chance(0.25):
        noun = draw.one(tuple(knowledge.IRREGULAR_PLURALS))
    else:
        noun = draw.word(REGULAR_NOUNS, made_up=0.3)
        while noun.endswith(("f", "fe", "o")) or noun in knowledge.IRREGULAR_PLURALS:
            noun = draw.word(REGULAR_NOUNS, made_up=0.0)
        values = (noun,)
    expected = pluralize(noun)
    return Sample(
        "plural",
        ask(pattern.format(w=noun)),
        f"The plural of {noun} is {expected}.",
        lambda text: _has_word(expected, text),
        values=values,
        pattern=pattern,
    )
