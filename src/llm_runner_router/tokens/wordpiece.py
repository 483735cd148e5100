"""WordPiece as BERT has it, with a GGUF vocabulary: words begin with `▁`, others go on.

Knows: BERT's cleaning of text, longest match first. Does not know: special tokens, files.
"""

from __future__ import annotations

from typing import Final

from .chars import SPACES, base, category, lower
from .vocab import Vocab

SPACE: Final = "▁"
_CHINESE: Final = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
"""Characters that are words by themselves; the sixth range is as the reference has it."""


class WordPieceEncoder:
    """Text to ids; a word that cannot be spelt is the unknown token."""

    def __init__(self, vocab: Vocab, unknown: int) -> None:
        self._ids = {text: i for i, text in enumerate(vocab.tokens)}
        self._unknown = unknown
        self._longest = max(len(text) for text in vocab.tokens)
        self._lower = vocab.flag("normalizer.lowercase", True)
        self._strip = vocab.flag("normalizer.strip_accents", self._lower)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`."""
        return [id for word in self._words(text) for id in self._word(SPACE + word)]

    def _word(self, word: str) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(word):
            for end in range(min(len(word), at + self._longest), at, -1):
                id = self._ids.get(word[at:end])
                if id is not None:
                    ids.append(id)
                    at = end
                    break
            else:
                return [self._unknown]
        return ids

    def _words(self, text: str) -> list[str]:
        if self._strip:
            text = "".join(map(base, text))
        words = [""]
        for char in text:
            if char in SPACES:
                if words[-1]:
                    words.append("")
                continue
            kind = category(char)
            if char in "\0\ufffd" or kind == "C" or (self._strip and kind == "M"):
                continue
            shown = lower(char) if self._lower else char
            alone = kind == "P" or (char < "\x7f" and kind == "S")
            if alone or any(a <= ord(char) <= b for a, b in _CHINESE):
                words[-1:] = [words[-1], shown, ""] if words[-1] else [shown, ""]
            else:
                words[-1] += shown
        return [word for word in words if word]
