"""Give each target a share of the requests.

Use it to spread load over unequal replicas, or to try a new model on a few percent of the traffic.
Keep a user on one side with `Sticky`; wrap it in `Fallback` if a failure should go elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import accumulate
from random import Random

from llm_runner_router.errors import ConfigError
from llm_runner_router.types import Call, Decision, Delta, Request, Target


class Weighted:
    """Draws one of `targets` for each request, in proportion to its weight.

    Args:
        name: the strategy's name.
        targets: pairs of target and weight; a weight of 0 is never drawn.
        rng: the source of chance.
    """

    def __init__(self, name: str, targets: Sequence[tuple[Target, float]], rng: Random) -> None:
        drawn = [(target, weight) for target, weight in targets if weight > 0]
        if not drawn or any(weight < 0 for _, weight in targets):
            raise ConfigError(f"the weights of {name!r} must be 0 or more, and one of them more")
        self.name = name
        self.targets = tuple(targets)
        self._drawn = [target for target, _ in drawn]
        self._steps = list(accumulate(weight for _, weight in drawn))
        self._rng = rng

    def open(
        self, request: Request, call: Call
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """See `Target.open`."""
        target = self.pick()
        call.trace.decisions.append(
            Decision(strategy="weighted", chosen=target.name, reason="drawn by weight")
        )
        return target.open(request, call)

    def pick(self) -> Target:
        """Draw a target."""
        return self._rng.choices(self._drawn, cum_weights=self._steps)[0]
