"""`dynamic`: the best mix that fits a machine's memory and still answers fast enough.

Knows: how large a model becomes in each mix, and that an answer's tokens cost the reading of the
weights. Does not know: this machine; memory and bandwidth are arguments (`read_bandwidth` measures
the latter). The choice is pure.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from llm_runner_router.models.info import ModelInfo
from llm_runner_router.units import format_size

from . import mixes

LADDER: Final = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
"""What is tried, the best first."""
FLOOR: Final = "Q4_K_M"
"""Speed alone never leads below this: what is lost then grows faster than what is won."""
WANTED: Final = 10.0
"""Tokens per second that are fast enough: twice as fast as people read."""
SHARE: Final = 0.8
"""Share of the read bandwidth that decoding reaches on idle cores (0.84 to 0.91 measured for
llama.cpp on a Raspberry Pi 5, llama.cpp#26484; less on large servers)."""
_FINE: Final = frozenset({"F64", "F32", "F16", "BF16"})


class Choice(Struct, frozen=True):
    """A mix, and the reason in words. An empty `mix` means: take the file as it is."""

    mix: str
    why: str
    bytes: int = 0
    """Weights in that mix."""
    speed: float = 0.0
    """Tokens per second it should decode."""
    fits: bool = True


def choose(
    info: ModelInfo,
    budget: int,
    bandwidth: float,
    *,
    sizes: Mapping[str, int] | None = None,
    wanted: float = WANTED,
) -> Choice:
    """The best mix for a model on a machine.

    Args:
        info: of the file there is.
        budget: bytes that weights may take: free memory less what context and buffers need.
        bandwidth: bytes per second that the machine reads.
        sizes: bytes of weights by mix where they are known exactly; else they are estimated.
        wanted: tokens per second.
    """
    held = info.bytes or sum(info.types.values())
    if info.quantisation not in _FINE and info.quantisation != "Q8_0":
        fits = held <= budget
        why = f"it is quantised already ({info.quantisation})" + ("" if fits else _short(budget))
        return Choice("", why, held, _speed(info, held, bandwidth), fits)
    sizes = sizes or {mix: estimate(info, mix) for mix in LADDER}
    choices = [Choice(mix, "", sizes[mix], _speed(info, sizes[mix], bandwidth)) for mix in LADDER]
    fitting = [choice for choice in choices if choice.bytes <= budget]
    if not fitting:
        last = choices[-1]
        why = f"even this takes {format_size(last.bytes)}" + _short(budget)
        return Choice(last.mix, why, last.bytes, last.speed, fits=False)
    best = next((c for c in fitting if c.speed >= wanted), None)
    if best is None or LADDER.index(best.mix) > LADDER.index(FLOOR):
        # None is fast enough, or only one whose answers suffer: the floor, if it fits.
        best = next((c for c in fitting if c.mix == FLOOR), fitting[0])
    kept = info.quantisation == best.mix == "Q8_0"
    return Choice("" if kept else best.mix, _why(best, choices, budget, wanted), best.bytes,
                  best.speed)  # fmt: skip


def estimate(info: ModelInfo, mix: str) -> int:
    """Bytes of weights in a mix, from the sizes of a model alone.

    The matrices of a Llama of these sizes are planned; the feed-forward's width follows from the
    number of parameters. Exact for that family, a few per cent off for others.
    """
    head = info.key_length or (info.width // info.heads if info.heads else 0)
    queries, keys = info.heads * head, info.kv_heads * head
    values = info.kv_heads * (info.value_length or head)
    layers, width = max(1, info.layers), max(1, info.width)
    ends = info.vocabulary * width
    experts = max(1, info.experts)
    attention = width * (2 * queries + keys + values)
    rest = info.parameters - ends * (1 if info.tied else 2) - layers * attention
    hidden = max(1, rest // (3 * layers * width * experts))
    hidden = max(256, round(hidden / 256) * 256) if hidden >= 256 else hidden
    items = [mixes.Item("token_embd.weight", "F16", (max(2, info.vocabulary), width))]
    if not info.tied:
        items.append(mixes.Item("output.weight", "F16", (max(2, info.vocabulary), width)))
    for i in range(layers):
        shapes = {
            "attn_q": (queries, width), "attn_k": (keys, width), "attn_v": (values, width),
            "attn_output": (width, queries), "ffn_gate": (hidden * experts, width),
            "ffn_up": (hidden * experts, width), "ffn_down": (width * experts, hidden),
        }  # fmt: skip
        items += [
            mixes.Item(f"blk.{i}.{name}.weight", "F16", shape)
            for name, shape in shapes.items()
            if min(shape) > 1
        ]
    shape = mixes.Shape(info.architecture, layers, info.heads, info.kv_heads, info.experts)
    planned = mixes.size(items, mixes.plan(mixes.MIXES[mix], shape, items))
    counted = sum(item.shape[0] * item.shape[1] for item in items)
    return planned * info.parameters // counted if counted else planned


def touched(info: ModelInfo, size: int) -> float:
    """Bytes of `size` bytes of weights that one token reads.

    Not the embedding, of which one row is read, unless it is the output too; of a mixture's
    experts only those that are used, which are nearly all of its weights.
    """
    whole = max(1, info.parameters)
    embedding = 0 if info.tied else info.vocabulary * info.width
    share = 1 - min(embedding, whole // 2) / whole
    if info.experts > 1:
        share *= min(1.0, 0.1 + 0.9 * (info.experts_used or info.experts) / info.experts)
    return size * share


def read_bandwidth(threads: int, *, size: int = 64 << 20, rounds: int = 3) -> float:
    """Bytes per second that `threads` threads read from memory together: the best of some rounds.

    Each thread adds up a block of its own that no cache holds; the sum of integers is limited by
    memory on all but the slowest cores.
    """
    import numpy as np

    blocks = [np.ones(size // 8, np.uint64) for _ in range(max(1, threads))]
    best = 0.0
    for _ in range(rounds):
        workers = [threading.Thread(target=block.sum) for block in blocks]
        begun = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, len(blocks) * size / (time.perf_counter() - begun))
    return best


def _speed(info: ModelInfo, size: int, bandwidth: float) -> float:
    read = touched(info, size)
    return bandwidth * SHARE / read if read > 0 else 0.0


def _short(budget: int) -> str:
    return f", and there is room for {format_size(budget)}"


def _why(best: Choice, choices: list[Choice], budget: int, wanted: float) -> str:
    says = f"{format_size(best.bytes)} of {format_size(budget)}, about {best.speed:.3g} tokens/s"
    at = choices.index(best)
    if at == 0:
        return says
    better = choices[at - 1]
    if better.bytes > budget:
        return f"{says}; {better.mix} would take {format_size(better.bytes)}"
    if best.speed < wanted:
        return f"{says}; no mix is faster without answering much worse"
    return f"{says}; {better.mix} would decode {better.speed:.3g}, {wanted:g} are wanted"
