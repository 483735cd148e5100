"""Fakes for the contracts, and checks that every implementation must pass.

Public: whoever writes a target, an embedder, a reranker, a surface, a strategy, a policy or a model
format tests it with these.

    async def test_mine() -> None:
        await check_target(lambda fake: Mine("mine", [fake("a"), fake("b")]))
"""

from .checks import (
    SITUATIONS,
    MakeTarget,
    check_embedder,
    check_reranker,
    check_situation,
    check_target,
)
from .codecs import check_surface
from .engines import check_engine
from .fakes import (
    FakeClock,
    FakeEmbedder,
    FakeReranker,
    FakeTarget,
    Gate,
    Script,
    Step,
    a_call,
    a_request,
    deltas_of,
)
from .formats import check_format, damaged
from .hub import FakeHub, Fault
from .sources import check_source

__all__ = [
    "SITUATIONS",
    "FakeClock",
    "FakeEmbedder",
    "FakeHub",
    "FakeReranker",
    "FakeTarget",
    "Fault",
    "Gate",
    "MakeTarget",
    "Script",
    "Step",
    "a_call",
    "a_request",
    "check_embedder",
    "check_engine",
    "check_format",
    "check_reranker",
    "check_situation",
    "check_source",
    "check_surface",
    "check_target",
    "damaged",
    "deltas_of",
]
