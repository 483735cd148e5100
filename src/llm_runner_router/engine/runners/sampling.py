"""Draws the next token from logits, the way llama.cpp does, in numpy.

Knows: logits and settings. Does not know: models, text. Order, meaning and defaults are
llama.cpp's (`common/sampling.cpp`, b11549), so that a request means the same on every engine:
bias, penalties, top-k, top-p, min-p, temperature, draw. A temperature of zero takes the likeliest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Allowed = NDArray[np.bool_]

MOST = 1e30
"""Bound of a logit: what a request adds or divides by must leave numbers to compare."""


class Settings(Struct, frozen=True):
    """How to draw; the defaults are llama.cpp's."""

    temperature: float = 0.8
    top_k: int = 40
    """Keep this many of the likeliest; 0 keeps all."""
    top_p: float = 0.95
    """Keep the likeliest that together reach this probability; 1 keeps all."""
    min_p: float = 0.05
    """Drop what is less likely than this share of the likeliest; 0 drops nothing."""
    repeat_penalty: float = 1.0
    """Divides the logit of a token that was seen, or multiplies it where it is negative."""
    presence_penalty: float = 0.0
    """Taken from the logit of a token that was seen."""
    frequency_penalty: float = 0.0
    """The same for each time that it was seen."""
    last: int = 64
    """Tokens that penalties look back on, the prompt's end among them; 0 is none, -1 all."""
    seed: int | None = None
    """Equal seeds give equal draws; None is another one each time."""
    bias: dict[int, float] = {}
    """Added to the logits of these tokens."""


class Sampler:
    """Draws tokens of one answer.

    Args:
        settings: how to draw.
        seen: the prompt's tokens, for the penalties.
    """

    def __init__(self, settings: Settings, seen: Iterable[int] = ()) -> None:
        self._settings = settings
        last = settings.last
        self._seen: deque[int] = deque(seen, maxlen=None if last < 0 else last)
        self._random = np.random.Generator(np.random.PCG64(settings.seed))

    def draw(self, logits: Logits, allowed: Allowed | None = None) -> int:
        """The next token; it counts as seen from now on.

        Args:
            logits: one number per token of the vocabulary, shape (vocabulary,); left as they are.
            allowed: which tokens may be drawn, of the same shape; None is all.

        Raises:
            ValueError: no token is allowed, or the model computed what is no number.
        """
        token = self._draw(self._penalised(logits, allowed))
        self._seen.append(token)
        return token

    def _penalised(self, logits: Logits, allowed: Allowed | None) -> Logits:
        settings = self._settings
        changed = logits.astype(np.float32, copy=True)
        if np.isnan(changed).any():
            # The largest of them would be drawn as if it were an answer.
            raise ValueError("the model computed what is no number (NaN): its weights are broken")
        for token, bias in settings.bias.items():
            if 0 <= token < len(changed):
                changed[token] += min(max(bias, -MOST), MOST)
        if self._seen and (
            settings.repeat_penalty != 1.0
            or settings.presence_penalty
            or settings.frequency_penalty
        ):
            tokens, counts = np.unique(np.fromiter(self._seen, np.int64), return_counts=True)
            values = changed[tokens]
            repeat = settings.repeat_penalty
            with np.errstate(all="ignore"):
                values = np.where(values > 0, values / repeat, values * repeat)
                values -= counts * settings.frequency_penalty + settings.presence_penalty
            changed[tokens] = values
        np.clip(changed, -MOST, MOST, out=changed)
        if allowed is not None:
            # Some models give logits beyond their vocabulary, so that the number is a round one.
            allowed = allowed[: len(changed)]
            if not allowed.any():
                raise ValueError("no token is allowed")
            changed[: len(allowed)][~allowed] = -np.inf
            changed[len(allowed) :] = -np.inf
        return changed

    def _draw(self, logits: Logits) -> int:
        settings = self._settings
        if settings.temperature <= 0:
            return int(np.argmax(logits))
        if 0 < settings.top_k < len(logits):
            kept = np.argpartition(logits, -settings.top_k)[-settings.top_k :]
        else:
            kept = np.arange(len(logits))
        kept = kept[np.argsort(-logits[kept], kind="stable")]
        chances = softmax(logits[kept])
        if settings.top_p < 1.0:
            enough = int(np.searchsorted(np.cumsum(chances), settings.top_p)) + 1
            kept, chances = kept[:enough], chances[:enough]
        if settings.min_p > 0.0:
            kept = kept[chances >= settings.min_p * chances[0]]
        likely = logits[kept].astype(np.float64)
        with np.errstate(over="ignore"):  # next to zero: all but the likeliest become impossible
            likely = (likely - likely.max()) / settings.temperature
        chances = softmax(likely)
        return int(kept[self._random.choice(len(kept), p=chances)])


def softmax(logits: Logits | NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities, shape as given; minus infinity is impossible."""
    powers = np.exp(logits.astype(np.float64) - float(np.max(logits)))
    return np.asarray(powers / powers.sum())


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Logarithms of `softmax`."""
    shifted = logits.astype(np.float64) - float(np.max(logits))
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def likeliest(logprobs: NDArray[np.float64], count: int) -> list[int]:
    """The tokens with the largest log-probabilities, the largest first."""
    if count <= 0:
        return []
    count = min(count, len(logprobs))
    kept = np.argpartition(logprobs, -count)[-count:]
    return [int(token) for token in kept[np.argsort(-logprobs[kept], kind="stable")]]
