"""Finds the tokens that are no ordinary words inside a text, before the rest is encoded.

Knows: names of tokens and whether they eat the white space beside them. Does not know: encoders.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

_BLANK = " \t\n\v\f\r"


class Special(Struct, frozen=True):
    """One token that is found by its name."""

    id: int
    text: str
    always: bool
    """Found in any text; others only where control tokens are read."""
    left: bool = False
    """Eats the white space before it."""
    right: bool = False
    """Eats the white space after it."""


class Finder:
    """Cuts text at special tokens: the longest name first over the whole text, as the engine."""

    def __init__(self, specials: Sequence[Special]) -> None:
        size = {s.id: len(s.text.encode("utf-8", "surrogateescape")) for s in specials}
        self._specials = sorted(specials, key=lambda s: -size[s.id])

    def split(self, text: str, special: bool) -> list[str | int]:
        """Pieces of text and ids of tokens, in order; no empty pieces."""
        if not text:
            return []
        pieces: list[str | int] = [text]
        for one in self._specials:
            if (one.always or special) and one.text in text:
                pieces = [p for piece in pieces for p in _split(piece, one)]
        return pieces


def _split(piece: str | int, one: Special) -> list[str | int]:
    if isinstance(piece, int) or one.text not in piece:
        return [piece]
    found: list[str | int] = []
    while (at := piece.find(one.text)) >= 0:
        before, piece = piece[:at], piece[at + len(one.text) :]
        before = before.rstrip(_BLANK) if one.left else before
        piece = piece.lstrip(_BLANK) if one.right else piece
        found += [before, one.id] if before else [one.id]
    return [*found, piece] if piece else found
