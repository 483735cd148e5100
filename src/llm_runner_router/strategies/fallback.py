"""Try targets in order.

Use it when there is a preferred target and others that may stand in for it: a provider and its
rival, a big model and a local one. It costs nothing while the first one works.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from llm_runner_router.deltas import prime
from llm_runner_router.errors import ConfigError, RunnerError
from llm_runner_router.types import Call, Decision, Delta, Request, Target

from .failures import combined

_DECISION = Decision(strategy="fallback", chosen="", reason="")


class Fallback:
    """The first of `targets` that gives a delta answers.

    It moves on only before the first delta and only if the error says that another target may do
    better (`RunnerError.elsewhere`). No retries of the same target: that is a policy.

    Args:
        name: the strategy's name.
        targets: the targets in order.
        decision: what a move to the next target is noted as, with that target and the reason.

    Raises:
        ConfigError: there are no targets.
    """

    def __init__(
        self, name: str, targets: Sequence[Target], decision: Decision = _DECISION
    ) -> None:
        if not targets:
            raise ConfigError(f"the fallback {name!r} has no targets")
        self.name = name
        self.targets = tuple(targets)
        self._decision = decision

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        """See `Target.open`.

        Raises:
            RunnerError: of the target that may not be routed around; if all failed, see
                `failures.combined`.
        """
        failures: list[RunnerError] = []
        for target in self.targets:
            if failures:
                call.trace.decisions.append(self._moved_on(target, failures[-1]))
            async with AsyncExitStack() as stack:
                try:
                    opened = await stack.enter_async_context(target.open(request, call))
                    deltas = await prime(opened)
                except RunnerError as exc:
                    exc.target = exc.target or target.name
                    if not exc.elsewhere:
                        raise
                    failures.append(exc)
                    continue
                # Outside the `try`: an error of the reader is not the target's.
                yield deltas
                return
        raise combined(self.name, failures)

    def _moved_on(self, target: Target, failure: RunnerError) -> Decision:
        reason = f"{failure.target} failed ({failure.message}); {target.name} is next"
        return msgspec.structs.replace(self._decision, chosen=target.name, reason=reason)
