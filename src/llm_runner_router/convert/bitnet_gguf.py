"""Converters between files of bitnet.cpp (I2_S) and of llama.cpp (TQ2_0, TQ1_0).

Knows: which tensors are repacked, and that everything else stays. Does not know: the layouts
(`bitnet.py`). The architecture's name stays too: llama.cpp runs repacked files of architectures
that it knows (`llama`, `bitnet`), and not `bitnet-b1.58`, whose feed-forward is another.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.formats.gguf_types import BITNET

from .base import Options, Tick, converts

if TYPE_CHECKING:
    from llm_runner_router.models.checkpoint import Checkpoint, Weight

I2_S: Final = next(number for number, name in BITNET.items() if name == "I2_S")
TERNARY: Final = frozenset({"I2_S", "TQ1_0", "TQ2_0"})
FILE_TYPES: Final = {"TQ1_0": 36, "TQ2_0": 37, "I2_S": 40}
"""`general.file_type`; that of I2_S is bitnet.cpp's (LLAMA_FTYPE_MOSTLY_I2_S)."""


@converts("bitnet-gguf", "gguf", grow=1.05, speed=300e6)
def from_bitnet(source: Path, target: Path, options: Options, tick: Tick) -> None:
    """A file of bitnet.cpp with I2_S as one with TQ2_0; what is not I2_S stays as it is.

    Raises:
        ModelFileError: a tensor is of another type of bitnet.cpp, or no sound I2_S.
    """
    repack(source, target, "TQ2_0", tick)


@converts("gguf", "bitnet-gguf", grow=1.05, speed=300e6)
def to_bitnet(source: Path, target: Path, options: Options, tick: Tick) -> None:
    """A file with TQ1_0 or TQ2_0 as one of bitnet.cpp, with I2_S.

    Raises:
        ModelFileError: it has no ternary tensors, or one whose blocks have several scales.
    """
    repack(source, target, "I2_S", tick)


def repack(source: Path, target: Path, kind: str, tick: Tick) -> None:
    """Write `source` to `target` with its ternary tensors as `kind`: I2_S, TQ1_0 or TQ2_0.

    Raises:
        ModelFileError: there are none, or one cannot be repacked; names it.
    """
    from llm_runner_router.models.formats import gguf

    from .gguf_write import GGUFWriter

    with gguf.open_checkpoint(source) as model:
        ternary = {n for n, w in model.weights.items() if w.dtype in TERNARY}
        _check(source, model, ternary)
        total = sum(weight.bytes for weight in model.weights.values())
        with GGUFWriter(target, model.info.architecture) as out:
            _fields(model, out, kind)
            for name, weight in model.weights.items():
                _announce(out, weight, kind if name in ternary else weight.dtype)
            out.begin()
            done = 0
            for name, weight in model.weights.items():
                tick(done, total, name)
                data = model.read(name)
                if name in ternary:
                    out.data(name, _one(source, weight, data, kind))
                else:
                    out.data(name, data)
                done += weight.bytes
            tick(total, total, "")
            out.finish()


def _one(source: Path, weight: Weight, data: memoryview, kind: str) -> Any:
    """The bytes of one tensor as `kind`."""
    from . import bitnet

    *outer, cols = weight.shape
    rows = math.prod(outer)
    try:
        if weight.dtype == "I2_S":
            ternary = bitnet.from_i2_s(data, rows, cols)
        else:
            ternary = bitnet.from_tq(weight.dtype, data, rows, cols)
        return bitnet.to_i2_s(ternary) if kind == "I2_S" else bitnet.to_tq(kind, ternary)
    except ValueError as exc:
        raise ModelFileError(
            f"the tensor `{weight.name}` of `{source.name}` ({weight.dtype}) cannot be repacked:"
            f" {exc}",
            hint="convert the original of the model, in safetensors: `llmrr convert`",
        ) from None


def _check(source: Path, model: Checkpoint, ternary: set[str]) -> None:
    if not ternary:
        raise ModelFileError(
            f"`{source.name}` has no weights in I2_S, TQ1_0 or TQ2_0",
            hint="`llmrr quantize --type TQ2_0` makes them of a model trained for them",
        )
    for weight in model.weights.values():
        if weight.dtype in BITNET.values() and weight.dtype != "I2_S":
            raise ModelFileError(
                f"`{weight.name}` of `{source.name}` has {weight.dtype} of bitnet.cpp, whose"
                " layout depends on the machine it was made for",
                hint="take the model's file in I2_S",
            )


def _announce(out: Any, weight: Weight, kind: str) -> None:
    if kind == "I2_S":
        from .bitnet import TAIL

        out.foreign_tensor(weight.name, I2_S, weight.shape, math.prod(weight.shape) // 4 + TAIL)
        return
    try:
        out.tensor(weight.name, kind, weight.shape)
    except ValueError as exc:
        raise ModelFileError(f"it cannot be repacked: {exc}", hint="take another file") from None


def _fields(model: Checkpoint, out: Any, kind: str) -> None:
    metadata: Any = model.config
    skipped = ("general.architecture", "general.alignment", "general.file_type")
    for key in metadata:
        if key in skipped or key.startswith("split."):
            continue
        entry = metadata.raw(key)
        at = 8 + struct.unpack_from("<Q", entry)[0]
        out.raw_field(key, struct.unpack_from("<I", entry, at)[0], entry[at + 4 :])
    out.field("general.file_type", FILE_TYPES[kind])
