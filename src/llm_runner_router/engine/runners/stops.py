"""Ends a text at a stop sequence, also one that lies across tokens. Pure.

Knows: text. Does not know: tokens, requests.
"""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Text in, text that may be shown out; what could begin a stop sequence is held back.

    The time for a text is in proportion to its length times the number of sequences, whatever they
    look like: each is followed by an automaton (Knuth, Morris, Pratt 1977) that never looks back.

    Args:
        stops: the sequences; empty ones never match.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._words = [_Word(stop) for stop in stops if stop]
        self._held = ""
        self.found = False
        """A sequence was met; nothing more is given."""

    def feed(self, text: str) -> str:
        """The text that is certainly before any stop sequence."""
        if self.found:
            return ""
        held, text = len(self._held), self._held + text
        ends = [(word, end) for word in self._words if (end := word.feed(text, held))]
        if ends:
            self.found = True
            self._held = ""
            return text[: min(end - word.length for word, end in ends)]
        keep = max((word.matched for word in self._words), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, now that no more comes."""
        held, self._held = self._held, ""
        return held


class _Word:
    """How much of one sequence the text so far ends with."""

    def __init__(self, word: str) -> None:
        self._word = word
        self.length = len(word)
        self.matched = 0
        # For each beginning of the word, the longest shorter beginning that it ends with.
        self._back = [0] * len(word)
        length = 0
        for i in range(1, len(word)):
            while length and word[i] != word[length]:
                length = self._back[length - 1]
            length += word[i] == word[length]
            self._back[i] = length

    def feed(self, text: str, start: int) -> int:
        """Go on with `text` from `start`; where the whole word ends in it, 0 for nowhere."""
        word, matched = self._word, self.matched
        if not matched and text.find(word[0], start) < 0:
            return 0
        for i in range(start, len(text)):
            while matched and text[i] != word[matched]:
                matched = self._back[matched - 1]
            matched += text[i] == word[matched]
            if matched == len(word):
                return i + 1
        self.matched = matched
        return 0
