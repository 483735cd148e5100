"""The choice among models, as a pure function of frozen values.

Knows: what a request needs (`Features`), what is known of each model (its card and live figures),
what is preferred (the objective). Does not know: targets, clocks, chance, how a task was found.

    1. hard constraints: context, output length, tools, JSON Schema, images, audio, logprobs
    2. health: a resting target is left out, unless nobody else is left
    3. the objective: greatest `quality - dollars * a - seconds * b`
       or one of the orders of `pick.py`, which do not look at the question
    4. ties: quality, then cost, then seconds, then what a runner has of the prompt, then the order
       of the configuration
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from msgspec import Struct

from llm_runner_router.config import Objective
from llm_runner_router.errors import ContextTooLong, RunnerError, Unavailable, Unsupported
from llm_runner_router.types import (
    AudioPart,
    Candidate,
    Decision,
    ImagePart,
    Message,
    ModelCard,
    Outlook,
    Price,
    Request,
    Usage,
)

from .stats import TargetStats

OTHER = "other"
"""The task of whatever is unfamiliar."""

_WEIGHTS: dict[str, tuple[float, float]] = {
    "quality": (0.5, 0.0005),
    "balanced": (20.0, 0.01),
    "cost": (1000.0, 0.001),
    "speed": (1.0, 0.1),
}
"""What a dollar and a second are worth in quality. Under `balanced` a cent weighs as much as 20
points of accuracy, ten seconds as much as 10; `quality` spends a dollar for 50 points; `cost`
gives up a point for a thousandth of a cent. Chosen by hand, to be fitted on traffic later."""

_OUTPUT_TOKENS: dict[str, int] = {
    "arithmetic": 25, "comparison": 12, "reverse": 10, "spell": 20, "count_letters": 20,
    "uppercase": 8, "sort_words": 15, "opposite": 8, "plural": 8, "greeting": 20, "fact": 15,
    "story": 80, "extract_json": 40, "tool_call": 40, "tool_result": 30,
}  # fmt: skip
"""Usual length of an answer by task, in tokens."""
_OUTPUT_OTHER = 300

_UNPRICED = Price(input=0.5, output=1.5)
"""What a remote model without a price is taken to cost: a mid-size hosted model."""

_REACH_BY_SIZE = ((6.0, 0.02), (7.0, 0.05), (8.0, 0.2), (9.0, 0.45), (10.0, 0.7), (11.0, 0.85),
                  (12.0, 0.92))  # fmt: skip
_REACH_BY_PRICE = ((-1.0, 0.5), (-0.22, 0.68), (0.3, 0.75), (1.0, 0.85), (1.9, 0.92))
_REACH_UNKNOWN = 0.6
"""Expected share of right answers on unfamiliar work, by log10 of the parameters or of the dollars
per million output tokens. Rough lines through published exam scores (ZeroEval, MMLU-Pro); they
matter only until a card has scores."""

_PRIOR_MEAN, _PRIOR_WEIGHT = 0.5, 4.0
"""A card's mean score is shrunk as if it had four more tasks at one half."""


class Features(Struct, frozen=True):
    """What a request needs, as far as the choice is concerned."""

    task: str = OTHER
    confidence: float = 0.0
    """Probability that the task is right, 0…1."""
    prompt_tokens: int = 0
    """An estimate on the low side: what it rejects is certainly too long."""
    max_tokens: int | None = None
    n: int = 1
    tools: bool = False
    json: bool = False
    images: bool = False
    audio: bool = False
    logprobs: bool = False

    @property
    def output_tokens(self) -> int:
        """Expected tokens of the answer, all choices together."""
        usual = _OUTPUT_TOKENS.get(self.task, _OUTPUT_OTHER)
        return self.n * (usual if self.max_tokens is None else min(usual, self.max_tokens))


class Option(Struct, frozen=True):
    """One model that may be chosen. `name` is its target's name, for which stats are kept."""

    name: str
    card: ModelCard
    stats: TargetStats
    healthy: bool = True
    outlook: Outlook | None = None
    """What is known of this very request there; of remote models nothing is."""


# ---------------------------------------------------------------- what a request needs


def features(request: Request, task: str, confidence: float) -> Features:
    """What `request` needs, given the task a classifier found in it."""
    parts = [
        part
        for message in request.messages
        if isinstance(message.content, tuple)
        for part in message.content
    ]
    shape = request.response_format
    return Features(
        task=task,
        confidence=confidence,
        prompt_tokens=estimate_tokens(request),
        max_tokens=request.sampling.max_tokens,
        n=request.sampling.n,
        tools=bool(request.tools) and request.tool_choice != "none",
        json=shape is not None and shape.type == "json_schema",
        images=any(isinstance(part, ImagePart) for part in parts),
        audio=any(isinstance(part, AudioPart) for part in parts),
        logprobs=request.sampling.logprobs,
    )


def estimate_tokens(request: Request) -> int:
    """About how many tokens the prompt has: four ASCII characters each, other ones 0.7 a piece."""
    total = _text_tokens(request.prompt or "") + _text_tokens(request.suffix or "")
    total += sum(map(_message_tokens, request.messages))
    for tool in request.tools:
        schema = 0 if tool.parameters is None else len(bytes(tool.parameters))
        total += (len(tool.name) + len(tool.description or "") + schema) / 4
    return int(total)


def _message_tokens(message: Message) -> float:
    calls = sum(len(call.arguments) for call in message.tool_calls)
    return 3 + _text_tokens(message.text) + calls / 4


def _text_tokens(text: str) -> float:
    if text.isascii():
        return len(text) / 4
    ascii_only = len(text.encode("ascii", "ignore"))
    return ascii_only / 4 + (len(text) - ascii_only) * 0.7


# ---------------------------------------------------------------- what a model is worth


def _line(points: Sequence[tuple[float, float]], x: float) -> float:
    """Piecewise linear, flat outside."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def reach(card: ModelCard) -> float:
    """Expected share of right answers on unfamiliar work, from size or price alone."""
    if card.parameters:
        return _line(_REACH_BY_SIZE, math.log10(card.parameters))
    if card.price is not None and card.price.output > 0:
        return _line(_REACH_BY_PRICE, math.log10(card.price.output))
    return _REACH_UNKNOWN


def mean_score(card: ModelCard) -> float:
    """The card's mean score, shrunk: a specialist with two good scores is no generalist."""
    scores = [score for task, score in card.scores.items() if task != OTHER]
    return (sum(scores) + _PRIOR_WEIGHT * _PRIOR_MEAN) / (len(scores) + _PRIOR_WEIGHT)


def quality(card: ModelCard, task: str, confidence: float) -> float:
    """Expected share of right answers, 0…1.

    The task's score as far as the task is certain, the model's general worth for the rest: with
    an unfamiliar prompt the best generalist wins, never a specialist by accident.
    """
    general = card.scores.get(OTHER)
    if general is None:
        # Scores on other tasks move what size and price promise by up to half.
        general = min(reach(card) * (0.5 + mean_score(card) if card.scores else 1.0), 0.99)
    if task == OTHER:
        return general
    score = card.scores.get(task)
    if score is None:
        # What the zoo's tasks ask is easy: a model misses about half of what it misses in general.
        score = mean_score(card) if card.scores else 1 - (1 - reach(card)) / 2
    return confidence * score + (1 - confidence) * general


def dollars(card: ModelCard, wanted: Features) -> float:
    """Expected US dollars of the request."""
    price = card.price
    if price is None:
        price = Price() if card.local else _UNPRICED
    return price.cost(Usage(wanted.prompt_tokens, wanted.output_tokens))


def seconds(option: Option, wanted: Features) -> float:
    """Expected seconds to the whole answer: live figures, else the card's, else a guess by kind.

    Requests in flight share a local machine; a remote one is taken to scale.
    """
    card, stats = option.card, option.stats
    speed = stats.speed or card.speed or _usual_speed(card)
    once = first_token(option, wanted) + wanted.output_tokens / speed
    return once * (1 + stats.in_flight) if card.local else once


def first_token(option: Option, wanted: Features) -> float:
    """Expected seconds to the first token, alone.

    Where the runner is known: its loading, then reading what it has not of the prompt. Until its
    speed of reading was measured, the usual time, as far as the prompt is to be read.
    """
    card, look = option.card, option.outlook
    usual = option.stats.first_token or card.first_token or (0.2 if card.local else 0.8)
    if look is None:
        return usual
    prompt = max(1, look.prompt_tokens or wanted.prompt_tokens)
    fresh = max(1, prompt - (look.cached_tokens or 0))
    return look.loading + (fresh / look.reading if look.reading else usual * fresh / prompt)


def _usual_speed(card: ModelCard) -> float:
    """Tokens per second. Decoding reads every weight once: 20 GB/s at about a byte a weight."""
    if card.local and card.parameters:
        return min(20e9 / card.parameters, 1000.0)
    return 50.0


# ---------------------------------------------------------------- the choice


def choose(
    wanted: Features,
    options: Sequence[Option],
    objective: Objective,
    order: Callable[[Sequence[str]], Sequence[str]] | None = None,
) -> Decision:
    """Weigh `options` (names unique) and say which one, with all candidates, best first.

    Args:
        wanted: what the request needs.
        options: the models, in the order of the configuration.
        objective: what to prefer.
        order: for `random`, `round-robin` and `least-loaded`: puts the names in order.

    Raises:
        ContextTooLong, Unsupported: no option can do it, whoever is healthy.
        Unavailable: there are no options.
    """
    rejected = {option.name: why for option in options if (why := obstacle(option, wanted))}
    able = [option for option in options if option.name not in rejected]
    if not able:
        raise _nobody(wanted, rejected)
    up = [option for option in able if option.healthy]
    resting = not up
    if not resting:
        rejected |= {o.name: "it rests after failures" for o in able if not o.healthy}
        able = up
    weights = _WEIGHTS.get(objective)
    weighed = [_weigh(option, wanted, weights or (0.0, 0.0)) for option in able]
    if weights is None:
        assert order is not None, f"the objective {objective!r} needs an order"
        by_name = {candidate.name: candidate for candidate in weighed}
        weighed = [by_name[name] for name in order(list(by_name))]
        reason = _order_reason(objective, len(weighed))
    else:
        weighed.sort(key=_rank)
        reason = _reason(wanted, weighed)
    reason += _has(weighed[0])
    if resting:
        reason += "; all of them had failures, so the rest is ignored"
    return Decision(
        strategy=f"auto:{objective}",
        chosen=weighed[0].name,
        reason=reason,
        task=wanted.task,
        confidence=round(wanted.confidence, 4),
        candidates=(*weighed, *(Candidate(n, rejected=why) for n, why in rejected.items())),
    )


def obstacle(option: Option, wanted: Features) -> str | None:
    """The hard constraint that `option` fails, in words."""
    card, can = option.card, option.card.capabilities
    length = wanted.prompt_tokens + (wanted.max_tokens or 0)
    if card.context and length > card.context:
        return f"its context of {card.context} tokens is less than about {length}"
    if card.max_output and (wanted.max_tokens or 0) > card.max_output:
        return f"it gives at most {card.max_output} tokens, {wanted.max_tokens} are asked for"
    for needed, able, words in (
        (wanted.tools, can.tools, "tools"),
        (wanted.json, can.json, "a JSON Schema"),
        (wanted.images, can.images, "images"),
        (wanted.audio, can.audio, "audio"),
        (wanted.logprobs, can.logprobs, "log-probabilities"),
    ):
        if needed and not able:
            return f"it cannot do {words}"
    return None


def _nobody(wanted: Features, rejected: Mapping[str, str]) -> RunnerError:
    if not rejected:
        return Unavailable("there is no model to choose from", hint="see `llmrr ls`")
    words = "; ".join(f"{name}: {why}" for name, why in rejected.items())
    if all("tokens" in why for why in rejected.values()):
        return ContextTooLong(f"no model is long enough for this request: {words}")
    return Unsupported(f"no model can do what this request asks for: {words}")


def _weigh(option: Option, wanted: Features, weights: tuple[float, float]) -> Candidate:
    # To a point: of 200 questions, which is what cards are measured on, a score of 95 % is known to
    # one and a half (its standard error), so a smaller difference must not decide.
    good = round(quality(option.card, wanted.task, wanted.confidence), 2)
    cost, time = dollars(option.card, wanted), seconds(option, wanted)
    look = option.outlook
    score = good - weights[0] * cost - weights[1] * time
    # Rounded, so that a difference nobody can see does not decide.
    return Candidate(
        name=option.name,
        score=round(score, 5),
        quality=good,
        cost=round(cost, 8),
        seconds=round(time, 4),
        prompt_tokens=look.prompt_tokens if look is not None else None,
        cached_tokens=look.cached_tokens if look is not None else None,
    )


def _rank(c: Candidate) -> tuple[float, float, float, float, int]:
    return (-c.score, -(c.quality or 0.0), c.cost or 0.0, c.seconds or 0.0, -(c.cached_tokens or 0))


def _order_reason(objective: Objective, count: int) -> str:
    words = {
        "random": "drawn by chance among",
        "round-robin": "the next in turn among",
        "least-loaded": "the fewest requests in work among",
    }
    return f"{words[objective]} {count}"


def _has(chosen: Candidate) -> str:
    """For example `; it has 1,280 of about 1,406 prompt tokens`."""
    if not chosen.cached_tokens:
        return ""
    return f"; it has {chosen.cached_tokens:,} of about {chosen.prompt_tokens:,} prompt tokens"


def _reason(wanted: Features, weighed: Sequence[Candidate]) -> str:
    """For example `arithmetic: tiny-math scores 0.98, the best of 4, the cheapest`."""
    chosen = weighed[0]
    task = "unfamiliar request" if wanted.task == OTHER else wanted.task
    verb = "is expected to score" if wanted.task == OTHER else "scores"
    text = f"{task}: {chosen.name} {verb} {chosen.quality:.2f}"
    if len(weighed) == 1:
        return f"{text}, the only one that can do it"
    best = max(weighed, key=lambda c: c.quality or 0.0)
    lead = (best.quality or 0.0) - (chosen.quality or 0.0)
    text += f", the best of {len(weighed)}" if lead <= 0 else (
        f", {lead:.2f} below the best of {len(weighed)} ({best.name})"
    )  # fmt: skip
    others = weighed[1:]
    if all((chosen.cost or 0.0) < (o.cost or 0.0) for o in others):
        text += ", the cheapest"
    elif lead > 0 and (chosen.cost or 0.0) < (best.cost or 0.0):
        text += ", cheaper"
    if all((chosen.seconds or 0.0) < (o.seconds or 0.0) for o in others):
        text += ", the fastest"
    elif lead > 0 and (chosen.seconds or 0.0) < (best.seconds or 0.0):
        text += ", faster"
    return text
