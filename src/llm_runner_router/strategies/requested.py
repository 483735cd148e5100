"""Fallbacks that the request itself names.

Use it as the outermost strategy of every model: when a client sends `fallbacks: ["b", "c"]`, those
models are tried, in that order, after the one it asked for. Without the field it adds nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from llm_runner_router.types import Call, Delta, Request, Target

from .fallback import Fallback


class RequestedFallbacks:
    """`target`, then whatever `request.fallbacks` names.

    Args:
        target: what the client asked for.
        lookup: name to target; raises `UnknownModel`, which fails the request before any work.
    """

    def __init__(self, target: Target, lookup: Callable[[str], Target]) -> None:
        self.target = target
        self.name = target.name
        self._lookup = lookup

    def open(
        self, request: Request, call: Call
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """See `Target.open`."""
        if not request.fallbacks:
            return self.target.open(request, call)
        others = [self._lookup(name) for name in request.fallbacks]
        return Fallback(self.name, [self.target, *others]).open(request, call)
