"""Weights of −1, 0 and 1 between bitnet.cpp's I2_S and llama.cpp's TQ1_0 and TQ2_0, code for code.

Knows: the layouts (microsoft/BitNet `src/ggml-bitnet-mad.cpp` for x86; ggml's `ggml-quants.c`):

    I2_S    128 weights in 32 bytes; weight j in byte j mod 32, at bits 6 − 2·⌊j/32⌋; all of a
            tensor, then one scale, F32, and 28 bytes that mean nothing
    TQ2_0   256 weights in 64 bytes; of each half, weight j in byte j mod 32, at bits 2·⌊j/32⌋;
            then the block's scale, F16
    codes   0, 1, 2 are −1, 0, 1 in both; 3 is none

So a byte of one is a byte of the other with its four pairs of bits the other way round. The scale
loses what F16 cannot hold, at most one part in 2048. Does not know: which layout a file has, which
I2_S does not say. Files from ARM builds have blocks of 64 weights; those whose padding shows code 3
are refused, others would need a comparison of answers.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from . import kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK: Final = 256
TAIL: Final = 32
"""Bytes after the codes of an I2_S tensor; the first four are the scale."""
_BYTES: Final = np.arange(256, dtype=np.uint8)
_TURNED: Final = (
    (_BYTES & 3) << 6 | (_BYTES >> 2 & 3) << 4 | (_BYTES >> 4 & 3) << 2 | _BYTES >> 6
).astype(np.uint8)
"""A byte with its pairs of bits the other way round."""
_NO_CODE: Final = ((_BYTES & (_BYTES >> 1) & 0x55) != 0).astype(np.bool_)
"""Bytes with a pair of bits that is 3."""


class Ternary:
    """A tensor of codes: [rows, cols / 4] bytes in TQ2_0's order, and one scale."""

    def __init__(self, codes: NDArray[np.uint8], scale: float) -> None:
        self.codes = codes
        self.scale = scale


def from_i2_s(data: Any, rows: int, cols: int) -> Ternary:
    """Read an I2_S tensor; bytes of padding after it do not matter.

    Raises:
        ValueError: the bytes are too few, the rows do not fit, a code is 3, or the scale is none.
    """
    _fit(cols)
    size = rows * cols // 4
    flat = np.frombuffer(data, np.uint8)
    if flat.nbytes < size + 4:
        raise ValueError(f"it takes {size + TAIL} bytes, and there are {flat.nbytes}")
    codes = _sound(flat[:size])
    (scale,) = struct.unpack_from("<f", flat[size : size + 4].tobytes())
    return Ternary(_TURNED[codes].reshape(rows, cols // 4), _scale(float(scale)))


def to_i2_s(ternary: Ternary) -> bytes:
    """The tensor as I2_S, with its tail."""
    tail = struct.pack("<f", ternary.scale) + bytes(TAIL - 4)
    return _TURNED[ternary.codes].tobytes() + tail


def from_tq(kind: str, data: Any, rows: int, cols: int) -> Ternary:
    """Read TQ1_0 or TQ2_0 whose blocks all have one scale.

    Blocks of nothing but zeros may have any, because it does not matter.

    Raises:
        ValueError: the bytes do not fit, a code is 3, or two blocks have different scales.
    """
    _fit(cols)
    blocks = _blocks(kind, data, rows, cols)
    scales = blocks[:, -2:].copy().view(np.float16)[:, 0].astype(np.float32)
    if kind == "TQ2_0":
        codes = _sound(blocks[:, :-2])
    else:
        codes = _pack(_unscaled(kind, blocks))
    used = (codes != 0x55).any(axis=1)  # 0x55 is four zeros
    found = np.unique(scales[used]) if used.any() else scales[:1]
    if len(found) != 1:
        raise ValueError(f"its blocks have {len(found)} scales, and I2_S holds one for all")
    return Ternary(np.ascontiguousarray(codes).reshape(rows, cols // 4), _scale(float(found[0])))


def to_tq(kind: str, ternary: Ternary) -> NDArray[np.uint8]:
    """The tensor as TQ1_0 or TQ2_0: [blocks, bytes per block], each with the scale in F16."""
    codes = ternary.codes.reshape(-1, BLOCK // 4)
    scale = np.frombuffer(struct.pack("<e", ternary.scale), np.uint8)
    if kind == "TQ2_0":
        return np.hstack([codes, np.broadcast_to(scale, (len(codes), 2))])
    # ggml packs five of them into a byte; with scale 1 its rounding has nothing to round.
    made = kernels.quantize(kind, _unpack(codes))
    made[:, -2:] = scale
    return made


def _blocks(kind: str, data: Any, rows: int, cols: int) -> NDArray[np.uint8]:
    flat = np.frombuffer(data, np.uint8)
    width = kernels.row_bytes(kind, BLOCK)
    if flat.nbytes != rows * cols // BLOCK * width:
        raise ValueError(f"it takes {rows * cols // BLOCK * width} bytes, not {flat.nbytes}")
    return flat.reshape(-1, width)


def _unscaled(kind: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The weights of blocks as −1, 0 and 1."""
    one = blocks.copy()
    one[:, -2:] = np.frombuffer(struct.pack("<e", 1.0), np.uint8)
    return kernels.dequantize(kind, one, (len(one), BLOCK))


def _unpack(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[blocks, 64] bytes in TQ2_0's order as [blocks, 256] weights."""
    halves = codes.reshape(len(codes), 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    weights = (halves >> shifts & 3).reshape(len(codes), BLOCK).astype(np.float32)
    weights -= 1
    return weights


def _pack(weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The other way round."""
    codes = (weights + 1).astype(np.uint8).reshape(len(weights), 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(codes << shifts, axis=2).astype(np.uint8)
    return packed.reshape(len(weights), BLOCK // 4)


def _fit(cols: int) -> None:
    if cols < 1 or cols % BLOCK:
        raise ValueError(f"its rows of {cols} weights are no multiple of {BLOCK}")


def _sound(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if _NO_CODE[codes].any():
        raise ValueError("it holds the code 3, which is no weight: its layout is another one")
    return codes


def _scale(scale: float) -> float:
    """A scale that F16 holds, as it is.

    Raises:
        ValueError: it is not finite, negative, or F16 would make nothing or infinity of it.
    """
    if not np.isfinite(scale) or scale < 0 or scale >= 65520 or (0 < scale < 2**-25):
        raise ValueError(f"its scale {scale:g} is none that F16 holds")
    return scale
