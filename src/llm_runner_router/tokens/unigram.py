"""SentencePiece's unigram kind: the likeliest way to spell a text with the vocabulary.

Knows: log probabilities, SentencePiece's compiled map of characters (a double array of replaced
prefixes). Does not know: special tokens, files.
"""

from __future__ import annotations

import math
import struct
from typing import Final

from llm_runner_router.errors import ModelFileError

from .vocab import NORMAL, UNUSED, USER, Vocab

PENALTY: Final = 10.0
"""How much worse than the worst token an unknown character is, as SentencePiece has it."""
MAX_PREFIX: Final = 1024
"""Bytes of a replaced prefix; real maps have some dozens, and a bad one must not cost n²."""
SPACE: Final = "▁".encode()
_BROKEN: Final = "\ufffd".encode()


class UnigramEncoder:
    """Text to ids; neighbouring unknown characters are one unknown token."""

    def __init__(self, vocab: Vocab, unknown: int) -> None:
        """Raises:
        ModelFileError: the map of characters is damaged.
        """
        self._unknown = unknown
        self._map = Charsmap(vocab.charsmap, vocab.source) if vocab.charsmap else None
        self._prefix = vocab.flag("add_space_prefix", False)
        self._merge = vocab.flag("remove_extra_whitespaces", False)
        self._scores: dict[bytes, tuple[int, float]] = {}
        lengths: dict[int, set[int]] = {}
        self._user: set[bytes] = set()
        normal = [s for s, t in zip(vocab.scores, vocab.types, strict=True) if t == NORMAL]
        self._unknown_score = min(normal, default=0.0) - PENALTY
        for id, (text, kind) in enumerate(zip(vocab.tokens, vocab.types, strict=True)):
            if kind not in (NORMAL, USER, UNUSED):
                continue
            raw = text.encode("utf-8", "surrogateescape")
            self._scores[raw] = (id, 0.0 if kind == USER else vocab.scores[id])
            lengths.setdefault(raw[0], set()).add(len(raw))
            if kind == USER:
                self._user.update(raw[:n] for n in range(1, len(raw) + 1))
        self._lengths = {first: sorted(found) for first, found in lengths.items()}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`.

        Raises:
            ModelFileError: the map of characters is damaged.
        """
        data = self._normalized(text.encode("utf-8", "surrogateescape"))
        if not data:
            return []
        best = [(-math.inf, self._unknown, 0)] * (len(data) + 1)
        best[0] = (0.0, self._unknown, 0)
        at = 0
        while at < len(data):
            step = min(_width(data[at]), len(data) - at)
            sum_here, known = best[at][0], False
            for length in self._lengths.get(data[at], ()):
                end = at + length
                if end > len(data):
                    break
                found = self._scores.get(data[at:end])
                if found is None:
                    continue
                known = known or length == step
                total = sum_here + found[1]
                if total > best[end][0]:
                    best[end] = (total, found[0], at)
            if not known and sum_here + self._unknown_score > best[at + step][0]:
                best[at + step] = (sum_here + self._unknown_score, self._unknown, at)
            at += step
        return self._traced(best)

    def _traced(self, best: list[tuple[float, int, int]]) -> list[int]:
        ids: list[int] = []
        at, before = len(best) - 1, False
        while at > 0:
            _, id, start = best[at]
            if not (before and id == self._unknown):
                ids.append(id)
            before, at = id == self._unknown, start
        return ids[::-1]

    def _normalized(self, data: bytes) -> bytes:
        out = bytearray()
        in_word = began = False
        at = 0
        while at < len(data):
            piece, used = self._replaced(data, at)
            at += used
            for byte in piece:
                if byte != 0x20:
                    if not in_word:
                        in_word = True
                        if (self._prefix and not began) or self._merge:
                            out += SPACE
                            began = True
                    out.append(byte)
                else:
                    in_word = False
                    if not self._merge:
                        out += SPACE
        return bytes(out)

    def _replaced(self, data: bytes, at: int) -> tuple[bytes, int]:
        """What stands for the bytes at `at`, and how many of them it stands for."""
        end = at
        while end < len(data) and data[at : end + 1] in self._user:
            end += 1
        if end > at:  # the beginning of a token that was added as it stands
            return data[at:end], end - at
        if self._map is not None:
            found = self._map.longest(data, at)
            if found is not None:
                return found
        width = _width(data[at])
        piece = data[at : at + width]
        if len(piece) == width and (width > 1 or piece < b"\x80"):
            if all(byte & 0xC0 == 0x80 for byte in piece[1:]):
                return piece, width
        return _BROKEN, 1


class Charsmap:
    """SentencePiece's `precompiled_charsmap`: which prefixes are replaced by what.

    u32 size, then that many bytes of a double array of u32 (Kanda 2018, XOR-compressed), then the
    replacements, each ended by a zero byte.
    """

    def __init__(self, data: bytes, source: str) -> None:
        """Raises:
        ModelFileError: sizes that do not fit.
        """
        self._source = source
        size = int.from_bytes(data[:4], "little")
        if len(data) < 4 or size + 4 >= len(data):
            raise self._damaged()
        self._units = struct.unpack_from(f"<{size // 4}I", data, 4)
        self._texts = data[4 + size :]

    def longest(self, data: bytes, at: int) -> tuple[bytes, int] | None:
        """The replacement of the longest prefix at `at` that has one, and that prefix's length.

        Raises:
            ModelFileError: it points outside itself.
        """
        units, found = self._units, None
        try:
            node = _base(units[0])
            for end in range(at, min(len(data), at + MAX_PREFIX)):
                byte = data[end]
                if byte == 0:
                    break
                node ^= byte
                unit = units[node]
                if unit & 0x800000FF != byte:
                    break
                node ^= _base(unit)
                if unit >> 8 & 1:
                    found = (end + 1 - at, units[node] & 0x7FFFFFFF)
        except IndexError:
            raise self._damaged() from None
        if found is None:
            return None
        length, start = found
        stop = self._texts.find(b"\0", start)
        if stop < 0 or start >= len(self._texts):
            raise self._damaged()
        return self._texts[start:stop], length

    def _damaged(self) -> ModelFileError:
        return ModelFileError(
            f"the map of characters (`precompiled_charsmap`) of `{self._source}` is damaged",
            hint="convert the model anew",
        )


def _base(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _width(byte: int) -> int:
    """Bytes of the character that begins with `byte`; 1 for what begins none."""
    return _WIDTHS[byte >> 4]


_WIDTHS: Final = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4)
