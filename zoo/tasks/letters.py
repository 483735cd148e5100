"""Tasks on the letters of a word: spell, reverse, count, uppercase; and sorting of words."""

from __future__ import annotations

import re

from zoo.sample import Draw, Sample, ask, last_word, numbers

_END = "[.|]"
_REVERSE = (
    "[Reverse|reverse|Please reverse|Can you reverse|Turn around] [the word |the letters of |]{w}"
    + _END,
    "[Write|Say|Print|Give me] [the word |]{w} [backwards|in reverse|from back to front]" + _END,
    "[What is|What's|How do you write] [the word |]{w} [backwards|reversed|spelled backwards][?|]",
    "[Reverse|Flip] this word: {w}",
)
_SPELL = (
    "[Spell|spell|Please spell|Can you spell|Spell out] [the word |]{w}" + _END,
    "How do you spell [the word |]{w}[?|]",
    "[What are|List|Name|Give me] the letters [of|in] [the word |]{w}" + _END,
    "[Write|Say] [the word |]{w} letter by letter" + _END,
)
_COUNT = (
    "How many times does [the letter |]{c} [appear|occur] in [the word |]{w}[?|]",
    "How many {c}'s are [there in|in] [the word |]{w}[?|]",
    "[Count|count|Please count] [the letter|every|each] {c} in [the word |]{w}" + _END,
    "How often does [the letter |]{c} [appear|occur] in {w}[?|]",
)
_UPPER = (
    "[Uppercase|uppercase|Please uppercase|Capitalize] [the word |the words |]{w}" + _END,
    "[Write|Put|Print] {w} in [capital letters|capitals|uppercase|upper case|all caps]" + _END,
    "[Make|Turn|Convert|Change] {w} [to|into] [uppercase|capitals|upper case|capital letters]"
    + _END,
)
_SORT = (
    "[Sort|sort|Please sort|Can you sort] [these words|the words|this list] "
    "[alphabetically|in alphabetical order|from a to z]: {w}",
    "[Sort|Order|Arrange|Alphabetize] {w}",
    "Put [these words |]in [alphabetical |ABC ]order: {w}",
    "[Sort alphabetically|Alphabetical order|Order by letter]: {w}",
)


def _word(draw: Draw, shortest: int = 3, longest: int = 10) -> str:
    while True:
        word = draw.word()
        if shortest <= len(word) <= longest:
            return word


def spaced(word: str) -> str:
    """The letters with blanks between them."""
    return " ".join(word)


def _quoted(draw: Draw, word: str) -> str:
    return draw.one((word, word, word, f'"{word}"', f"'{word}'"))


def _spells(word: str, text: str) -> bool:
    """Whether the working before the colon, if there is any, spells the word."""
    working, colon, _ = text.lower().partition(":")
    return not colon or re.findall(r"[a-z]", working) == list(word)


def reverse(draw: Draw) -> Sample:
    """A word backwards."""
    word, pattern = _word(draw), draw.phrase(_REVERSE)
    turned = word[::-1]
    return Sample(
        "reverse",
        ask(pattern.format(w=_quoted(draw, word))),
        f"{spaced(word)} → {turned}",
        lambda text: last_word(text).lower() == turned,
        letters=turned,
        values=(word,),
        pattern=pattern,
    )


def spell(draw: Draw) -> Sample:
    """The letters of a word."""
    word, pattern = _word(draw), draw.phrase(_SPELL)
    return Sample(
        "spell",
        ask(pattern.format(w=_quoted(draw, word))),
        spaced(word),
        lambda text: re.findall(r"[a-z]", text.lower()) == list(word),
        values=(word,),
        pattern=pattern,
    )


def count_letters(draw: Draw) -> Sample:
    """How often a letter occurs, counted while spelling."""
    word, pattern = _word(draw), draw.phrase(_COUNT)
    letter = draw.one(word if draw.chance(0.85) else "aeiorstnl")
    count = word.count(letter)
    seen, marks = 0, []
    for char in word:
        seen += char == letter
        marks.append(f"{char}({seen})" if char == letter else char)
    return Sample(
        "count_letters",
        ask(pattern.format(w=_quoted(draw, word), c=letter)),
        f"{' '.join(marks)}: {count} time{'' if count == 1 else 's'}",
        lambda text: numbers(text)[-1:] == [count] and _spells(word, text),
        values=(word,),
        pattern=pattern,
    )


def uppercase(draw: Draw) -> Sample:
    """One or two words in capitals."""
    words = [_word(draw, 2) for _ in range(draw.one((1, 1, 1, 2)))]
    unfit = "the word " if len(words) > 1 else "the words "
    pattern = draw.phrase(_UPPER)
    while unfit in pattern:
        pattern = draw.phrase(_UPPER)
    if draw.chance(0.2):
        words = [word.capitalize() for word in words]
    upper = " ".join(words).upper()
    return Sample(
        "uppercase",
        ask(pattern.format(w=" ".join(words))),
        upper,
        lambda text: text.strip(" .\"'") == upper,
        letters=upper,
        values=tuple(word.lower() for word in words),
        pattern=pattern,
    )


def sort_words(draw: Draw) -> Sample:
    """Three or four words whose first letters all differ."""
    words: dict[str, str] = {}
    size = draw.one((3, 3, 4))
    while len(words) < size:
        word = draw.word(made_up=0.2)
        if len(word) > 2:
            words.setdefault(word[0], word)
    shown = list(words.values())
    draw.rng.shuffle(shown)
    pattern, ordered = draw.phrase(_SORT), sorted(shown)
    return Sample(
        "sort_words",
        ask(pattern.format(w=", ".join(shown))),
        ", ".join(ordered),
        lambda text: re.findall(r"[a-z]+", text.lower()) == ordered,
        values=tuple(shown),
        pattern=pattern,
    )
