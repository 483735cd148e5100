"""The `mock` engine: a runner without a model, for tests of what stands around models.

Knows: nothing of files. It is taken only for a model whose configuration says `engine: mock`, and
every answer of it begins with `mock`, so it cannot be mistaken for a model. Its options script it;
`runners/mock.py` tells which there are.
"""

from __future__ import annotations

from llm_runner_router.models.info import ModelInfo

from . import endpoint
from .adapting import adapt as adapt
from .base import RUNNERS, Feature, Verdict
from .devices import Machine
from .endpoint import order as order
from .fit import Memory, Placement, Wanted

NAME = "mock"
EXTRA: str | None = None
NEEDS: tuple[str, ...] = ()
RUNNER = f"{RUNNERS}.mock"
FEATURES: frozenset[Feature] = endpoint.FEATURES | {"embed", "rerank", "one_process"}
MEMORY = Memory(process=40 << 20, code=24 << 20)
"""What it counts for in the budget; the process takes about that."""
CONTEXT = 4096


def can_run(info: ModelInfo, machine: Machine) -> Verdict:
    """Anything, as it looks at nothing."""
    return Verdict(NAME, 0.01, "answers without a model, for tests", by_name=True)


def place(info: ModelInfo, wanted: Wanted) -> Placement:
    """The same for every model."""
    return Placement(wanted.context or info.context or CONTEXT, wanted.slots, MEMORY)
