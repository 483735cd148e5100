"""Choose a model for each request.

Use it as the model `auto` (or `auto:quality`, `auto:cost`, `auto:speed`, `auto:balanced`) when the
models differ in what they are good at, cost and speed; with the objectives `random`, `round-robin`
and `least-loaded` when they do not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import Random

from msgspec import Struct

from llm_runner_router.config import Objective
from llm_runner_router.types import Call, Decision, Delta, ModelCard, Outlook, Request, Target

from .choose import Option, choose, features
from .fallback import Fallback
from .pick import at_random, in_turn, least_loaded
from .stats import LiveStats

ATTEMPTS = 3
"""Models asked at most for one request, in the order of preference."""

Classify = Callable[[Request], tuple[str, float]]
"""Request to (task, confidence); see `tasks.classify`."""


class Choice(Struct, frozen=True):
    """A model that may be chosen: its target, whose name the live figures hang on, and its card."""

    target: Target
    card: ModelCard
    outlook: Callable[[Request], Outlook | None] | None = None
    """Tells what is known of a request there before it is sent; None for a remote model."""


class Auto:
    """Answers with the target that `choose.choose` prefers.

    If that one fails before its first delta, in a way that another may better, the next best is
    asked: at most `ATTEMPTS` in all. Every choice is appended to `call.trace.decisions`.

    Args:
        name: the virtual model's name.
        choices: the models to choose from, names unique.
        objective: what to prefer.
        stats: the live figures.
        classify: finds the task of a request.
        clock: monotonic seconds; the clock of `stats`.
        rng: the source of chance.
    """

    def __init__(
        self,
        name: str,
        choices: Sequence[Choice],
        objective: Objective,
        *,
        stats: LiveStats,
        classify: Classify,
        clock: Callable[[], float],
        rng: Random,
    ) -> None:
        self.name = name
        self.objective: Objective = objective
        self._choices = tuple(choices)
        self._targets = {choice.target.name: choice.target for choice in choices}
        self._stats = stats
        self._classify = classify
        self._clock = clock
        self._rng = rng
        self._turn = 0

    def decide(self, request: Request) -> Decision:
        """What `open` would choose now and why, without asking anyone.

        Raises:
            ContextTooLong, Unsupported, Unavailable: see `choose.choose`.
        """
        task, confidence = self._classify(request)
        now = self._clock()
        options = [
            Option(
                name=choice.target.name,
                card=choice.card,
                stats=self._stats.snapshot(choice.target.name),
                healthy=self._stats.healthy(choice.target.name, now),
                outlook=None if choice.outlook is None else choice.outlook(request),
            )
            for choice in self._choices
        ]
        cached = {o.name: o.outlook.cached_tokens or 0 for o in options if o.outlook is not None}
        order = partial(self._order, cached)
        return choose(features(request, task, confidence), options, self.objective, order)

    def _order(self, cached: Mapping[str, int], names: Sequence[str]) -> Sequence[str]:
        match self.objective:
            case "random":
                return at_random(names, self._rng)
            case "round-robin":
                return in_turn(names, self._turn)
            case _:
                return least_loaded(names, self._stats.snapshot, self._rng, cached)

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        """See `Target.open`.

        Raises:
            RunnerError: of `decide`; of the target that may not be routed around; if all that
                were asked failed, see `failures.combined`.
        """
        decision = self.decide(request)
        self._turn += 1
        call.trace.decisions.append(decision)
        able = [c.name for c in decision.candidates if c.rejected is None]
        targets = [self._targets[name] for name in able[:ATTEMPTS]]
        async with Fallback(self.name, targets, decision).open(request, call) as deltas:
            yield deltas
