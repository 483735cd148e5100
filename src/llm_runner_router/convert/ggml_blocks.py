"""Blocks of quantised weights from before GGUF, rewritten as the blocks of GGUF.

Knows: both layouts of each type. Does not know: files, tensors' names. The codes of the weights
stay what they were and only move; a scale becomes half precision where it was a float, as it was
when llama.cpp itself changed the format (https://github.com/ggml-org/llama.cpp/pull/1508).

    V1   code i of 32 shares a byte with code i ^ 1, the even one in the low half
    V2   code i shares a byte with code i + 16, the first half of the block in the low halves
    fifth bits (Q5_0, Q5_1) lie in the order of the weights in all of them
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
BLOCK: Final = 32

_Layout = tuple[str, int, str, int, bool]
_LAYOUTS: Final[dict[str, _Layout]] = {
    "Q4_0_V1": ("Q4_0", 1, "<f4", 0, True),
    "Q4_0_V2": ("Q4_0", 1, "<f4", 0, False),
    "Q4_1_V1": ("Q4_1", 2, "<f4", 0, True),
    "Q4_1_V2": ("Q4_1", 2, "<f4", 0, False),
    "Q5_0_V1": ("Q5_0", 1, "<f2", 4, True),
    "Q5_1_V1": ("Q5_1", 2, "<f2", 4, True),
    "Q8_0_V2": ("Q8_0", 1, "<f4", 0, False),
}
"""The type in GGUF; how many scales a block begins with, and their type; bytes of fifth bits; and
whether neighbours share a byte."""


def becomes(dtype: str) -> str:
    """The type of GGUF that blocks of `dtype` are rewritten as; empty if there is none."""
    found = _LAYOUTS.get(dtype)
    return found[0] if found else ""


def rewrite(dtype: str, data: memoryview) -> Bytes:
    """Whole blocks of the older type `dtype` as blocks of `becomes(dtype)`.

    Raises:
        ValueError: a scale is not finite, or larger than half precision can say.
    """
    _, scales, kind, fifth, shared = _LAYOUTS[dtype]
    wide = np.dtype(kind).itemsize
    codes = BLOCK if dtype.startswith("Q8") else BLOCK // 2
    blocks = np.frombuffer(data, np.uint8).reshape(-1, scales * wide + fifth + codes)
    head = _halves(blocks[:, : scales * wide], kind)
    tail = blocks[:, scales * wide :]
    if shared:
        tail = np.concatenate([tail[:, :fifth], _moved(tail[:, fifth:])], axis=1)
    return np.concatenate([head, tail], axis=1).reshape(-1)


def _halves(raw: Bytes, kind: str) -> Bytes:
    scales: NDArray[Any] = np.ascontiguousarray(raw).view(kind)
    with np.errstate(over="ignore"):
        small = scales.astype("<f2")
    if not np.isfinite(small).all():
        raise ValueError("a scale of it is no finite number of half precision")
    return small.view(np.uint8)


def _moved(packed: Bytes) -> Bytes:
    """Sixteen bytes per block with neighbours in each, as bytes with weight i and i + 16."""
    codes = np.empty((len(packed), BLOCK), np.uint8)
    codes[:, 0::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    low: Bytes = codes[:, : BLOCK // 2]
    high: Bytes = np.left_shift(codes[:, BLOCK // 2 :], 4, dtype=np.uint8)
    return low | high
