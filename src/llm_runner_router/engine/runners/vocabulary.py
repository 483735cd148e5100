"""The vocabulary of a model's folder, as our own endpoint wants it.

Knows: `tokens/`, what llguidance asks for. Does not know: models, files' formats.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine

from llm_runner_router.errors import BadRequest, RunnerError
from llm_runner_router.tokens.load import load

from .reading import CALL, CALL_END, THINK, THINK_END
from .refusal import Refusal, unsupported
from .session import Pair, Vocabulary

TAGS = frozenset(tag.encode() for tag in (CALL, CALL_END, THINK, THINK_END))


class HubVocabulary:
    """The tokenizer of a Hugging Face folder.

    Args:
        path: the folder, or one of its tokenizer's files.
        ends: tokens that end an answer.
        size: how many logits the model gives; it may be more than there are tokens.

    Raises:
        Refusal: it cannot be read.
    """

    def __init__(self, path: Path, *, ends: Iterable[int] = (), size: int | None = None) -> None:
        folder = path if path.is_dir() else path.parent
        try:
            self._tokenizer = load(path)
        except RunnerError as exc:
            raise Refusal(exc.message, status=500) from exc
        self._file = folder / "tokenizer.json"
        self._engine: Engine | None = None
        self._size = size or self._tokenizer.size
        self.ends = frozenset(ends)

    @property
    def size(self) -> int:
        """How many tokens there are, as the model counts them."""
        return self._size

    def encode(self, text: str, *, begin: bool) -> list[int]:
        """See `session.Vocabulary`."""
        return self._tokenizer.encode(text, special=True, add_bos=None if begin else False)

    def pair(self, first: str, second: str) -> Pair:
        """See `session.Vocabulary`.

        Raises:
            Refusal: there is no `tokenizer.json`, which says how.
        """
        if not self._file.is_file():
            raise unsupported("this model has no tokenizer.json to put two texts together", "query")
        if self._engine is None:  # only rerankers need it
            self._engine = Engine.from_file(str(self._file))
            self._engine.no_truncation()  # what does not fit is refused, not cut off
            self._engine.no_padding()
        found = self._engine.encode(first, second)
        return Pair(list(found.ids), list(found.type_ids))

    def piece(self, token: int) -> bytes:
        """See `session.Vocabulary`; a number that only pads the model's output is nothing."""
        try:
            return self._tokenizer.piece(token)
        except BadRequest:
            return b""

    def is_special(self, token: int) -> bool:
        """See `session.Vocabulary`; a number that only pads the model's output is not."""
        return token < self._tokenizer.size and self._tokenizer.is_special(token)

    def matcher_source(self) -> Any:
        """See `session.Vocabulary`.

        Not the file itself: llguidance takes added tokens for special by their looks, and then can
        write no `<tool_call>` though its own mask allows the token.
        """
        return wrapped(self, self._tokenizer.size)


def wrapped(vocabulary: Vocabulary, size: int) -> Any:
    """A vocabulary as llguidance takes those it does not know.

    Args:
        size: tokens that have bytes.
    """
    from llguidance import TokenizerWrapper

    return TokenizerWrapper(_Pieces(vocabulary, size))


class _Pieces:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        self._vocabulary = vocabulary
        pieces = [vocabulary.piece(token) for token in range(size)]
        # Tags are text to a grammar, whatever the tokenizer's file says of them.
        special = {
            token
            for token in range(size)
            if vocabulary.is_special(token) and pieces[token] not in TAGS
        }
        self.eos_token_id = min(vocabulary.ends, default=0)
        self.special_token_ids = sorted(special)
        # Special tokens are told apart by a byte that no text has.
        self.tokens = [
            (b"\xff" if token in special else b"") + piece for token, piece in enumerate(pieces)
        ]

    def __call__(self, text: str | bytes) -> list[int]:
        words = text if isinstance(text, str) else text.decode("utf-8", "replace")
        return self._vocabulary.encode(words, begin=False)


class Decoder:
    """Tokens in, text out; bytes that do not yet make a character are held back.

    Args:
        vocabulary: the tokens.
        shown: special tokens that are shown; the others are left out.
    """

    def __init__(self, vocabulary: Any, shown: frozenset[str] = frozenset()) -> None:
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
