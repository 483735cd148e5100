"""What kind of character a character is, as the engine's tables say, whatever Python runs this.

Knows: general categories (`categories.txt`: runs of N L Z M P S C, X for unassigned), white space,
the letters that GPT-2 gives to bytes. Does not know: tokenizers.

The table is Unicode's as llama.cpp b11549 carries it (`src/unicode-data.cpp`). `unicodedata` would
differ with the version of Python, and a character of another category cuts words elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from functools import cache
from pathlib import Path
from typing import Final

SPACES: Final = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
COLLAPSED: Final = {"N": "\xd1", "L": "\xd2", "P": "\xd3", "M": "\xd4", "S": "\xd5"}
"""What stands for a character above ASCII of these categories in `collapse`."""
OTHER: Final = "\xd0"
SPACE: Final = "\v"
HAN, JOINER, LONG_S = "\xd6", "\xd7", "\xd8"
"""What stands for these characters where they are told apart."""
_HAN: Final = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2EBEF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


@cache
def _runs() -> tuple[list[int], list[str]]:
    """First characters of the runs, and their categories."""
    text = (Path(__file__).parent / "categories.txt").read_text("ascii")
    starts, kinds, at = [], [], 0
    for kind, length in re.findall(r"([A-Z])(\d+)", text):
        starts.append(at)
        kinds.append(kind)
        at += int(length)
    return starts, kinds


def category(char: str) -> str:
    """One of N L Z M P S C, or X."""
    starts, kinds = _runs()
    return kinds[bisect_right(starts, ord(char)) - 1]


class _Table(dict[int, str]):
    """For `str.translate`; filled as characters are met (at most one entry for each there is)."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        found = SPACE if char in SPACES else COLLAPSED.get(category(char), OTHER)
        self[code] = found
        return found


class _Finer(_Table):
    """The same with Han characters, joiners and the long s told apart."""

    def __missing__(self, code: int) -> str:
        if any(first <= code <= last for first, last in _HAN):
            self[code] = HAN
            return HAN
        return super().__missing__(code)


_ascii = {code: chr(code) for code in range(128)}
_collapse = _Table(_ascii)
_finer = _Finer({**_ascii, 0x200C: JOINER, 0x200D: JOINER, 0x17F: LONG_S})


def collapse(text: str, *, finer: bool = False) -> bytes:
    """`text` with one byte for each character: itself in ASCII, else what kind it is.

    Regular expressions on categories become ordinary ones this way; the idea is the engine's.
    """
    if text.isascii():
        return text.encode("ascii")
    return text.translate(_finer if finer else _collapse).encode("latin-1")


_spaces = {ord(c): SPACE for c in SPACES if ord(c) > 127}


def plain_spaces(text: str) -> str:
    """`text` with one ASCII character for every other white space."""
    return text if text.isascii() else text.translate(_spaces)


@cache
def byte_letters() -> tuple[str, ...]:
    """The letter of each byte in GPT-2's vocabularies: itself if printable, else from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return tuple(chr(b) if b in own else chr(next(others)) for b in range(256))


@cache
def letter_bytes() -> dict[str, int]:
    """The byte of each of these letters."""
    return {letter: byte for byte, letter in enumerate(byte_letters())}


@cache
def to_letters() -> dict[int, str]:
    """For `str.translate`, after decoding UTF-8 bytes as Latin-1."""
    return dict(enumerate(byte_letters()))


def lower(char: str) -> str:
    """Lower case where that is one character; U+0130 gives `i`, as the engine has it."""
    found = char.lower()
    return found if len(found) == 1 else found[0]


def base(char: str) -> str:
    """The first character of the canonical decomposition."""
    return unicodedata.normalize("NFD", char)[0]
