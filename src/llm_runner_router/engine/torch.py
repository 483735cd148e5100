"""The `torch` engine: `transformers` on PyTorch, for whatever else runs nowhere.

Knows: which formats it reads and what they cost in memory. Does not know: torch; that is imported
by `runners/torch.py` in the child. Slower than the other engines and complete: every architecture
that `transformers` has code for. Code that comes with a model is never run.
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

NAME = "torch"
EXTRA: str | None = "torch"
NEEDS: tuple[str, ...] = ("torch", "transformers")
RUNNER = f"{RUNNERS}.torch"
FEATURES: frozenset[Feature] = endpoint.FEATURES | {"embed", "rerank", "one_process"}
FORMATS = ("safetensors", "pytorch", "hf")
PROCESS = 251 * fit.MIB
"""Bytes of the runner itself: what is there after the load less 4 per weight, 251 MiB with 4 M
weights and with 140 M (252 in 16 bits)."""
CODE = 99 * fit.MIB
"""Bytes of its code, measured in service; 103 MiB in 16 bits."""
TOKEN = 350
"""Bytes per token of the vocabulary, kept; less than `fit.HUB_TOKEN`, as there is room left in what
importing the library took."""
DTYPES: dict[str, tuple[int, tuple[str, ...]]] = {
    "float32": (4, ("F32",)),
    "float16": (2, ("F16",)),
    "bfloat16": (2, ("BF16",)),
}
"""Bytes per weight, and how a file's tensors of that type are called."""


def can_run(info: ModelInfo, machine: Machine) -> Verdict:
    """Safetensors and PyTorch checkpoints in Hugging Face's layout."""
    if info.format not in FORMATS:
        return Verdict(NAME, 0.0, f"reads safetensors and PyTorch, not {info.format}")
    return Verdict(NAME, 0.4, "reads it as it is, with every architecture that transformers has")


def place(info: ModelInfo, wanted: Wanted) -> Placement:
    """Context, slots and memory for a model with the option `dtype`.

    Weights are converted from the mapped file, which then goes, unless most of it has the wanted
    type already: then it is used as it is. Keys and values are joined anew with every step, which
    leaves about as much again in pieces.
    """
    size, held = DTYPES.get(str(wanted.options.get("dtype", "float32")), DTYPES["float32"])
    same = sum(info.types.get(name, 0) for name in held)
    mapped = info.format == "safetensors" and 2 * same > info.bytes
    weights = size * info.parameters or info.bytes

    def count(tokens: int, slots: int) -> Memory:
        memory = Memory(
            process=PROCESS + TOKEN * info.vocabulary,
            code=CODE,
            weights=max(0, weights - same) if mapped else weights,
            mapped=info.bytes if mapped else 0,
            peak=max(0 if mapped else info.bytes, fit.HUB_PARSED * info.vocabulary),
        )
        if wanted.embed:
            return replace(memory, work=fit.hidden_bytes(info, tokens))
        cache = fit.kv_bytes(info, tokens) * size // 2 * slots
        work = fit.hidden_bytes(info, min(fit.CHUNK, tokens)) + cache
        work += fit.HUB_SHOWN * info.vocabulary
        return replace(memory, cache=cache, late=True, work=work)

    return fit.settle(info, wanted, count)


def order(
    model: LocalModel, plan: CpuPlan, placement: Placement, api_key: str, purpose: Purpose
) -> dict[str, Any]:
    """The common order; `dtype` and `device` in the model's options are for the child."""
    found = endpoint.order(model, plan, placement, api_key, purpose)
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return {**found, "env": {**found["env"], **quiet}}
