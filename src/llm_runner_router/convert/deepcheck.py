"""Looks at every number of a model: is one of them no number, is a tensor nothing but zeros?

Knows: how floating point numbers lie in memory, and where the blocks of GGUF keep their scales.
Does not know: what the numbers mean. Reads the whole file, a slab at a time.

A scale that is infinite makes all weights of its block so; the integers of a block are any bits.
Places from ggml's `ggml-common.h` as of llama.cpp b11549.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from llm_runner_router.models.checkpoint import Checkpoint, Weight
from llm_runner_router.models.deepcheck import Finding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SLAB: Final = 16 * 1024 * 1024
"""Bytes looked at in one go."""
_MOST: Final = 20
_FLOATS: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_SCALES: Final[dict[str, tuple[int, tuple[int, ...]]]] = {
    "Q4_0": (18, (0,)), "Q4_1": (20, (0, 2)), "Q5_0": (22, (0,)), "Q5_1": (24, (0, 2)),
    "Q8_0": (34, (0,)), "Q2_K": (84, (80, 82)), "Q3_K": (110, (108,)), "Q4_K": (144, (0, 2)),
    "Q5_K": (176, (0, 2)), "Q6_K": (210, (208,)), "IQ4_NL": (18, (0,)), "IQ4_XS": (136, (0,)),
    "TQ1_0": (54, (52,)), "TQ2_0": (66, (64,)),
}  # fmt: skip
"""Bytes of a block, and where its F16 scales lie in it."""


def numbers(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Findings on the numbers of all tensors whose type is known here.

    Raises:
        ModelFileError: the file changed while it was read.
    """
    bad: list[str] = []
    empty: list[str] = []
    looked = 0
    for name, weight in checkpoint.weights.items():
        if not weight.bytes:
            continue
        wrong, zero = _scanned(checkpoint.read(name), weight)
        looked += weight.dtype in _FLOATS or weight.dtype in _SCALES
        if wrong:
            bad.append(f"`{name}` ({wrong})")
        if zero and len(weight.shape) > 1:
            empty.append(f"`{name}`")
    if bad:
        yield Finding("numbers", "bad", f"not finite: {_few(bad)}")
    if empty:
        detail = f"nothing but zeros, as a download with holes leaves them: {_few(empty)}"
        yield Finding("numbers", "bad", detail)
    if not bad and not empty:
        tensors = len(checkpoint.weights)
        yield Finding("numbers", "ok", f"finite in {looked} of {tensors} tensors")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


def _scanned(view: memoryview, weight: Weight) -> tuple[int, bool]:
    """How many numbers (or scales) are not finite, and whether all bytes are zero."""
    import numpy as np

    wrong, zero = 0, True
    block = _SCALES.get(weight.dtype, (8, ()))[0]
    step = SLAB // block * block
    for at in range(0, len(view), step):
        slab = np.frombuffer(view[at : at + step], np.uint8)
        zero = zero and not slab.any()
        wrong += _wrong(slab, weight.dtype)
    return wrong, zero


def _wrong(slab: NDArray[np.uint8], dtype: str) -> int:
    import numpy as np

    if dtype in _FLOATS:
        values = slab.view(_FLOATS[dtype])
        if dtype == "BF16":  # the upper half of an F32: not finite where all exponent bits are set
            return int(np.count_nonzero((values & 0x7F80) == 0x7F80))
        return int(values.size - np.count_nonzero(np.isfinite(values)))
    block, places = _SCALES.get(dtype, (0, ()))
    wrong = 0
    for place in places:
        scales = slab.reshape(-1, block)[:, place : place + 2].copy().view("<f2")
        wrong += int(scales.size - np.count_nonzero(np.isfinite(scales)))
    return wrong
