"""What engines with our own endpoint (`runners/serving.py`) have in common. Pure.

Knows: the order that endpoint takes, what it can do. Does not know: any engine. Such an engine's
module takes `order`, `adapt` and `FEATURES` from here and adds `can_run` and `place`.
"""

from __future__ import annotations

from typing import Any

from llm_runner_router.models.info import LocalModel

from .adapting import adapt as adapt
from .base import Feature, Purpose
from .fit import Placement
from .threads import CpuPlan

FEATURES: frozenset[Feature] = frozenset(
    ("stop", "seed", "penalties", "logprobs", "json_schema", "grammar", "tools", "prompt_cache")
)
"""What the endpoint itself does for whichever engine gives logits."""


def order(
    model: LocalModel, plan: CpuPlan, placement: Placement, api_key: str, purpose: Purpose
) -> dict[str, Any]:
    """The order: the file, what is configured for it, and how much of the machine it gets."""
    return {
        "model": str(model.path),
        "name": model.title,
        "api_key": api_key,
        "slots": placement.slots,
        "context": placement.context,
        "threads": plan.threads,
        "batch_threads": plan.batch_threads,
        "purpose": purpose,
        "options": model.options,
        "template": model.template,
        "env": {"OMP_NUM_THREADS": str(plan.batch_threads), "TOKENIZERS_PARALLELISM": "false"},
    }
