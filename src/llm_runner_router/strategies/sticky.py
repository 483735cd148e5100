"""Keep whoever comes back on the same target.

Use it for A/B tests, where a user must not change sides, and for replicas with a prefix cache,
where a conversation is cheaper on the one that has seen it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from random import Random
from typing import Literal

from llm_runner_router.types import Call, Decision, Delta, Request, Target

from .weighted import Weighted

By = Literal["session", "user", "key"]


class Sticky:
    """The same session (or user, or key) gets the same target; over all, shares follow weights.

    Weighted rendezvous hashing (Thaler and Ravishankar 1998; the logarithm form of Schindelhauer
    and Schomaker 2005): no state, equal in every process, and adding a target with the share `s`
    of all weights moves just that share of the keys.

    A request without the thing to stick to is drawn by weight.

    Args:
        name: the strategy's name.
        targets: pairs of target and weight; a weight of 0 gets nothing.
        by: what to stick to: the session header, the `user` field, or the API key's name.
        rng: the source of chance for requests without a key.
    """

    def __init__(
        self, name: str, targets: Sequence[tuple[Target, float]], by: By, rng: Random
    ) -> None:
        self.name = name
        self._drawn = Weighted(name, targets, rng)
        self._pairs = [(target, weight) for target, weight in targets if weight > 0]
        self._by: By = by

    def open(
        self, request: Request, call: Call
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """See `Target.open`."""
        key = self._key(request, call)
        if not key:
            return self._drawn.open(request, call)
        target = self.pick(key)
        call.trace.decisions.append(
            Decision(strategy="sticky", chosen=target.name, reason=f"kept for this {self._by}")
        )
        return target.open(request, call)

    def pick(self, key: str) -> Target:
        """The target of `key`."""
        return min(self._pairs, key=lambda pair: _distance(key, pair[0].name) / pair[1])[0]

    def _key(self, request: Request, call: Call) -> str | None:
        match self._by:
            case "session":
                return call.session
            case "user":
                return request.user
            case "key":
                return call.caller


def _distance(key: str, name: str) -> float:
    """Exponentially distributed over keys, fixed for a pair."""
    digest = hashlib.blake2b(f"{key}\0{name}".encode(), digest_size=8).digest()
    return -math.log((int.from_bytes(digest, "big") + 1) / 2**64)
