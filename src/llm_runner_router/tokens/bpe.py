"""Byte-pair encoding of plain text, with a GGUF vocabulary.

Knows: pre-tokenizers (`pre.py`), merges, GPT-2's byte letters. Does not know: special tokens,
files.
"""

from __future__ import annotations

from typing import Final

from llm_runner_router.errors import Unsupported

from .chars import to_letters
from .merging import merge
from .pre import rows, split
from .vocab import Vocab

MAX_CACHE: Final = 50_000
"""Words that are remembered with their ids; most of a text is words that come again."""
CACHED_LENGTH: Final = 64
SPACE: Final = "▁"


class BpeEncoder:
    """Text to ids; nothing is added and no special token is read."""

    def __init__(self, vocab: Vocab) -> None:
        """Raises:
        Unsupported: the pre-tokenizer is not known here.
        """
        name = "gemma4" if vocab.model == "gemma4" else (vocab.pre or "default")
        row = rows().get(name)
        if row is None:
            raise Unsupported(
                f"the pre-tokenizer `{name}` of `{vocab.source}` is not known",
                hint="count with the engine, or name the model's original folder",
            )
        self.row = row
        self._raw = "spaces" in row.flags
        self._whole = "whole" in row.flags
        self._lines = "lines" in row.flags
        self._ids = {text: i for i, text in enumerate(vocab.tokens)}
        self._ranks: dict[str, int] = {}
        for rank, pair in enumerate(vocab.merges):
            self._ranks.setdefault(pair, rank)
        self._cache: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; what no token can spell is left out, as the engine leaves it."""
        if self._raw:
            text = text.replace(" ", SPACE)
        words = split(self.row, text)
        if "words" in self.row.flags:
            words = [part for word in words for part in _metaspace(word)]
        out: list[int] = []
        cache = self._cache
        for word in words:
            found = cache.get(word)
            if found is None:
                found = self._word(word)
                if len(word) <= CACHED_LENGTH:
                    if len(cache) >= MAX_CACHE:
                        cache.clear()
                    cache[word] = found
            out += found
        return out

    def _word(self, word: str) -> tuple[int, ...]:
        if not self._raw:
            word = word.encode("utf-8", "surrogateescape").decode("latin-1").translate(to_letters())
        whole = self._ids.get(word)
        if whole is not None and (self._whole or (self._lines and not word.strip("\n"))):
            return (whole,)
        ranks = self._ranks
        ids: list[int] = []
        for part in merge(word, lambda left, right: ranks.get(f"{left} {right}")):
            id = self._ids.get(part)
            ids += self._spelt(part) if id is None else (id,)
        return tuple(ids)

    def _spelt(self, part: str) -> list[int]:
        """Tokens of single bytes for a part that is no token."""
        if self._raw:
            names = [f"<0x{b:02X}>" for b in part.encode("utf-8", "surrogateescape")]
        else:
            names = [c for c in part if c.isascii()]
        return [self._ids[name] for name in names if name in self._ids]


def _metaspace(word: str) -> list[str]:
    """The words that a `▁` begins; a text begins with one."""
    if not word.strip("\n"):
        return [word]
    if not word.startswith(SPACE):
        word = SPACE + word
    return [SPACE + part for part in word[1:].split(SPACE)]
