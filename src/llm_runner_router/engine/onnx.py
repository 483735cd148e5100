"""The `onnx` engine: plain graphs, computed by onnxruntime.

Knows: which models it reads and what they cost in memory. Does not know: the library, which
`runners/onnx.py` imports in the child. Made for embedding models and rerankers; decoders whose
graph takes and gives keys and values by name (`past_key_values.0.key`) write as well, a little
slower than with onnxruntime-genai, as keys and values are moved for every token.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from llm_runner_router.models.info import LocalModel, ModelInfo

from . import endpoint, fit
from .adapting import adapt as adapt
from .base import RUNNERS, Feature, Purpose, Verdict
from .devices import Machine
from .fit import Memory, Placement, Wanted
from .threads import CpuPlan

NAME = "onnx"
EXTRA: str | None = "onnx"
NEEDS: tuple[str, ...] = ("onnxruntime",)
RUNNER = f"{RUNNERS}.onnx"
FEATURES: frozenset[Feature] = endpoint.FEATURES | {"embed", "rerank", "one_process"}
FORMAT = "onnx"
PROCESS = 32 * fit.MIB
"""Bytes of the runner itself: interpreter, numpy, tokenizers, the library. What is there after the
load less the weights: 31 to 33 MiB with 4 M and 140 M weights of F16 and in blocks."""
CODE = 46 * fit.MIB
"""Bytes of its code, measured in service."""


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


def place(info: ModelInfo, wanted: Wanted) -> Placement:
    """Context, slots and memory for a graph.

    Matrices of 16 bits become F32. Of those in blocks the scales, in F32, are there three times:
    as they are in the mapped file, copied, and in the order in which they are used. Keys and values
    are F32, and those of one slot live a second time while they are replaced.
    """
    weights, peak = info.bytes, 0
    if info.quantisation in ("F16", "BF16"):
        weights, peak = max(weights, 4 * info.parameters), info.bytes // 4
    elif info.quantisation != "F32":
        weights += 2 * info.types.get("F32", 0)

    def count(tokens: int, slots: int) -> Memory:
        memory = Memory(
            process=PROCESS + fit.HUB_TOKEN * info.vocabulary,
            code=CODE,
            weights=weights,
            peak=max(peak, fit.HUB_PARSED * info.vocabulary),
        )
        if wanted.embed:
            scores = 4 * info.heads * tokens * tokens
            return replace(memory, work=fit.hidden_bytes(info, tokens) + scores)
        cache = fit.kv_bytes(info, tokens, "f32")
        # The library takes more at a time than it needs: twice the values of a chunk.
        chunk = min(fit.CHUNK, tokens)
        values = fit.hidden_bytes(info, 2 * chunk) + 4 * info.heads * chunk * tokens
        values += fit.HUB_SHOWN * info.vocabulary
        return replace(memory, cache=cache * slots, late=True, work=values + cache)

    return fit.settle(info, wanted, count)


def order(
    model: LocalModel, plan: CpuPlan, placement: Placement, api_key: str, purpose: Purpose
) -> dict[str, Any]:
    """The common order; `spin` says whether threads may wait busily for each other."""
    found = endpoint.order(model, plan, placement, api_key, purpose)
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    options = {**found["options"], "spin": plan.wait == "spin"}
    return {**found, "options": options, "env": {**found["env"], **quiet}}
