"""The child side of the mock engine: answers that follow from the prompt, and scripted faults.

Knows: bytes. Does not know: models. Everything but the computing is real: the endpoint, sampling,
stop sequences, grammars. Options of the model:

    text        the answer, after `mock: `; default is a checksum of the prompt
    delay       seconds that each token takes
    load_delay  seconds that loading takes
    load_error  text with which loading fails
    fail_at     the token (from 0) whose computation raises
    crash_at    the token (from 0) at which the process ends with exit code 3
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import serving
from .sampling import Logits
from .session import Order, Pair, Session
from .vocabulary import wrapped

END, ANSWER = 256, 257
"""Tokens after the bytes: the end of an answer, and the beginning of one."""
SIZE = 258
LIKELY = 8.0
"""Logit of the right byte."""
NEXT = 2.97
"""How much less another one has: e^-2.97 is 5.1 %, which the default `top_p` of 0.95 leaves out and
the default `min_p` of 0.05 lets in. So a draw differs only for those who ask with `top_p: 1`."""
WIDTH = 16
"""Length of an embedding."""
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% for tool in tools or [] %}<tool_call>{{ tool.function.name }}</tool_call>\n{% endfor %}"
    "<answer>"
)


def serve(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Serve answers; does not return."""
    serving.serve(order, tell, load)


def load(order: Order) -> MockModel:
    """The mock, after its scripted delay.

    Raises:
        RuntimeError: the script says so.
    """
    time.sleep(float(order.options.get("load_delay", 0)))
    if error := order.options.get("load_error"):
        raise RuntimeError(str(error))
    return MockModel(order.options)


class ByteVocabulary:
    """A token per byte, and two special ones."""

    size = SIZE
    ends = frozenset((END,))

    def encode(self, text: str, *, begin: bool) -> list[int]:
        """See `session.Vocabulary`; a whole text is followed by the beginning of its answer."""
        text, mark, _ = text.partition("<answer>")
        return [*text.encode(), *((ANSWER,) if begin or mark else ())]

    def pair(self, first: str, second: str) -> Pair:
        """See `session.Vocabulary`."""
        one, other = list(first.encode()), list(second.encode())
        return Pair([*one, END, *other], [0] * (len(one) + 1) + [1] * len(other))

    def piece(self, token: int) -> bytes:
        """See `session.Vocabulary`."""
        return bytes([token]) if token < END else b"<end>" if token == END else b"<answer>"

    def is_special(self, token: int) -> bool:
        """See `session.Vocabulary`."""
        return token >= END

    def matcher_source(self) -> Any:
        """See `session.Vocabulary`."""
        return wrapped(self, SIZE)


class MockModel:
    """See `session.Loaded`."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self.vocabulary = ByteVocabulary()
        self.template: str | None = TEMPLATE
        self.variables: dict[str, Any] = {}

    def session(self) -> Session:
        """A new, empty sequence."""
        return MockSession(self._options)

    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Counts of byte values, folded to `WIDTH` numbers and made of length one."""
        rows = np.zeros((len(texts), WIDTH), np.float32)
        for row, text in zip(rows, texts, strict=True):
            np.add.at(row, np.asarray(text) % WIDTH, 1)
            row /= np.linalg.norm(row)
        return rows

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """How many of the query's words each document has."""
        return [float(len(_words(pair, 0) & _words(pair, 1))) for pair in pairs]


def _words(pair: Pair, kind: int) -> set[bytes]:
    text = zip(pair.tokens, pair.kinds, strict=True)
    return set(bytes(t for t, k in text if k == kind and t < END).lower().split())


class MockSession:
    """See `session.Session`: the next byte of the answer is likely, one other less so."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._tokens: list[int] = []

    def feed(self, tokens: Sequence[int]) -> Logits:
        """See `session.Session`."""
        self._tokens += tokens
        if ANSWER not in self._tokens:
            return np.zeros(SIZE, np.float32)
        start = len(self._tokens) - self._tokens[::-1].index(ANSWER)
        drawn = len(self._tokens) - start
        self._act(drawn)
        answer = self._answer(self._tokens[: start - 1])
        logits = np.full(SIZE, -8.0, np.float32)
        said = answer[drawn] if drawn < len(answer) else END
        if said < END:
            logits[said ^ 1] = LIKELY - NEXT
        logits[said] = LIKELY
        return logits

    def _answer(self, prompt: list[int]) -> bytes:
        said = self._options.get("text")
        if said is None:
            said = f"{zlib.crc32(bytes(b for b in prompt if b < END)):08x}"
        return f"mock: {said}".encode()

    def _act(self, drawn: int) -> None:
        """Do what the script says for this token."""
        time.sleep(float(self._options.get("delay", 0)))
        if drawn == self._options.get("crash_at", -1):
            os._exit(3)
        if drawn == self._options.get("fail_at", -1):
            raise RuntimeError("the script of the mock says so")

    def rewind(self, length: int) -> int:
        """See `session.Session`."""
        del self._tokens[length:]
        return length

    def close(self) -> None:
        """See `session.Session`."""
