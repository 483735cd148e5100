"""Whether guessing tokens ahead pays for a model, by what its runners measured. Pure.

Knows: reading and writing speed, how many guesses were right. Does not know: engines, requests.

Guesses come from the text itself (an n-gram seen before is continued as then) and cost nothing; to
check `n` of them costs about as much as reading `n` tokens of a prompt, each that is right saves
writing one. So guessing pays where

    share of right guesses · speed of reading / speed of writing > 1

On one thread of a CPU a model reads hardly faster than it writes (140 M weights of Q4_K: 146 and
94 tokens/s), and even perfect guesses gain little; with cores or bandwidth to spare it reads five
times as fast. Before any guess was made, the share is unknown, and only that ratio can decide.

Guesses of a draft model cost its own time as well, which no answer tells apart. So there the two
speeds of writing are compared, with the draft and without: first without, then on trial with it.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Raw, Struct

from .threads import TINY

Mode = Literal["auto", "ngram", "draft", "off"]
Guesses = Literal["", "ngram", "draft"]
"""Where a runner's guesses come from; empty if it makes none."""

LEAST_GAIN = 3.0
"""Reading must be this many times as fast as writing before guessing is tried."""
ENOUGH = 256
"""Guesses after which their share of right ones decides."""
MARGIN = 1.1
"""By how much it must pay: a reload is not free, and the two speeds are estimates."""
PLAIN = 256
"""Tokens that must have been written without guesses before a draft model is tried, and with one
before it is judged."""
LONG = 64
"""Tokens a prompt must have for its speed to be that of reading, not of starting."""
SMOOTH = 0.3
"""Weight of the newest measurement."""


class Timings(Struct, frozen=True):
    """What llama-server says of an answer; speeds in tokens per second."""

    prompt_n: int = 0
    prompt_per_second: float = 0.0
    predicted_n: int = 0
    predicted_per_second: float = 0.0
    draft_n: int = 0
    draft_n_accepted: int = 0


class Pace(Struct, frozen=True):
    """What was measured of a model so far."""

    reading: float | None = None
    writing: float | None = None
    """Without guesses."""
    guessed: int = 0
    """By n-grams."""
    right: int = 0
    written: int = 0
    """Tokens written without guesses."""
    drafting: float | None = None
    """Speed of writing with a draft model."""
    drafted: int = 0
    """Tokens that a draft model guessed."""
    drafted_right: int = 0
    drafting_written: int = 0
    """Tokens written with a draft model, guessed or not."""

    def after(self, told: Timings, guesses: Guesses = "ngram") -> Pace:
        """With one more answer of a runner with such guesses."""
        if guesses == "draft":
            drafting, written = self.drafting, self.drafting_written
            # A draft that dares no guess has cost its own time all the same.
            if told.predicted_n > 1:
                drafting = _smoothed(drafting, told.predicted_per_second)
                written += told.predicted_n
            # Speeds of reading are those of two models here, and left out.
            return msgspec.structs.replace(
                self,
                drafting=drafting,
                drafted=self.drafted + told.draft_n,
                drafted_right=self.drafted_right + told.draft_n_accepted,
                drafting_written=written,
            )
        reading, writing, written = self.reading, self.writing, self.written
        if told.prompt_n >= LONG:
            reading = _smoothed(reading, told.prompt_per_second)
        if told.predicted_n > 1 and not told.draft_n:
            writing = _smoothed(writing, told.predicted_per_second)
            written += told.predicted_n
        return msgspec.structs.replace(
            self,
            reading=reading,
            writing=writing,
            written=written,
            guessed=self.guessed + told.draft_n,
            right=self.right + told.draft_n_accepted,
        )


def pays(pace: Pace) -> bool:
    """Whether guessing is worth it; False while too little is known."""
    if not pace.reading or not pace.writing:
        return False
    gain = pace.reading / pace.writing
    if pace.guessed < ENOUGH:
        return gain >= LEAST_GAIN
    return pace.right / pace.guessed * gain >= MARGIN


def draft_pays(pace: Pace, now: bool) -> bool:
    """Whether a draft model is worth it, or a trial; `now`: it is loaded.

    It must be `MARGIN` times as fast as writing without to be loaded, and no slower to stay: two
    speeds that are nearly equal would cause one reload after the other.
    """
    if not pace.writing or pace.written < PLAIN:
        return now
    if pace.drafting is None or (pace.drafted < ENOUGH and pace.drafting_written < PLAIN):
        return True
    return pace.drafting >= pace.writing * (1 if now else MARGIN)


def wanted(
    mode: Mode, pace: Pace, model_bytes: int, *, draft: bool = False, now: Guesses = ""
) -> Guesses:
    """How the next runner of a model is to guess; a tiny one is fast enough as it is.

    Args:
        draft: the model has a draft model.
        now: how the present runner guesses.
    """
    if mode == "ngram":
        return "ngram"
    if mode == "draft":
        return "draft" if draft else ""
    if mode == "off" or model_bytes <= TINY:
        return ""
    if draft and draft_pays(pace, now == "draft"):
        return "draft"
    return "ngram" if pays(pace) else ""


def read(timings: Raw) -> Timings | None:
    """What of an answer's timings is used here; None if it cannot be read."""
    try:
        return msgspec.json.decode(timings, type=Timings)
    except msgspec.DecodeError:
        return None


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else before + SMOOTH * (now - before)
