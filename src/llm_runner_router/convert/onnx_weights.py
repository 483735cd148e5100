"""Numbers of a checkpoint, a few rows at a time, in the layouts that ONNX Runtime wants.

Knows: the types of weights in safetensors, blocks of `MatMulNBits`. Does not know: graphs, which
tensor means what. Memory is bounded by `CHUNK`, not by the size of a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from llm_runner_router.errors import ModelFileError, Unsupported
from llm_runner_router.models.checkpoint import Checkpoint, Weight

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

CHUNK: Final = 32 << 20
"""Numbers are held in pieces of at most about so many bytes, or one row."""
BLOCK: Final = 32
"""Values that share a scale, as in GGUF's Q4_0 and Q8_0."""

_SIZES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class Rows(Struct, frozen=True):
    """Some rows of a tensor; of a vector, its values are rows of one."""

    name: str
    first: int
    count: int
    width: int


def whole(checkpoint: Checkpoint, name: str) -> Rows:
    """All rows of a tensor.

    Raises:
        ModelFileError: the tensor is absent, or its type or shape cannot be used.
    """
    weight = checkpoint.weights.get(name)
    if weight is None:
        raise ModelFileError(
            f"{checkpoint.path} has no tensor `{name}`",
            hint="`llmrr inspect` lists what it has; the download may be incomplete",
        )
    if weight.dtype not in _SIZES:
        raise Unsupported(
            f"tensor `{name}` of {checkpoint.path} has type {weight.dtype}",
            hint="convert from the original weights, in F32, F16 or BF16",
        )
    if not weight.shape or len(weight.shape) > 2:
        raise ModelFileError(
            f"tensor `{name}` of {checkpoint.path} has shape {weight.shape}, not one or two "
            "dimensions",
            hint="`llmrr verify --deep` checks every tensor",
        )
    return Rows(name, 0, weight.shape[0], _width(weight))


def _width(weight: Weight) -> int:
    return math.prod(weight.shape[1:])


def floats(checkpoint: Checkpoint, rows: Rows) -> Floats:
    """These rows as F32, shape `[count, width]`."""
    import numpy as np

    weight = checkpoint.weights[rows.name]
    size = _SIZES[weight.dtype] * rows.width
    raw = checkpoint.read(rows.name)[rows.first * size : (rows.first + rows.count) * size]
    if weight.dtype == "BF16":
        wide = np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)
        values: Floats = wide.view(np.float32)
    else:
        kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[weight.dtype]
        values = np.frombuffer(raw, kind).astype(np.float32)
    return values.reshape(rows.count, rows.width)


def pieces(checkpoint: Checkpoint, parts: Sequence[Rows]) -> Iterator[Floats]:
    """The rows of all `parts`, one after the other, in pieces of about `CHUNK` bytes."""
    for part in parts:
        step = max(1, CHUNK // max(1, 4 * part.width))
        for first in range(part.first, part.first + part.count, step):
            count = min(step, part.first + part.count - first)
            yield floats(checkpoint, Rows(part.name, first, count, part.width))


def half(values: Floats, name: str) -> bytes:
    """F16.

    Raises:
        Unsupported: a value does not fit.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        narrow = values.astype("<f2")
    if not np.isfinite(narrow).all():
        raise Unsupported(
            f"tensor `{name}` has values that F16 cannot hold", hint="use `--type bf16` or `f32`"
        )
    return narrow.tobytes()


def brain(values: Floats) -> bytes:
    """BF16, rounded to nearest, ties to even."""
    import numpy as np

    bits = values.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (rounded >> np.uint32(16)).astype("<u2").tobytes()


def blocks(values: Floats, bits: int) -> tuple[NDArray[Any], Floats]:
    """Rows as blocks of `bits` (4 or 8) with one scale each, as `MatMulNBits` reads them.

    A value is `(code - 2 ** (bits - 1)) * scale`. With 4 bits the largest value of a block is
    exact, as in GGUF's Q4_0; with 8 bits the codes are those of Q8_0.

    Returns:
        Codes `[rows, blocks, BLOCK * bits / 8]` as bytes, low half first, and scales
        `[rows, blocks]`.
    """
    import numpy as np

    count, width = values.shape
    if width % BLOCK:
        values = np.pad(values, ((0, 0), (0, -width % BLOCK)))
    grouped = values.reshape(count, -1, BLOCK)
    if bits == 8:
        scales = np.abs(grouped).max(axis=2) / np.float32(127)
    else:
        at = np.abs(grouped).argmax(axis=2)[..., None]
        scales = np.take_along_axis(grouped, at, axis=2)[..., 0] / np.float32(-8)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    middle = 1 << (bits - 1)
    codes = np.clip(np.rint(grouped * inverse[..., None]) + middle, 0, 2 * middle - 1)
    packed = codes.astype(np.uint8)
    if bits == 4:
        packed = packed[..., 0::2] | (packed[..., 1::2] << 4)
    return packed, scales.astype(np.float32)
