"""The vocabulary of a Hugging Face folder, for our own endpoint.

Knows: `tokenizer.json`, and how its decoders spell bytes. Does not know: models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .refusal import Refusal

_BYTE = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


def byte_letters() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes with (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    letters.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return letters


_LETTERS = byte_letters()


class HubVocabulary:
    """A `tokenizer.json`.

    Args:
        path: the file.
        ends: tokens that end an answer.
        size: how many logits the model gives; it may be more than there are tokens.

    Raises:
        Refusal: it cannot be read.
    """

    def __init__(self, path: Path, *, ends: Iterable[int] = (), size: int | None = None) -> None:
        try:
            self._text = path.read_text("utf-8")
            self._tokenizer = Tokenizer.from_str(self._text)
            content = json.loads(self._text)
        except Exception as exc:  # `tokenizers` raises plain Exceptions
            raise Refusal(f"cannot read the tokenizer `{path}`: {exc}") from exc
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = content.get("added_tokens") or ()
        self._special = frozenset(int(t["id"]) for t in added if t.get("special"))
        self._added = {int(t["id"]): str(t["content"]) for t in added}
        decoders = json.dumps(content.get("decoder") or {}) + json.dumps(
            content.get("pre_tokenizer") or {}
        )
        self._letters = '"ByteLevel"' in decoders
        self._wordpiece = '"WordPiece"' in decoders
        self._size = size or self._tokenizer.get_vocab_size()
        self.ends = frozenset(ends)

    @property
    def size(self) -> int:
        """How many tokens there are, as the model counts them."""
        return self._size

    def encode(self, text: str, *, begin: bool) -> list[int]:
        """See `session.Vocabulary`."""
        return list(self._tokenizer.encode(text, add_special_tokens=begin).ids)

    def pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Two texts as a cross-encoder takes them: tokens, and which text each belongs to."""
        found = self._tokenizer.encode(first, second)
        return list(found.ids), list(found.type_ids)

    def piece(self, token: int) -> bytes:
        """See `session.Vocabulary`."""
        if token in self._added:
            return self._added[token].encode()
        word = self._tokenizer.id_to_token(token)
        if word is None:
            return b""
        if self._letters:
            return bytes(_LETTERS.get(letter, 0x3F) for letter in word)
        if byte := _BYTE.match(word):
            return bytes([int(byte[1], 16)])
        if self._wordpiece:
            return (word.removeprefix("##") if word.startswith("##") else " " + word).encode()
        return str(word).replace("\u2581", " ").encode()

    def is_special(self, token: int) -> bool:
        """See `session.Vocabulary`."""
        return token in self._special

    def matcher_source(self) -> Any:
        """See `session.Vocabulary`."""
        return self._text


class Decoder:
    """Tokens in, text out; bytes that do not yet make a character are held back.

    Args:
        vocabulary: the tokens.
        shown: special tokens that are shown; the others are left out.
    """

    def __init__(self, vocabulary: Any, shown: frozenset[str] = frozenset()) -> None:
        import codecs

        self._vocabulary = vocabulary
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that `token` completes."""
        piece = self._vocabulary.piece(token)
        if self._vocabulary.is_special(token) and piece.decode("utf-8", "replace") not in (
            self._shown
        ):
            return ""
        return str(self._decoder.decode(piece))

    def end(self) -> str:
        """What was held back."""
        return str(self._decoder.decode(b"", final=True))
