"""The `torch` engine: `transformers` on PyTorch, for whatever else runs nowhere.

Knows: which formats it reads and what they cost in memory. Does not know: torch; that is imported
by `runners/torch.py` in the child. Slower than the other engines and complete: every architecture
that `transformers` has code for. Code that comes with a model is never run.
"""

from __future__ import annotations

from typing import Any

import msgspec

from llm_runner_router.models.info import LocalModel, ModelInfo

from . import endpoint, fit
from .adapting import adapt as adapt
from .base import RUNNERS, Feature, Purpose, Verdict
from .devices import Machine
from .fit import Placement
from .threads import CpuPlan

NAME = "torch"
EXTRA: str | None = "torch"
NEEDS: tuple[str, ...] = ("torch", "transformers")
RUNNER = f"{RUNNERS}.torch"
FEATURES: frozenset[Feature] = endpoint.FEATURES | {"embed", "rerank", "one_process"}
FORMATS = ("safetensors", "pytorch", "hf")
PROCESS = 340 * 1024 * 1024
"""Bytes of an empty runner: interpreter, torch, transformers."""


def can_run(info: ModelInfo, machine: Machine) -> Verdict:
    """Safetensors and PyTorch checkpoints in Hugging Face's layout."""
    if info.format not in FORMATS:
        return Verdict(NAME, 0.0, f"reads safetensors and PyTorch, not {info.format}")
    return Verdict(NAME, 0.4, "reads it as it is, with every architecture that transformers has")


def place(
    info: ModelInfo, *, slots: int, context: int | None, budget: int, embed: bool = False
) -> Placement:
    """As `fit.place`, with weights and keys in 32 bits and a larger process."""
    weights = max(info.bytes, 4 * info.parameters)
    wide = msgspec.structs.replace(
        info, bytes=weights, key_length=2 * info.key_length, value_length=2 * info.value_length
    )
    room = max(0, budget - PROCESS)
    found = fit.place(wide, slots=slots, context=context, budget=room, embed=embed)
    return msgspec.structs.replace(found, bytes=found.bytes + PROCESS, prompt_cache=0)


def order(
    model: LocalModel, plan: CpuPlan, placement: Placement, api_key: str, purpose: Purpose
) -> dict[str, Any]:
    """The common order; `dtype` and `device` in the model's options are for the child."""
    found = endpoint.order(model, plan, placement, api_key, purpose)
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return {**found, "env": {**found["env"], **quiet}}
