"""Which kind of work a request is: a small classifier that needs no library, key or download.

Knows: text, the structure of a request, and the weights in `tasks.json` (made by
`scripts/train_tasks.py`). Does not know: models, scores, what follows from a task.

The head is a multinomial logistic regression on hashed word 1- to 3-grams and the structure of
the text, in the spirit of Joulin et al., "Bag of Tricks for Efficient Text Classification" (2017).
Whatever it is not sure about is `other`, so that no specialist gets a question it does not know.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from zlib import crc32

import msgspec
from msgspec import Struct

from llm_runner_router.types import ImagePart, Request

OTHER = "other"
HEAD, TAIL = 800, 200
"""Characters looked at, from both ends: what is asked stands at the start or at the end, and the
time is bounded (about 0.2 ms for 1,000 characters)."""
JSON_SCHEMA_ODDS = 20.0
"""How much a demanded JSON Schema speaks for extraction."""
TOOL_CONFIDENCE = 0.95
"""Offered tools say what is wanted, except for the greeting in between."""

_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+|[^\w\s]")
_FORMULA = re.compile(r"\d\s*(?:[-+*/x×−÷<>=]|plus|minus|times)\s*\d")
_CODE = re.compile(r"[{}\\]|[;=]\s*$|==|\(\)|```|::|->", re.MULTILINE)


class Weights(Struct, frozen=True):
    """The file `tasks.json`.

    `rows` is base64 of records: the CRC-32 of a feature (4 bytes, little-endian) and one signed
    byte per class, to be multiplied by `scale`.
    """

    classes: tuple[str, ...]
    bias: tuple[float, ...]
    scale: float
    temperature: float
    threshold: float
    """Below this probability the answer is `other`."""
    rows: str
    made: str = ""
    """How these weights came about, with their accuracy."""


# ---------------------------------------------------------------- features


def clip(text: str) -> str:
    """The part of `text` that is looked at."""
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}\n{text[-TAIL:]}"


def tokens(text: str) -> list[str]:
    """Lower-case words, signs, and numbers as `#` and their length."""
    return [
        f"#{min(len(token), 5)}" if token[0].isdigit() else token
        for token in _TOKEN.findall(text.lower())
    ]


def grams(words: Sequence[str]) -> Iterator[str]:
    """1- and 2-grams, the ends marked, and the 3-gram that opens the text."""
    yield from words
    before = "^"
    for word in words:
        yield f"{before} {word}"
        before = word
    yield f"{before} $"
    if len(words) > 1:
        yield f"^ {words[0]} {words[1]}"


def structure(text: str, words: Sequence[str]) -> list[str]:
    """Facts about the shape of the text, each a name with a small value."""
    count = len(words)
    numbers = sum(word[0] == "#" for word in words)
    letters = sum(c.isalpha() for c in text)
    foreign = sum(c.isalpha() and not c.isascii() for c in text)
    return [
        f"=length {count.bit_length()}",
        f"=numbers {min(numbers, 4)}",
        f"=formula {bool(_FORMULA.search(text))}",
        f"=lines {min(text.count(chr(10)), 3)}",
        f"=code {bool(_CODE.search(text))}",
        f"=foreign {0 if not letters else round(4 * foreign / letters)}",
    ]


def novelty(unknown: int, count: int) -> str:
    """How much of the text the weights have never seen, as a feature."""
    return f"=unknown {0 if not count else math.ceil(4 * unknown / count)}"


def hashed(feature: str) -> int:
    """The key of a feature."""
    return crc32(feature.encode())


# ---------------------------------------------------------------- the head


class Head:
    """The classifier of texts. Holds its table, changes nothing."""

    def __init__(self, weights: Weights) -> None:
        self.classes = weights.classes
        self.threshold = weights.threshold
        size = len(weights.classes)
        record = struct.Struct(f"<I{size}b")
        self._zero = (0,) * size
        self._bias = weights.bias
        self._scale = weights.scale
        self._temperature = weights.temperature
        self._rows = {
            key: tuple(row) for key, *row in record.iter_unpack(base64.b64decode(weights.rows))
        }

    def probabilities(self, text: str) -> dict[str, float]:
        """The probability of every class, calibrated."""
        text = clip(text)
        words = tokens(text)
        rows = self._rows
        unknown = sum(hashed(word) not in rows for word in words)
        known = [row for gram in grams(words) if (row := rows.get(hashed(gram)))]
        shape = [*structure(text, words), novelty(unknown, len(words))]
        # Grams count by the root of their number, so that long texts are not more certain.
        root = self._scale / math.sqrt(len(known) or 1)
        of_grams = [sum(column) for column in zip(self._zero, *known, strict=True)]
        of_shape = [
            sum(column)
            for column in zip(*(rows.get(hashed(f), self._zero) for f in shape), strict=True)
        ]
        logits = [
            (bias + root * gram + self._scale * form) / self._temperature
            for bias, gram, form in zip(self._bias, of_grams, of_shape, strict=True)
        ]
        return dict(zip(self.classes, softmax(logits), strict=True))


def softmax(logits: Sequence[float]) -> list[float]:
    """Probabilities from logits."""
    top = max(logits)
    powers = [math.exp(logit - top) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


@cache
def shipped() -> Head:
    """The head with the weights of the package; the file is read on first use."""
    data = files(__package__).joinpath("tasks.json").read_bytes()
    return Head(msgspec.json.decode(data, type=Weights))


# ---------------------------------------------------------------- requests


def classify(request: Request, head: Head | None = None) -> tuple[str, float]:
    """The task of `request`, and the probability that it is right.

    1. after a tool's result: `tool_result`
    2. with tools on offer: `tool_call`
    3. with images, or without any text: `other`
    4. by the text of the last user turn; a demanded JSON Schema speaks for `extract_json`
    """
    last = request.messages[-1] if request.messages else None
    if last is not None and last.role in ("tool", "function"):
        return "tool_result", TOOL_CONFIDENCE  # 1
    if request.tools and request.tool_choice != "none":
        return "tool_call", TOOL_CONFIDENCE  # 2
    text = request.prompt or ""
    for message in reversed(request.messages):
        if message.role == "user":
            if isinstance(message.content, tuple) and any(
                isinstance(part, ImagePart) for part in message.content
            ):
                return OTHER, 1.0  # 3
            text = message.text
            break
    if not text.strip():
        return OTHER, 1.0  # 3
    head = head or shipped()
    chances = head.probabilities(text)  # 4
    if request.response_format is not None and request.response_format.type == "json_schema":
        chances["extract_json"] *= JSON_SCHEMA_ODDS
        total = sum(chances.values())
        chances = {task: chance / total for task, chance in chances.items()}
    task = max(chances, key=lambda name: chances[name])
    if chances[task] < head.threshold:
        return OTHER, chances[OTHER]
    return task, chances[task]
