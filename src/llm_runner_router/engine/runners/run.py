"""One answer, token by token: prompt, draw, text, stop. No threads, no sockets.

Knows: sessions, the sampler, the grammar, the clock. Does not know: HTTP, which engine computes.
`advance` does one piece of work at a time, so that several answers can take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any, Literal, Protocol

import numpy as np
from msgspec import Struct

from .asked import Asked
from .grammar import Matcher
from .refusal import too_long
from .sampling import Logits, Sampler, likeliest, log_softmax
from .session import Vocabulary
from .stops import Stops
from .turns import Held
from .vocabulary import Decoder

CHUNK = 256
"""Tokens of a prompt computed in one turn; whoever leaves is noticed in between."""

Finish = Literal["stop", "length"]


class Emitted(Struct, frozen=True):
    """Text that may be shown, with what is told of its tokens."""

    text: str
    logprobs: list[dict[str, Any]]


class Running(Protocol):
    """An answer in the making, whoever draws its tokens."""

    @property
    def finish(self) -> Finish | None:
        """Why it ended; None while it goes on."""
        ...

    @property
    def drawn(self) -> Sized:
        """The tokens so far."""
        ...

    def advance(self) -> Emitted | None:
        """Do the next piece of work; what may be shown after it."""
        ...

    def usage(self) -> dict[str, Any]:
        """OpenAI's `usage`."""
        ...

    def timings(self) -> dict[str, Any]:
        """What llama.cpp's server calls `timings`."""
        ...


class Run:
    """An answer in the making, drawn here from logits.

    Args:
        held: the sequence; its first `cached` tokens are the prompt's already.
        prompt: the prompt's tokens.
        context: tokens of prompt and answer at most.
        clock: seconds, ever growing.
        shown: special tokens that are part of the text.

    Raises:
        Refusal: the prompt does not fit the context.
    """

    def __init__(
        self,
        held: Held,
        vocabulary: Vocabulary,
        asked: Asked,
        prompt: Sequence[int],
        *,
        context: int,
        clock: Callable[[], float],
        matcher: Matcher | None = None,
        shown: frozenset[str] = frozenset(),
    ) -> None:
        if len(prompt) >= context:
            raise too_long(len(prompt), context)
        self._feed = held.feed
        self._vocabulary = vocabulary
        self._asked = asked
        self._pending = list(prompt[held.cached :])
        self._prompt = len(prompt)
        self._cached = held.cached
        self._room = context - len(prompt)
        self._clock = clock
        self._matcher = matcher
        self._sampler = Sampler(asked.settings, prompt)
        self._decoder = Decoder(vocabulary, shown)
        self._stops = Stops(asked.stops)
        self._told: list[dict[str, Any]] = []
        self._began = clock()
        self._read = 0.0
        """When the prompt was computed."""
        self._ended = 0.0
        self.drawn: list[int] = []
        self.finish: Finish | None = "length" if asked.limit == 0 else None

    def advance(self) -> Emitted | None:
        """Do the next piece of work; what may be shown after it."""
        part, self._pending = self._pending[:CHUNK], self._pending[CHUNK:]
        logits = self._feed(part)
        if self._pending:
            return None
        if not self.drawn:
            self._read = self._clock()
        return self._take(logits)

    def _take(self, logits: Logits) -> Emitted | None:
        allowed = None if self._matcher is None else self._matcher.allowed()
        ends = self._vocabulary.ends
        if self._asked.ignore_end and ends:
            allowed = np.ones(len(logits), np.bool_) if allowed is None else allowed
            allowed[[token for token in ends if token < len(allowed)]] = False
        token = self._sampler.draw(logits, allowed)
        self.drawn.append(token)
        if token in ends:
            return self._end("stop")
        if self._matcher is not None:
            self._matcher.accept(token)
        if self._asked.alternatives is not None:
            self._told.append(self._probabilities(logits, token, self._asked.alternatives))
        text = self._stops.feed(self._decoder.feed(token))
        if self._stops.found or (self._matcher is not None and self._matcher.is_done):
            return self._end("stop", text)
        if len(self.drawn) in (self._asked.limit, self._room):
            return self._end("length", text)
        self._pending = [token]
        return self._emit(text)

    def _end(self, finish: Finish, text: str = "") -> Emitted | None:
        self.finish, self._ended = finish, self._clock()
        if not self._stops.found:
            text += self._stops.feed(self._decoder.end())
            text += self._stops.end()
        return self._emit(text, last=True)

    def _emit(self, text: str, *, last: bool = False) -> Emitted | None:
        """The text with what was told since the last; nothing while text is held back."""
        if not text and not (last and self._told):
            return None
        told, self._told = self._told, []
        return Emitted(text, told)

    def _probabilities(self, logits: Logits, token: int, count: int) -> dict[str, Any]:
        """OpenAI's record of a token: from the model's own logits, before any setting."""
        logprobs = log_softmax(logits)

        def told(token: int) -> dict[str, Any]:
            piece = self._vocabulary.piece(token)
            return {
                "id": token,
                "token": piece.decode("utf-8", "replace"),
                "bytes": list(piece),
                # JSON has no infinity.
                "logprob": max(float(logprobs[token]), -1e4),
            }

        best = [told(other) for other in likeliest(logprobs, count)]
        return {**told(token), "top_logprobs": best}

    # ------------------------------------------------------------ accounts

    def usage(self) -> dict[str, Any]:
        """OpenAI's `usage`."""
        return used(self._prompt, self._cached, len(self.drawn))

    def timings(self) -> dict[str, Any]:
        """What llama.cpp's server calls `timings`."""
        ended = self._ended or self._clock()
        read = self._read or ended
        computed = self._prompt - self._cached
        return timed(self._cached, computed, read - self._began, len(self.drawn), ended - read)


def used(prompt: int, cached: int, drawn: int) -> dict[str, Any]:
    """OpenAI's `usage`, of tokens."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": drawn,
        "total_tokens": prompt + drawn,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def timed(cached: int, computed: int, read: float, drawn: int, spent: float) -> dict[str, Any]:
    """llama.cpp's `timings`: milliseconds and tokens per second.

    Args:
        cached: tokens of the prompt that were there already.
        computed: those that were not.
        read: seconds the prompt took.
        drawn: tokens of the answer.
        spent: seconds it took after the prompt.
    """
    read, spent = max(read, 1e-9), max(spent, 1e-9)
    return {
        "cache_n": cached,
        "prompt_n": computed,
        "prompt_ms": read * 1e3,
        "prompt_per_token_ms": read * 1e3 / max(computed, 1),
        "prompt_per_second": computed / read,
        "predicted_n": drawn,
        "predicted_ms": spent * 1e3,
        "predicted_per_token_ms": spent * 1e3 / max(drawn, 1),
        "predicted_per_second": drawn / spent,
    }
