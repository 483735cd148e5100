"""The `mistralrs` engine: safetensors as they are, quantised while they are loaded; GGUF as well.

Knows: which models it reads, what they cost in memory, and what it cannot do (mistralrs 0.9.5):

    seeds            one for the process, none per request: refused where it would matter
    tools            its own reading of calls takes the tags out of the text and loses the
                     arguments; with a Hugging Face folder whose template writes `<tool_call>` tags
                     we go round it, otherwise calls are written only if they are forced
    token prompts    it takes text only
    embeddings       of two architectures only, which `torch` runs better
    LoRA             one adapter per request, with a scale of 1

Does not know: the library, which `runners/mistralrs.py` imports in the child.
"""

from __future__ import annotations

from typing import Any

import msgspec

from llm_runner_router.errors import Unsupported
from llm_runner_router.models.info import LocalModel, ModelInfo
from llm_runner_router.types import Request

from . import adapting, endpoint, fit
from .base import RUNNERS, Adapted, Feature, Purpose, Verdict
from .devices import Machine
from .fit import Memory, Placement, Wanted
from .threads import CpuPlan

NAME = "mistralrs"
EXTRA: str | None = "mistralrs"
NEEDS: tuple[str, ...] = ("mistralrs",)
RUNNER = f"{RUNNERS}.mistralrs"
FEATURES: frozenset[Feature] = frozenset(
    (
        "stop",
        "penalties",
        "logprobs",
        "json_schema",
        "grammar",
        "tools",
        "lora",
        "prompt_cache",
        "batch",
    )
)
PLAIN = frozenset(
    ("mistral", "gemma", "mixtral", "llama", "phi", "phi3", "qwen2", "gemma2", "starcoder2",
     "phimoe", "deepseek_v2", "deepseek_v3", "qwen3", "glm4", "glm4_moe", "qwen3_moe", "smollm3",
     "granitemoehybrid", "gpt_oss", "qwen3_next", "lfm2", "lfm2_moe")
)  # fmt: skip
"""Values of `model_type` that it has code for."""
GGUF = frozenset(("llama", "qwen2", "qwen3", "qwen3moe", "phi2", "phi3", "starcoder2", "mistral3"))
"""Values of `general.architecture` that it has code for."""
TYPES = frozenset(
    ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1",
     "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K")
)  # fmt: skip
"""Types of a GGUF file's weights that it reads; those of whole numbers are never weights."""
PROCESS = 30 * fit.MIB
"""Bytes of the runner itself."""
CODE = 52 * fit.MIB
"""Bytes of its code, measured in service."""
TOKEN, PARSED = 1330, 800
"""Bytes per token of the vocabulary, which the library has beside our endpoint: kept, and beside
that while it is read; 131,072 tokens of a BPE tokenizer."""
ISQ: dict[str, float] = {
    "q2k": 3.2,
    "q3k": 4.0,
    "q4_0": 5.1,
    "q5_0": 6.1,
    "q5k": 6.1,
    "q4k": 11.0,
    "q6k": 17.1,
    "q8_0": 17.6,
}
"""Bits per weight after a quantisation at load, as measured with 140 M weights: matrices of some
types are there twice, in two orders."""
WIDEST = max(ISQ.values())
COPIES: dict[str, float] = {"Q8_0": 2.07, "Q4_K": 2.5, "Q6_K": 2.5}
"""Bytes beside the mapped file for each byte of it, by type, as measured."""
ONCE = 1.15
"""The same for other types in blocks, which quantised at load are there once."""


def can_run(info: ModelInfo, machine: Machine) -> Verdict:
    """Checkpoints and GGUF files of the architectures it has code for."""
    if info.format not in ("safetensors", "gguf"):
        return Verdict(NAME, 0.0, f"reads safetensors and GGUF, not {info.format}")
    if info.task != "generate":
        return Verdict(NAME, 0.0, "writes text; this model does not")
    known = PLAIN if info.format == "safetensors" else GGUF
    if info.architecture not in known:
        return Verdict(NAME, 0.0, f"has no code for the architecture {info.architecture!r}")
    if info.format == "gguf":
        if unknown := sorted(info.types.keys() - TYPES):
            return Verdict(NAME, 0.0, f"does not know weights of the type {unknown[0]}")
        return Verdict(NAME, 0.3, "reads it; llama.cpp was made for it")
    return Verdict(NAME, 0.6, "reads it as it is, and quantises it at load if asked to")


def place(info: ModelInfo, wanted: Wanted) -> Placement:
    """Context, slots and memory for a model with the options `dtype` and `isq`.

    A checkpoint is read, converted and then dropped. A GGUF file stays mapped beside what the
    library makes of its matrices.
    """
    narrow = wanted.options.get("dtype") in ("f16", "bf16")
    size = 2 if narrow else 4
    ends = info.vocabulary * info.width
    weights, peak = size * info.parameters or info.bytes, info.bytes
    if info.format == "gguf":
        weights = sum(_held(kind, count) for kind, count in info.types.items())
    elif isq := wanted.options.get("isq"):
        inside = max(0, info.parameters - ends)
        weights = size * ends + int(inside * ISQ.get(str(isq).lower(), WIDEST)) // 8
        peak = _quantising(str(isq).lower(), info, weights)

    def count(tokens: int, slots: int) -> Memory:
        cache = fit.kv_bytes(info, tokens) * size // 2 * slots
        return Memory(
            process=PROCESS + TOKEN * info.vocabulary,
            code=CODE,
            weights=weights,
            mapped=info.bytes if info.format == "gguf" else 0,
            adapters=sum(wanted.adapters),
            cache=cache,
            late=True,
            work=fit.hidden_bytes(info, min(fit.UBATCH, tokens)),
            prompts=2 * cache,
            peak=max(0 if info.format == "gguf" else peak, PARSED * info.vocabulary),
        )

    return fit.settle(info, wanted, count)


def _quantising(isq: str, info: ModelInfo, weights: int) -> int:
    """Bytes at the top of a quantisation at load, beside `weights` that remain.

    K types are made from a copy of all weights in F32, with a byte per weight beside; others from
    the file as it is read, with their own 9 bits at most. Measured within 4 % with 140 M weights.
    """
    count = info.parameters
    top = 5 * count if isq.endswith("k") else info.bytes + min(weights, count * 9 // 8)
    return max(0, top - weights)


def _held(kind: str, count: int) -> int:
    """Bytes in memory, beside the file, of `count` bytes of weights of a type in a GGUF file."""
    return int(count * COPIES.get(kind, 1.0 if kind in ("F32", "F16", "BF16") else ONCE))


def order(
    model: LocalModel, plan: CpuPlan, placement: Placement, api_key: str, purpose: Purpose
) -> dict[str, Any]:
    """The common order with the template of a GGUF file; nothing is looked up on the network."""
    found = endpoint.order(model, plan, placement, api_key, purpose)
    options = {**found["options"], "template": model.info.chat_template}
    env = {
        "RAYON_NUM_THREADS": str(plan.threads),
        "HF_HUB_OFFLINE": "1",
        "RUST_LOG": "warn",
        "NO_COLOR": "1",
    }
    return {**found, "options": options, "env": {**found["env"], **env}, "scratch": True}


def adapt(request: Request, model: LocalModel) -> Adapted:
    """`request` for one choice; what it cannot do is refused before anything is computed.

    Raises:
        BadRequest: something in it that no engine could use, with its path.
        Unsupported: something this engine cannot do.
    """
    sampling = request.sampling
    if sampling.seed is not None and sampling.temperature != 0:
        raise Unsupported(
            f"`{model.name}` runs on mistralrs, which takes no seed for one request",
            param="seed",
            hint="set `temperature` to 0, or choose another engine with `engine:`",
        )
    if request.tools and request.tool_choice in (None, "auto") and model.info.format == "gguf":
        raise Unsupported(
            f"`{model.name}` runs on mistralrs, where the calls that a model of a GGUF file decides"
            " to write cannot be told from text",
            param="tools",
            hint="force a call with `tool_choice`, or take llama.cpp with `engine: llamacpp`",
        )
    _check_adapters(request, model)
    return adapting.adapt(request, model)


def _check_adapters(request: Request, model: LocalModel) -> None:
    """Refuse more than the runner does; what else may be wrong with `lora`, it tells itself."""
    raw = request.extra.get("lora")
    given = None if raw is None else msgspec.json.decode(raw)
    if not isinstance(given, list):
        return
    scales = [one.get("scale", 1.0) for one in given if isinstance(one, dict)]
    if len(given) > 1 or any(scale != 1.0 for scale in scales):
        raise Unsupported(
            f"`{model.name}` runs on mistralrs, which applies one LoRA adapter, with a scale of 1",
            param="lora",
            hint="ask for one as it was trained; llama.cpp takes several: docs/how-to/use-lora.md",
        )
