"""Bytes of weights to numbers and back.

Knows: the plain element types (`F32 F16 BF16 F64`, 8-bit floats, integers). Does not know: files,
tensors' names, quantised types (`kernels.py`, where ggml's own code does them).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llm_runner_router.errors import Unsupported
from llm_runner_router.models.formats.gguf_types import KINDS

Array = NDArray[np.float32]

_PLAIN: Final = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def decode(data: memoryview, dtype: str, shape: tuple[int, ...]) -> Array:
    """The numbers in `data` as float32, in the given shape. F32 is a view, the rest a copy.

    Raises:
        Unsupported: numbers of that type cannot be read here.
    """
    if dtype in _PLAIN:
        return np.frombuffer(data, _PLAIN[dtype]).reshape(shape).astype(np.float32, copy=False)
    if dtype == "BF16":
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    if dtype in ("F8_E4M3", "F8_E5M2"):
        return _small_floats(dtype)[np.frombuffer(data, np.uint8)].reshape(shape)
    if all(kind.name != dtype for kind in KINDS.values()):
        raise Unsupported(f"numbers of the type `{dtype}` cannot be read here")
    from . import kernels

    return kernels.dequantize(dtype, data, shape)


def encode(array: Array, dtype: str) -> NDArray[Any]:
    """`array` in the GGUF type `dtype`, as a contiguous array of its bytes.

    Raises:
        ValueError: the rows do not fit its blocks.
    """
    array = np.ascontiguousarray(array, np.float32)
    if dtype == "F32":
        return array.view(np.uint8).reshape(-1)
    if dtype == "F16":
        # Beyond half precision's range a weight becomes infinite, as in every other converter.
        with np.errstate(over="ignore"):
            return array.astype("<f2").view(np.uint8).reshape(-1)
    if dtype == "BF16":
        return _to_bf16(array)
    from . import kernels

    return kernels.quantize(dtype, array.reshape(-1, array.shape[-1])).reshape(-1)


def size(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that `shape` takes in the GGUF type `dtype`; its rows are whole blocks."""
    block, width = next((k.block, k.size) for k in KINDS.values() if k.name == dtype)
    return int(np.prod(shape, dtype=np.int64)) // block * width


def fits(dtype: str, row: int) -> bool:
    """Whether rows of that length are whole blocks of the GGUF type `dtype`."""
    return row % next(k.block for k in KINDS.values() if k.name == dtype) == 0


def _to_bf16(array: Array) -> NDArray[np.uint8]:
    """The upper half of each float, rounded to nearest, ties to even; a NaN stays one."""
    bits = array.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40
    half = np.where(np.isnan(array), quiet, rounded).astype("<u2")
    return half.view(np.uint8).reshape(-1)


@lru_cache(maxsize=2)
def _small_floats(dtype: str) -> Array:
    """The value of each byte (OCP 8-bit floating point: E4M3 has no infinity, E5M2 has)."""
    bits, bias = (3, 7) if dtype == "F8_E4M3" else (2, 15)
    byte = np.arange(256)
    sign = np.where(byte & 0x80, -1.0, 1.0)
    exponent = (byte & 0x7F) >> bits
    mantissa = (byte & ((1 << bits) - 1)) / (1 << bits)
    value = np.where(
        exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias)
    )
    if dtype == "F8_E4M3":
        value = np.where((byte & 0x7F) == 0x7F, np.nan, value)
    else:
        value = np.where(exponent == 31, np.where(mantissa == 0, np.inf, np.nan), value)
    return (sign * value).astype(np.float32)
