"""SentencePiece's byte-pair kind: neighbours are joined by the score of what they become.

Knows: scores, byte tokens. Does not know: special tokens, spaces before the text (`gguf.py` puts
them), files.
"""

from __future__ import annotations

from typing import Final

from llm_runner_router.errors import ModelFileError

from .merging import merge
from .vocab import Vocab

SPACE: Final = "▁"
MAX_CACHE: Final = 50_000
CACHED_LENGTH: Final = 64


class SpmEncoder:
    """Text to ids; spaces become `▁`, what no token spells becomes bytes."""

    def __init__(self, vocab: Vocab) -> None:
        self._source = vocab.source
        self._ids = {text: i for i, text in enumerate(vocab.tokens)}
        self._scores = vocab.scores
        # Text may be cut before a space unless some token goes on over it; then pieces are short
        # and repeat, and cutting changes nothing.
        self._over = {
            text[i - 1] for text in vocab.tokens for i in range(1, len(text)) if text[i] == SPACE
        }
        self._cache: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`.

        Raises:
            ModelFileError: the vocabulary has no token for a byte that is needed.
        """
        out: list[int] = []
        cache = self._cache
        for word in self._words(text.replace(" ", SPACE)):
            found = cache.get(word)
            if found is None:
                found = self._word(word)
                if len(word) <= CACHED_LENGTH:
                    if len(cache) >= MAX_CACHE:
                        cache.clear()
                    cache[word] = found
            out += found
        return out

    def _words(self, text: str) -> list[str]:
        words, start = [], 0
        at = text.find(SPACE, 1)
        while at > 0:
            if text[at - 1] not in self._over:
                words.append(text[start:at])
                start = at
            at = text.find(SPACE, at + 1)
        return [*words, text[start:]] if start < len(text) else words

    def _word(self, word: str) -> tuple[int, ...]:
        ids, scores = self._ids, self._scores

        def order(left: str, right: str) -> float | None:
            id = ids.get(left + right)
            return None if id is None else -scores[id]

        out: list[int] = []
        for part in merge(word, order):
            id = ids.get(part)
            out += self._bytes(part) if id is None else (id,)
        return tuple(out)

    def _bytes(self, part: str) -> list[int]:
        found = []
        for byte in part.encode("utf-8", "surrogateescape"):
            id = self._ids.get(f"<0x{byte:02X}>")
            if id is None:
                id = self._ids.get(chr(byte)) if byte < 128 else None
            if id is None:
                raise ModelFileError(
                    f"the vocabulary of `{self._source}` has no token for the byte {byte:#04x}",
                    hint="convert the model anew; byte tokens are missing",
                )
            found.append(id)
        return found
