"""What the answers of a model say about it. Pure.

Knows: what every sound model manages, and where chance would be. Does not know: how a model is
asked (`deep_run.py`), engines.

Only what no sound model does is `bad`: numbers that are none. An answer that looks wrong is `odd`:
a small, narrow or untrained model may answer like that, and its file is whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import Struct

from llm_runner_router.models.deepcheck import Finding

MANY: Final = 8
"""Tokens of which one may not be all: a short answer such as `ha ha ha` is none of a fault."""
UNSURE: Final = 0.5
"""Share of the surprise of pure chance (ln of the vocabulary's size) above which a model's own
likeliest tokens tell that it guesses. Seen: 0.83 where all weights are random, 0.00 to 0.03 for the
demonstration models."""
SURE: Final = 0.25
"""The same share below which it is sure of what it says."""
CHANCE: Final = 0.5
"""Share of the vocabulary's size that a perplexity must stay below to be better than chance. A bit
per token is less than any model learns from how often each token occurs."""
UNIT: Final = 0.01
"""How far the length of a vector may be from one: far more than half-precision numbers round."""
_SHOWN: Final = 60
_DEBRIS: Final = re.compile(
    r"<[|｜][^<>|｜\s]{1,40}[|｜]>|<(?:start|end)_of_[a-z]{1,20}>"
    r"|</?(?:s|bos|eos|pad|unk)>|\[/?INST\]"
)
"""Control tokens that stand in an answer as text. Tags of thoughts and calls may be meant."""


class Said(Struct, frozen=True):
    """One answer."""

    text: str
    """With the thoughts before it, if there are any."""
    finish: str | None
    tokens: tuple[bytes, ...] = ()
    """The bytes of each token; empty where the engine does not tell tokens."""
    logprobs: tuple[float | None, ...] = ()
    """Of each token; None is what JSON makes of no number."""

    @property
    def surprise(self) -> float | None:
        """Mean of −ln p over the tokens; None if it is not known."""
        known = [p for p in self.logprobs if p is not None and math.isfinite(p)]
        return -sum(known) / len(known) if known else None


class Foretold(Struct, frozen=True):
    """How well a text was foretold."""

    nll: float
    """Sum of −ln p of the tokens."""
    tokens: int
    bytes: int
    """Of those tokens; 0 if it is not known."""


def answer(engine: str, said: Sequence[Said], vocabulary: int) -> Finding:
    """The same question, answered twice without chance.

    Args:
        engine: who computed it.
        said: both answers.
        vocabulary: the number of tokens; 0 if it is not known.
    """
    first = said[0]
    if any(p is None or not math.isfinite(p) for p in first.logprobs):
        detail = "computes what is no number (NaN): the weights are broken, or read wrongly"
        return Finding("answer", "bad", f"{engine} {detail}")
    problems = list(_problems(said, vocabulary))
    shown = f"{engine}: {first.text[:_SHOWN]!r}"
    if problems:
        return Finding("answer", "odd", "; ".join((shown, *problems)))
    end = "ends by itself" if first.finish == "stop" else "goes on to the limit"
    return Finding("answer", "ok", f"{shown}, {end}, the same twice")


def _problems(said: Sequence[Said], vocabulary: int) -> Iterator[str]:
    first, second = said
    if not first.text.strip():
        yield "it says nothing"
    if _is_broken(first):
        yield "it is not valid UTF-8"
    if marks := sorted(set(_DEBRIS.findall(first.text))):
        yield f"it writes {', '.join(f'`{mark}`' for mark in marks[:3])} as text"
    if len(first.tokens) >= MANY and len(set(first.tokens)) == 1:
        yield "it repeats one token"
    if first.finish not in ("stop", "length"):
        yield f"it ends with {first.finish!r}"
    if (first.tokens or first.text) != (second.tokens or second.text):
        yield f"a second time it says {second.text[:_SHOWN]!r}"
    surprise = first.surprise
    if surprise is not None and vocabulary > 1 and surprise > UNSURE * math.log(vocabulary):
        yield "it is about as unsure as if it guessed"


def _is_broken(said: Said) -> bool:
    """Whether the bytes are no text; a character that the limit cut off is none of a fault."""
    try:
        b"".join(said.tokens).decode() if said.tokens else said.text.encode()
    except UnicodeDecodeError as exc:
        cut = said.finish == "length" and exc.reason == "unexpected end of data"
        return not cut
    except UnicodeEncodeError:
        return True
    return not said.tokens and "\ufffd" in said.text


def perplexity(found: Foretold, vocabulary: int, said: Said | None) -> Finding:
    """How well the model foretells English prose.

    Worse than chance is no fault where the model is sure of its own answer and knows when to end:
    it was trained on other texts, and is sure of those.

    Args:
        found: the figures.
        vocabulary: the number of tokens; 0 if it is not known.
        said: its answer, if nothing was odd about it.
    """
    mean = found.nll / found.tokens
    if not math.isfinite(mean):
        return Finding("perplexity", "bad", "what it computes is no number (NaN)")
    value = math.exp(mean) if mean < 700 else math.inf
    bits = f", {found.nll / math.log(2) / found.bytes:.2f} bits per byte" if found.bytes else ""
    figure = f"{value:.4g}" if value < 1e4 else f"{value:.0f}"
    detail = f"{figure} on English prose{bits}"
    if not vocabulary or value < CHANCE * vocabulary:
        return Finding("perplexity", "ok", detail)
    surprise = None if said is None else said.surprise
    sure = surprise is not None and surprise < SURE * math.log(vocabulary)
    if said is not None and said.finish == "stop" and sure:
        return Finding("perplexity", "ok", f"{detail}: it was made for other texts")
    return Finding("perplexity", "odd", f"{detail}: as good as random, of {vocabulary} tokens")


def vectors(engine: str, found: Sequence[Sequence[float]]) -> Finding:
    """The vectors of two texts that mean the same, and of one that means something else."""
    if not all(math.isfinite(x) for row in found for x in row):
        return Finding("vectors", "bad", f"{engine}: numbers that are not finite")
    lengths = [math.sqrt(sum(x * x for x in row)) for row in found]
    if not all(lengths):
        return Finding("vectors", "bad", f"{engine}: nothing but zeros")
    same, other = (_cosine(found[0], row) for row in found[1:3])
    problems = []
    if any(abs(length - 1) > UNIT for length in lengths):
        problems.append(f"they have the length {max(lengths):.3g}, not 1")
    if same <= other:
        problems.append("a text that means the same is no nearer than another one")
    detail = f"{engine}: {len(found[0])} numbers, {same:.2f} to the same, {other:.2f} to another"
    return Finding("vectors", "odd" if problems else "ok", "; ".join((detail, *problems)))


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    length = math.sqrt(sum(x * x for x in one) * sum(x * x for x in other))
    return sum(a * b for a, b in zip(one, other, strict=True)) / length


def ranking(engine: str, scores: Sequence[float]) -> Finding:
    """The scores of documents of which the first answers the query."""
    shown = ", ".join(f"{score:.3g}" for score in scores)
    if not all(math.isfinite(score) for score in scores):
        return Finding("ranking", "bad", f"{engine}: scores that are not finite ({shown})")
    if scores[0] <= max(scores[1:]):
        return Finding("ranking", "odd", f"{engine}: the answer is not the best document ({shown})")
    return Finding("ranking", "ok", f"{engine}: the answer is the best document ({shown})")
