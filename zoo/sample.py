"""What one exercise is, and which side of the train / held-out line a value falls on.

Knows the split, phrasing patterns and how to draw values. Knows no task, no model, no tokenizer.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Literal, TypeVar

from zoo import vocabulary as vocab

T = TypeVar("T")
Split = Literal["train", "held"]
Role = Literal["system", "user", "assistant", "tool"]
HELD_ONE_IN = 8


@dataclass(frozen=True)
class Tool:
    """A function the model may call: one parameter is all these models know."""

    name: str
    parameter: str
    description: str


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Sample:
    """Turns that lead to an answer, one right answer, and the program that judges any answer."""

    task: str
    turns: tuple[Turn, ...]
    answer: str
    check: Callable[[str], bool] = field(compare=False)
    tools: tuple[Tool, ...] = ()
    letters: str = ""  # the part of `answer` to teach one letter per token (same decoded text)
    values: tuple[str, ...] = ()  # what the split was decided on, for the disjointness test
    pattern: str = ""


def is_held(kind: str, value: str) -> bool:
    """Whether `value` belongs to the held-out side: fixed by its hash, so nobody can choose."""
    digest = hashlib.sha256(f"{kind}:{value}".encode()).digest()
    return digest[0] % HELD_ONE_IN == 0


def expand(pattern: str) -> list[str]:
    """All texts of a pattern: `[a|b|]` stands for a, b or nothing."""
    parts = [
        part[1:-1].split("|") if part.startswith("[") else [part]
        for part in re.split(r"(\[[^\]]*\])", pattern)
    ]
    return ["".join(choice) for choice in itertools.product(*parts)]


@cache
def phrasings(patterns: tuple[str, ...], split: Split) -> tuple[tuple[str, ...], ...]:
    """Per pattern, the expansions on this side of the split; patterns left empty are dropped."""
    sides = (
        tuple(text for text in expand(pattern) if is_held("phrase", text) == (split == "held"))
        for pattern in patterns
    )
    return tuple(side for side in sides if side)


class Draw:
    """Draws phrasings and values from one side of the split.

    `pieces` are token texts: pseudo-words made of them show the model how every token is spelled.
    """

    def __init__(self, rng: Random, split: Split, pieces: Sequence[str] = ()) -> None:
        self.rng = rng
        self.split = split
        self.pieces = pieces

    def one(self, items: Sequence[T]) -> T:
        """Any of `items`."""
        return items[int(self.rng.random() * len(items))]

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return self.rng.random() < share

    def allowed(self, kind: str, value: str) -> bool:
        """Whether `value` is on this draw's side of the split."""
        return is_held(kind, value) == (self.split == "held")

    def phrase(self, patterns: tuple[str, ...]) -> str:
        """A phrasing from this side: any pattern, then any of its expansions."""
        return self.one(self.one(phrasings(patterns, self.split)))

    def from_list(self, kind: str, items: tuple[str, ...]) -> str:
        """An item of a closed list from this side."""
        return self.one(_side(kind, items, self.split))

    def listed(self, kind: str, items: tuple[str, ...], made_up: float = 0.5) -> str:
        """An item of a list; while training, often a made-up word, so that copying is learned."""
        if self.split == "train" and self.chance(made_up):
            word = self.made_up()
            if self.allowed(kind, word) and len(word) > 1:
                return word
        return self.from_list(kind, items)

    def made_up(self) -> str:
        """A pronounceable word, or one glued from random tokens, that is in no list."""
        if self.pieces and self.chance(0.7):
            piece = self.one(self.pieces)
            if self.chance(0.6) or not self.allowed("word", piece):
                piece += self.one(self.pieces)
            return piece[:12]
        syllables = "".join(
            self.one(vocab.ONSETS) + self.one(vocab.VOWELS)
            for _ in range(1 + int(self.chance(0.4)))
        )
        return syllables + (self.one(vocab.CODAS) if self.chance(0.7) else "")

    def word(self, words: tuple[str, ...] = vocab.WORDS, made_up: float = 0.6) -> str:
        """A word; while training, often a made-up one, so that rules are learned and not lists."""
        if self.split == "train" and self.chance(made_up):
            word = self.made_up()
            return word if self.allowed("word", word) and len(word) > 1 else self.word(words, 0.0)
        return self.from_list("word", words)

    def name(self) -> str:
        """A person's name."""
        if self.split == "train" and self.chance(0.5):
            name = self.made_up().capitalize()
            return name if self.allowed("name", name) and len(name) > 1 else self.name()
        return self.from_list("name", vocab.NAMES)

    def city(self) -> str:
        """A city's name."""
        if self.split == "train" and self.chance(0.3):
            city = self.made_up().capitalize()
            return city if self.allowed("city", city) and len(city) > 1 else self.city()
        return self.from_list("city", vocab.CITIES)


@cache
def _side(kind: str, items: tuple[str, ...], split: Split) -> tuple[str, ...]:
    return tuple(item for item in items if is_held(kind, item) == (split == "held"))


def ask(question: str) -> tuple[Turn, ...]:
    """The turns of a plain question."""
    return (Turn("user", question),)


def last_word(text: str) -> str:
    """The last run of letters and digits of an answer."""
    found = re.findall(r"[^\W_]+", text)
    return found[-1] if found else ""


def numbers(text: str) -> list[int]:
    """Whole numbers of a text; a minus sign counts where no digit stands left of it."""
    return [int(number) for number in re.findall(r"(?<!\d)-?\d+", text)]
