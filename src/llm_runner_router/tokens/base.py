"""The contract of every tokenizer, and text that comes out of tokens piece by piece.

Knows: ids, bytes, UTF-8. Does not know: any kind of vocabulary, any file.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Literal, Protocol

Kind = Literal["bpe", "spm", "unigram", "wordpiece", "tiktoken", "hf"]
"""How text becomes ids. `hf` is whatever a `tokenizer.json` describes."""


class Tokenizer(Protocol):
    """Text to token ids and back. Immutable to its users and safe to share between threads."""

    @property
    def kind(self) -> Kind:
        """How it works."""
        ...

    @property
    def size(self) -> int:
        """Number of tokens; ids are below it."""
        ...

    @property
    def bos(self) -> int | None:
        """Token that begins a text."""
        ...

    @property
    def eos(self) -> int | None:
        """Token that ends a text."""
        ...

    def encode(
        self, text: str, *, special: bool = False, add_bos: bool | None = False
    ) -> list[int]:
        """The ids of `text`.

        Args:
            text: any text; lone surrogates become `?`.
            special: read the names of control tokens in the text as those tokens. Leave it off for
                text from strangers. Tokens that a vocabulary's maker added as plain words are
                always read.
            add_bos: put the tokens around it that the model wants around a whole text (BOS, and
                EOS or SEP where it wants those); None: as the model's file says. True forces a
                BOS where the file wants none.
        """
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; broken UTF-8 becomes U+FFFD.

        Raises:
            BadRequest: an id that is not below `size`.
        """
        ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`, control tokens by their names, nothing stripped.

        Raises:
            BadRequest: as `decode`.
        """
        ...

    def piece(self, id: int) -> bytes:
        """The bytes of one token; a control token's are its name.

        Raises:
            BadRequest: as `decode`.
        """
        ...

    def is_special(self, id: int) -> bool:
        """Whether `decode` leaves this token out."""
        ...

    def count(self, text: str) -> int:
        """How many tokens `text` alone takes, with no token added."""
        ...

    def stream(self) -> Detokenizer:
        """A fresh reader of ids that come one after another."""
        ...


class Detokenizer:
    """Turns ids into text as they come; never gives half a character.

    `feed` each token and `close` at the end: what was given, joined, is the text of all of them.
    """

    def __init__(self, tokenizer: Tokenizer, *, strip: bool, skip_special: bool = True) -> None:
        """`strip`: leave out the space that the first piece begins with."""
        self._tokenizer = tokenizer
        self._strip = strip
        self._skip = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, id: int) -> str:
        """The text that is certain now; often none while a character is incomplete.

        Raises:
            BadRequest: an id that the vocabulary lacks.
        """
        piece = self._tokenizer.piece(id)
        if self._skip and self._tokenizer.is_special(id):
            return ""
        if self._strip and piece:
            self._strip = False
            piece = piece.removeprefix(b" ")
        return self._decoder.decode(piece)

    def close(self) -> str:
        """What is left; U+FFFD for a character that never was complete."""
        return self._decoder.decode(b"", final=True)
