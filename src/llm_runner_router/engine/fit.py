"""How much memory a model takes, and how much context it gets. Pure.

Knows: the sizes of weights, of the key-value cache and of work buffers. Does not know: the machine;
the budget is an argument. Estimates are upper bounds: the scheduler adds them up.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from llm_runner_router.models.info import ModelInfo

PROCESS = 22 * 1024 * 1024
"""Bytes of the runner itself: interpreter, engine's code and tables, its HTTP threads. An empty one
takes 25 MiB alone and 16 where many others share its libraries; the spare shares them always.
`python -m bench --only memory` compares the whole estimate with what is measured."""
DEFAULT_CONTEXT = 2048
"""For a file that does not say what it was trained for."""
LEAST_CONTEXT = 4096
"""The context is not cut below this to save memory, if the model has it."""
EMBED_CONTEXT = 8192
"""Longest text to embed when nothing is configured: its work buffers grow with it."""
UBATCH = 512
"""Tokens computed at a time; sets the size of the work buffers."""


GRAPH = 1024 * 1024
"""Bytes of the nodes that one LoRA adapter adds to the engine's graphs."""

KvType = Literal["f16", "q8_0"]
"""How keys and values are kept."""
_KV_BYTES: dict[KvType, tuple[int, int]] = {"f16": (2, 1), "q8_0": (34, 32)}
"""Bytes per number, as a fraction: a block of Q8_0 is 32 numbers and a 16-bit scale."""
REPACKED = frozenset({"Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4"})
"""Types that the engine may copy into another order at load, for its matrix kernels. Which of them
it does depends on the processor; reading instead of mapping is right in either case."""
_WINDOWED: dict[str, tuple[int, int]] = {
    "gemma2": (1, 2),
    "gemma3": (5, 6),
    "gemma3n": (4, 5),
    "gpt-oss": (1, 2),
    "cohere2": (3, 4),
    "exaone4": (3, 4),
}
"""The share of layers that see a window only, as llama.cpp loads these architectures. Others with a
window are counted as if every layer saw everything."""


class Placement(Struct, frozen=True):
    """How a model is loaded: tokens per request, requests at a time, bytes in all."""

    context: int
    slots: int
    bytes: int
    prompt_cache: int = 0
    """Bytes of those for prompts kept after their slot went to another request."""
    kv_type: KvType = "f16"
    mapped: bool = True
    """The file is mapped into memory; else it is read, so that what is copied is there once."""


def kv_bytes(info: ModelInfo, tokens: int, kv_type: KvType = "f16") -> int:
    """Bytes of keys and values of one slot for `tokens`: layers · kv heads · length each.

    Layers with a window keep that much and a batch. With latent attention (MLA) the values are
    part of the keys and not kept twice.
    """
    latent = info.architecture == "deepseek2" and info.kv_heads == 1
    length = info.key_length + (0 if latent else info.value_length)
    part, of = _WINDOWED.get(info.architecture, (0, 1)) if info.window else (0, 1)
    windowed = info.layers * part // of
    seen = min(tokens, -(-(info.window + UBATCH) // 256) * 256)
    numbers = info.kv_heads * length * ((info.layers - windowed) * tokens + windowed * seen)
    times, per = _KV_BYTES[kv_type]
    return numbers * times // per


def is_mapped(info: ModelInfo) -> bool:
    """Whether the file is better mapped than read.

    Mapped pages are there at once and shared between processes. But of weights that are repacked,
    a mapped file stays in memory beside the copy: 140 M weights of Q4_0 took 196 MiB mapped and
    122 MiB read, loaded in 0.5 to 0.8 s mapped and 0.3 s read, and decoded no slower.
    """
    return _repacked(info) * 4 < sum(info.types.values())


def weight_bytes(info: ModelInfo) -> int:
    """Bytes of weights in memory."""
    return info.bytes + (_repacked(info) if is_mapped(info) else 0)


def _repacked(info: ModelInfo) -> int:
    return sum(size for kind, size in info.types.items() if kind in REPACKED)


def work_bytes(info: ModelInfo, tokens: int, *, slots: int = 1, ubatch: int = UBATCH) -> int:
    """Bytes of work buffers that are really used, for a context of `tokens`.

    The two widest values of an MLP and seven of the model's width, F32, per token of a batch; the
    mask of attention, F16; logits and the sampler's candidates of one token per slot.
    """
    batch = min(ubatch, tokens)
    hidden = 4 * batch * (2 * _mlp_width(info) + 7 * info.width)
    mask = 2 * batch * tokens
    return hidden + mask + 24 * info.vocabulary * slots


def _mlp_width(info: ModelInfo) -> int:
    """The width inside an MLP: what the number of weights leaves for three matrices of it.

    Between 2 and 8 widths; 4 where the file does not say enough, or for a mixture of experts.
    """
    if not (info.width and info.layers and info.parameters) or info.experts:
        return 4 * info.width
    ends = info.vocabulary * info.width * (1 if info.tied else 2)
    heads = info.heads * info.key_length + info.kv_heads * (info.key_length + info.value_length)
    attention = info.width * (heads + info.heads * info.value_length)
    found = ((info.parameters - ends) // info.layers - attention) // (3 * info.width)
    return max(2 * info.width, min(8 * info.width, found))


def draft_bytes(draft: ModelInfo, tokens: int, slots: int) -> int:
    """Bytes of a model that guesses for another: it has the other's context and slots.

    Its keys and values are F16 whatever the other's are. Whether its file is mapped follows the
    other's, so weights that are repacked are counted twice.
    """
    kept = kv_bytes(draft, tokens) * slots
    work = work_bytes(draft, tokens, slots=slots)
    return draft.bytes + _repacked(draft) + kept + work


def adapter_bytes(info: ModelInfo, sizes: tuple[int, ...], tokens: int) -> int:
    """Bytes of LoRA adapters whose files have `sizes`, for a context of `tokens`.

    Beside the files, nodes in the engine's graphs, and what an adapter adds to the widest value of
    a batch, F32. Three of 18 MiB for 154 matrices of a model of 140 M weights took 62 MiB, where
    this says 61 and the rest of the estimate 4 too much.
    """
    if not sizes:
        return 0
    return sum(sizes) + len(sizes) * GRAPH + 4 * min(UBATCH, tokens) * _mlp_width(info)


def place(
    info: ModelInfo,
    *,
    slots: int,
    context: int | None,
    budget: int,
    embed: bool = False,
    kv_type: KvType = "f16",
    draft: ModelInfo | None = None,
    adapters: tuple[int, ...] = (),
) -> Placement:
    """Context and slots for a model within `budget` bytes.

    Args:
        slots: requests at a time that are wanted; fewer only if even the least context needs it.
        context: tokens per request as configured; it is never changed. None: what the model was
            trained for, halved (not below `LEAST_CONTEXT`) while the model would take more than
            half the budget.
        embed: for embeddings, which are computed whole and keep no cache worth counting.
        kv_type: how keys and values are kept.
        draft: a model that may guess for it in the same process.
        adapters: bytes of each of its LoRA adapters. With any, no prompts are kept after their
            slot went to another request: the engine would find them by their tokens (`lora.py`).

    Returns:
        The placement; its bytes may exceed the budget, which the scheduler refuses with both
        numbers.
    """
    trained = info.context or DEFAULT_CONTEXT
    tokens = min(context or trained, trained)
    mapped = is_mapped(info)
    if embed:
        if context is None:
            tokens = min(tokens, EMBED_CONTEXT)
        work = work_bytes(info, tokens, ubatch=tokens)
        need = PROCESS + weight_bytes(info) + kv_bytes(info, tokens) + work
        return Placement(context=tokens, slots=slots, bytes=need, mapped=mapped)

    def cache() -> int:
        return 0 if adapters else _prompt_cache(info, tokens, kv_type)

    def total() -> int:
        kept = kv_bytes(info, tokens, kv_type) * slots + cache()
        beside = draft_bytes(draft, tokens, slots) if draft is not None else 0
        work = work_bytes(info, tokens, slots=slots)
        loras = adapter_bytes(info, adapters, tokens)
        return PROCESS + weight_bytes(info) + loras + kept + work + beside

    if context is None:
        while tokens > LEAST_CONTEXT and total() > budget // 2:
            tokens = max(LEAST_CONTEXT, tokens // 2)
    while slots > 1 and total() > budget:
        slots -= 1
    return Placement(tokens, slots, total(), prompt_cache=cache(), kv_type=kv_type, mapped=mapped)


def _prompt_cache(info: ModelInfo, tokens: int, kv_type: KvType) -> int:
    """Room for two whole contexts, between 8 MiB and 256 MiB."""
    return max(8 << 20, min(256 << 20, 2 * kv_bytes(info, tokens, kv_type)))


def grows(info: ModelInfo, placement: Placement, draft: ModelInfo | None = None) -> int:
    """Bytes that a loaded model may still take beyond what was measured right after its load.

    Keys and values, kept prompts and work buffers are not there before they are written. What was
    written already is counted twice, so measured and this together are an upper bound. `draft` is
    the model that guesses for it, if it is loaded beside it.
    """
    kept = kv_bytes(info, placement.context, placement.kv_type) * placement.slots
    work = work_bytes(info, placement.context, slots=placement.slots)
    beside = 0
    if draft is not None:
        beside = kv_bytes(draft, placement.context) * placement.slots
        beside += work_bytes(draft, placement.context, slots=placement.slots)
    return kept + placement.prompt_cache + work + beside
