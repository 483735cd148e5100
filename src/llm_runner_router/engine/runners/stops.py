"""Ends a text at a stop sequence, also one that lies across tokens. Pure.

Knows: text. Does not know: tokens, requests.
"""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Text in, text that may be shown out; what could begin a stop sequence is held back.

    Args:
        stops: the sequences; empty ones never match.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found = False
        """A sequence was met; nothing more is given."""

    def feed(self, text: str) -> str:
        """The text that is certainly before any stop sequence."""
        if self.found:
            return ""
        text = self._held + text
        hits = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if hits:
            self.found = True
            self._held = ""
            return text[: min(hits)]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, now that no more comes."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, word: str) -> int:
    """How many characters at the end of `text` are a beginning of `word`, all of it excepted."""
    for length in range(min(len(text), len(word) - 1), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0
