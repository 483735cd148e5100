"""MLX's quantised folders to plain safetensors: packed integers become numbers again.

Knows: the affine scheme (`mlx.core.dequantize`): a weight is integer · scale + bias, with one scale
and one bias for each group of a row; integers lie as a stream of bits, low bits first, in 32-bit
words. Does not know: architectures; names and settings stay, without the `quantization` block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llm_runner_router.errors import ModelFileError, Unsupported
from llm_runner_router.models.checkpoint import Checkpoint, Weight
from llm_runner_router.plugins import load

from . import companions
from .base import Options, Tick, converts
from .safetensors_write import SafetensorsWriter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROWS: Final = 4 * 1024 * 1024
"""Weights that are unpacked at a time; a bit takes a byte while it is moved."""


class _Packing(msgspec.Struct, frozen=True):
    bits: int
    group: int


@converts("mlx", "safetensors", grow=8.0, speed=30e6)
def to_safetensors(source: Path, target: Path, options: Options, tick: Tick) -> None:
    """A folder of MLX as the folder `target`; numbers have the type of the scales.

    Raises:
        ModelFileError: the source cannot be used; names the tensor.
        Unsupported: it is quantised in another way.
        Cancelled: `tick` raised it.
    """
    opened: Checkpoint = load("models.formats", "mlx").open_checkpoint(source)
    with opened as checkpoint:
        config = dict(checkpoint.config)
        block = config.pop("quantization")
        config.pop("quantization_config", None)
        if block.get("mode", "affine") != "affine":
            raise Unsupported(f"its weights are packed as `{block['mode']}`, which is not read")
        companions.copy(source, target)
        (target / "config.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(config), indent=2)
        )
        outs = [_out(checkpoint, name, block) for name in _plain(checkpoint)]
        announced = [(weight.name, weight.dtype, weight.shape) for weight, _ in outs]
        total, done = sum(w.bytes for w, _ in outs), 0
        with SafetensorsWriter(target / "model.safetensors", announced) as writer:
            for weight, packing in outs:
                for piece in _data(checkpoint, weight, packing):
                    tick(done, total, weight.name)
                    writer.data(piece)
                    done += piece.nbytes
            writer.finish()
        tick(total, total, "")


def _plain(checkpoint: Checkpoint) -> Iterator[str]:
    """Names of the tensors that remain: not the scales and biases of packed ones."""
    for name in checkpoint.weights:
        stem, _, last = name.rpartition(".")
        if last in ("scales", "biases") and f"{stem}.scales" in checkpoint.weights:
            continue
        yield name


def _out(
    checkpoint: Checkpoint, name: str, block: Mapping[str, Any]
) -> tuple[Weight, _Packing | None]:
    """A tensor as it will be, and how it is packed now."""
    weight, stem = checkpoint.weights[name], name.removesuffix(".weight")
    scales = checkpoint.weights.get(f"{stem}.scales")
    if scales is None or not name.endswith(".weight"):
        return weight, None
    own = block.get(stem)
    said = own if isinstance(own, Mapping) else block
    packing = _Packing(int(said["bits"]), int(said["group_size"]))
    if f"{stem}.biases" not in checkpoint.weights or weight.dtype != "U32":
        raise ModelFileError(f"`{name}` has scales, but no biases or no packed integers")
    shape = (*scales.shape[:-1], scales.shape[-1] * packing.group)
    if weight.shape[-1] * 32 != shape[-1] * packing.bits or weight.shape[:-1] != shape[:-1]:
        raise ModelFileError(
            f"`{name}` of shape {weight.shape} does not hold {shape} weights of {packing.bits} bits"
        )
    count = 1
    for length in shape:
        count *= length
    width = 4 if scales.dtype == "F32" else 2
    return Weight(name, scales.dtype, shape, count * width), packing


def _data(
    checkpoint: Checkpoint, weight: Weight, packing: _Packing | None
) -> Iterator[NDArray[Any] | memoryview]:
    """The bytes of a tensor, some rows at a time."""
    if packing is None:
        yield checkpoint.read(weight.name)
        return
    from . import arrays

    stem, columns = weight.name.removesuffix(".weight"), weight.shape[-1]
    groups = columns // packing.group
    rows = weight.bytes // (columns * (4 if weight.dtype == "F32" else 2))
    packed = checkpoint.read(weight.name)
    read = [
        arrays.decode(checkpoint.read(f"{stem}.{part}"), weight.dtype, (rows, groups, 1))
        for part in ("scales", "biases")
    ]
    step, width = max(1, ROWS // columns), columns * packing.bits // 8
    for start in range(0, rows, step):
        end = min(rows, start + step)
        whole = unpack(packed[start * width : end * width], packing.bits)
        whole = whole.reshape(end - start, groups, packing.group)
        numbers = whole * read[0][start:end] + read[1][start:end]
        yield arrays.encode(numbers, weight.dtype)


def unpack(data: memoryview, bits: int) -> NDArray[np.float32]:
    """The integers in a stream of `bits`-bit numbers, low bits first."""
    import numpy as np

    stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").reshape(-1, bits)
    return stream.astype(np.float32) @ (2.0 ** np.arange(bits)).astype(np.float32)
