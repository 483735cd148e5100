"""The `onnx` engine: plain graphs, computed by onnxruntime.

Knows: which models it reads and what they cost in memory. Does not know: the library, which
`runners/onnx.py` imports in the child. Made for embedding models and rerankers; decoders whose
graph takes and gives keys and values by name (`past_key_values.0.key`) write as well, a little
slower than with onnxruntime-genai, as keys and values are moved for every token.
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

NAME = "onnx"
EXTRA: str | None = "onnx"
NEEDS: tuple[str, ...] = ("onnxruntime",)
RUNNER = f"{RUNNERS}.onnx"
FEATURES: frozenset[Feature] = endpoint.FEATURES | {"embed", "rerank", "one_process"}
FORMAT = "onnx"
PROCESS = 110 * 1024 * 1024
"""Bytes of an empty runner: interpreter, numpy, tokenizers, the library."""


def can_run(info: ModelInfo, machine: Machine) -> Verdict:
    """ONNX graphs whose inputs say what they are."""
    if info.format != FORMAT:
        return Verdict(NAME, 0.0, f"reads ONNX, not {info.format}")
    if info.task == "generate":
        why = "runs the graph with a loop of its own"
        return Verdict(NAME, 0.5 if is_genai(info) else 0.7, why)
    return Verdict(NAME, 0.9, "reads it as it is")


def is_genai(info: ModelInfo) -> bool:
    """The folder has a `genai_config.json`."""
    return any("genai" in note for note in info.notes)


def place(
    info: ModelInfo, *, slots: int, context: int | None, budget: int, embed: bool = False
) -> Placement:
    """As `fit.place`; keys and values are F32, and two copies live while one is made."""
    wide = msgspec.structs.replace(
        info, key_length=4 * info.key_length, value_length=4 * info.value_length
    )
    return with_copies(info, wide, slots=slots, context=context, budget=budget, embed=embed)


def with_copies(
    info: ModelInfo,
    wide: ModelInfo,
    *,
    slots: int,
    context: int | None,
    budget: int,
    embed: bool,
) -> Placement:
    """A placement that counts what the library makes of the weights.

    Matrices of 16 bits become F32. An embedding that is the output as well is there twice, once in
    the order in which it is multiplied; of the rest the file's pages are given back after that.
    Measured with 135 M parameters: 791 MB of 867 estimated (F16), 326 of 408 (Q8_0); the estimate
    has logits for a whole batch, which converted graphs do not compute.

    Args:
        info: the model's facts.
        wide: the same with the lengths of keys and values that one slot takes, in units of 16 bits.
        slots: as for `fit.place`, like the rest.
    """
    room = max(0, budget - PROCESS)
    found = fit.place(wide, slots=slots, context=context, budget=room, embed=embed)
    weights = info.bytes
    if info.quantisation in ("F16", "BF16"):
        weights = max(weights, 4 * info.parameters)
    share = info.vocabulary * info.width / max(1, info.parameters)
    twice = int(weights * share) if info.tied else 0
    more = PROCESS + weights - info.bytes + twice - found.prompt_cache
    return msgspec.structs.replace(found, bytes=found.bytes + more, prompt_cache=0)


def order(
    model: LocalModel, plan: CpuPlan, placement: Placement, api_key: str, purpose: Purpose
) -> dict[str, Any]:
    """The common order; `spin` says whether threads may wait busily for each other."""
    found = endpoint.order(model, plan, placement, api_key, purpose)
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    options = {**found["options"], "spin": plan.wait == "spin"}
    return {**found, "options": options, "env": {**found["env"], **quiet}}
