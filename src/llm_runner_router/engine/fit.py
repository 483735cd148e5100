"""How much memory a model takes, and how much context it gets. Pure.

Knows: the sizes of weights, of the key-value cache and of work buffers. Does not know: the machine;
the budget is an argument. Estimates are upper bounds: the scheduler adds them up.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from llm_runner_router.models.info import ModelInfo

PROCESS = 24 * 1024 * 1024
"""Bytes of the runner itself: interpreter, engine's code and tables. An empty one takes 17 MiB. The
whole estimate was 5 to 10 % above the measured PSS of four models with all slots filled: 44 and 41,
60 and 56, 172 and 155, 518 and 482 MiB."""
DEFAULT_CONTEXT = 2048
"""For a file that does not say what it was trained for."""
LEAST_CONTEXT = 4096
"""The context is not cut below this to save memory, if the model has it."""
EMBED_CONTEXT = 8192
"""Longest text to embed when nothing is configured: its work buffers grow with it."""
UBATCH = 512
"""Tokens computed at a time; sets the size of the work buffers."""


KvType = Literal["f16", "q8_0"]
"""How keys and values are kept."""
_KV_BYTES: dict[KvType, tuple[int, int]] = {"f16": (2, 1), "q8_0": (34, 32)}
"""Bytes per number, as a fraction: a block of Q8_0 is 32 numbers and a 16-bit scale."""


class Placement(Struct, frozen=True):
    """How a model is loaded: tokens per request, requests at a time, bytes in all."""

    context: int
    slots: int
    bytes: int
    prompt_cache: int = 0
    """Bytes of those for prompts kept after their slot went to another request."""
    kv_type: KvType = "f16"


def kv_bytes(info: ModelInfo, tokens: int, kv_type: KvType = "f16") -> int:
    """Bytes of keys and values for `tokens`: layers · kv heads · length each."""
    numbers = info.layers * info.kv_heads * (info.key_length + info.value_length)
    times, per = _KV_BYTES[kv_type]
    return numbers * times * tokens // per


def work_bytes(info: ModelInfo, ubatch: int) -> int:
    """Bytes of work buffers: logits and the widest intermediate values, F32.

    An MLP is about 4 widths wide and a handful of such values live at once.
    """
    logits = 4 * info.vocabulary * ubatch
    hidden = 4 * ubatch * info.width * 24
    return logits + hidden


def place(
    info: ModelInfo, *, slots: int, context: int | None, budget: int, embed: bool = False
) -> Placement:
    """Context and slots for a model within `budget` bytes.

    Args:
        slots: requests at a time that are wanted; fewer only if even the least context needs it.
        context: tokens per request as configured; it is never changed. None: what the model was
            trained for, halved (not below `LEAST_CONTEXT`) while the model would take more than
            half the budget.
        embed: for embeddings, which are computed whole and keep no cache worth counting.

    Returns:
        The placement; its bytes may exceed the budget, which the scheduler refuses with both
        numbers.
    """
    trained = info.context or DEFAULT_CONTEXT
    tokens = min(context or trained, trained)
    if embed:
        if context is None:
            tokens = min(tokens, EMBED_CONTEXT)
        need = _total(info, tokens, 1, ubatch=tokens)
        return Placement(context=tokens, slots=slots, bytes=need)
    if context is None:
        while tokens > LEAST_CONTEXT and _total(info, tokens, slots) > budget // 2:
            tokens = max(LEAST_CONTEXT, tokens // 2)
    while slots > 1 and _total(info, tokens, slots) > budget:
        slots -= 1
    need = _total(info, tokens, slots)
    return Placement(tokens, slots, need, prompt_cache=_prompt_cache(info, tokens))


def _prompt_cache(info: ModelInfo, tokens: int) -> int:
    """Room for two whole contexts, between 8 MiB and 256 MiB."""
    return max(8 << 20, min(256 << 20, 2 * kv_bytes(info, tokens)))


def _total(info: ModelInfo, tokens: int, slots: int, *, ubatch: int = UBATCH) -> int:
    cache = kv_bytes(info, tokens) * slots
    extra = _prompt_cache(info, tokens) if ubatch == UBATCH else 0
    return PROCESS + info.bytes + cache + extra + work_bytes(info, min(ubatch, tokens))
