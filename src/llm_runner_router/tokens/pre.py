"""Cuts text into the words that byte-pair merging works on, as a model's pre-tokenizer does.

Knows: `pretokenizers.toml`, and how the engine runs those expressions: each on the pieces that the
one before left, on text where every character stands for its kind (`chars.collapse`). Does not
know: vocabularies.

Python's `re` on bytes gives what C++'s ECMAScript expressions give there: both take the first
alternative that matches, `\\s` and `\\d` are ASCII, and a piece's end is the end of its text.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Final

from msgspec import Struct

from .chars import HAN, JOINER, LONG_S, collapse, plain_spaces

Spans = list[tuple[int, int]]

_CATEGORY = re.compile(r"\\p\{(\w+)\}")
_MEMBERS: Final = {
    "N": "\xd10-9",
    "L": "\xd2A-Za-z",
    "P": "\xd3!-#%-*,-/:-;?-@\\[-\\]_\\{\\}",
    "M": "\xd4",
    "S": "\xd5\\$\\+<->\\^`\\|~",
    "Han": HAN,
    "Joiner": JOINER,
    "Long": LONG_S,
}
_DIGITS = re.compile(b"[\xd10-9]+")


class Row(Struct, frozen=True):
    """One pre-tokenizer."""

    names: tuple[str, ...]
    split: tuple[str, ...]
    flags: tuple[str, ...] = ()


@cache
def rows() -> dict[str, Row]:
    """Every pre-tokenizer by its names."""
    import msgspec

    data = tomllib.loads((Path(__file__).parent / "pretokenizers.toml").read_text("utf-8"))
    found = msgspec.convert(data["row"], tuple[Row, ...])
    return {name: row for row in found for name in row.names}


@cache
def _bytes_pattern(expression: str) -> re.Pattern[bytes]:
    """An expression with categories, for collapsed text."""
    out, inside, at = [], False, 0
    while at < len(expression):
        char = expression[at]
        escaped = at > 0 and expression[at - 1] == "\\"
        found = _CATEGORY.match(expression, at)
        if found is not None:
            members = _MEMBERS.get(found[1]) or _MEMBERS[found[1][0]]
            out.append(members if inside else f"[{members}]")
            at = found.end()
            continue
        if char == "[" and not escaped:
            inside = True
        elif char == "]" and inside and not escaped:
            inside = False
        out.append(char)
        at += 1
    return re.compile("".join(out).encode("latin-1"))


@cache
def _text_pattern(expression: str) -> re.Pattern[str]:
    """An expression without categories; `$` is the end alone, as it is in C++."""
    if expression.endswith("$"):
        expression = expression[:-1] + r"\Z"
    return re.compile(expression, re.ASCII)


def split(row: Row, text: str) -> list[str]:
    """The words of `text`; joined they are `text`."""
    if not text:
        return []
    collapsed = collapse(text, finer="finer" in row.flags)
    plain: str | None = None
    spans: Spans = [(0, len(text))]
    for expression in row.split:
        if expression == "@digits":
            spans = [cut for span in spans for cut in _digits(collapsed, *span)]
        elif _CATEGORY.search(expression):
            pattern = _bytes_pattern(expression)
            spans = [cut for a, b in spans for cut in _cut(pattern.finditer(collapsed, a, b), a, b)]
        else:
            plain = plain_spaces(text) if plain is None else plain
            words = _text_pattern(expression)
            spans = [cut for a, b in spans for cut in _cut(words.finditer(plain, a, b), a, b)]
    return [text[a:b] for a, b in spans if a < b]


def _cut(found: object, start: int, end: int) -> Spans:
    """The matches and what lies between them."""
    spans: Spans = []
    at = start
    for match in found:  # type: ignore[attr-defined]  # of bytes or of text: only spans matter
        a, b = match.span()
        if a > at:
            spans.append((at, a))
        spans.append((a, b))
        at = b
    if at < end:
        spans.append((at, end))
    return spans


def _digits(collapsed: bytes, start: int, end: int) -> Spans:
    """Digits by three from the right. What stands before a run stays with its first group, as the
    engine has it; the expressions that follow part them."""
    ends = []
    for run in _DIGITS.finditer(collapsed, start, end):
        a, b = run.span()
        first = (b - a) % 3
        ends += [a + first] if first else []
        ends += range(a + first + 3, b + 1, 3)
    spans, at = [], start
    for stop in [*ends, end]:
        if stop > at:
            spans.append((at, stop))
            at = stop
    return spans
