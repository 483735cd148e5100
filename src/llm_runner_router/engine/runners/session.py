"""What an engine of ours gives its endpoint: a model, its vocabulary, and sessions.

Knows: the shapes. Does not know: any inference library, HTTP. All calls that compute come from one
thread, one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from .sampling import Logits


class Order(Struct, frozen=True):
    """What `endpoint.order` tells a child: see there for the meaning."""

    model: str
    name: str
    api_key: str
    slots: int
    context: int
    threads: int
    batch_threads: int
    purpose: str
    options: dict[str, Any] = {}
    template: str | None = None
    """In place of the model's own."""
    env: dict[str, str] = {}


class Vocabulary(Protocol):
    """Text to tokens and back."""

    @property
    def size(self) -> int:
        """How many tokens there are."""
        ...

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ...

    def encode(self, text: str, *, begin: bool) -> list[int]:
        """The tokens of a text; names of special tokens in it are those tokens.

        Args:
            begin: put before and after it what the model expects around a whole text.
        """
        ...

    def pair(self, first: str, second: str) -> Pair:
        """Two texts as one sequence."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for in a text."""
        ...

    def is_special(self, token: int) -> bool:
        """It steers the model and is no text."""
        ...

    def matcher_source(self) -> Any:
        """What `llguidance.LLTokenizer` is made from."""
        ...


class Pair(Struct, frozen=True):
    """Two texts as one sequence, as a cross-encoder takes them."""

    tokens: list[int]
    kinds: list[int]
    """For each token, which text it belongs to: 0 or 1."""


class Session(Protocol):
    """One sequence of tokens with its keys and values."""

    def feed(self, tokens: Sequence[int]) -> Logits:
        """Put tokens at the end; the logits after the last, shape (vocabulary,)."""
        ...

    def rewind(self, length: int) -> int:
        """Forget all after the first `length` tokens; how many are kept, which may be fewer."""
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


class Loaded(Protocol):
    """A loaded model. What it cannot do raises `Refusal`."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Its tokens."""
        ...

    @property
    def template(self) -> str | None:
        """Its chat template, in Jinja."""
        ...

    @property
    def variables(self) -> dict[str, Any]:
        """What the template is given beside the messages: `bos_token`, `eos_token`."""
        ...

    def session(self) -> Session:
        """A new, empty sequence."""
        ...

    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """One vector of length one per text, shape (texts, width)."""
        ...

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """How well the second text of each pair answers the first; greater is better."""
        ...
