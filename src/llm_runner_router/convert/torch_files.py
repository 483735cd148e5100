"""Safetensors to PyTorch's files and back. Nothing of PyTorch is needed or run.

Knows: the zip that `torch.save` writes (`caffe2/serialize/inline_container.h`, format version 3)
and the few pickle opcodes in it. Does not know: architectures; every tensor stays what it is.
Pickled files are read by `models/formats/pytorch.py`, which runs none of what they say.

    <archive>/data.pkl      a dictionary of tensors, each with the number of its storage
    <archive>/byteorder     `little`
    <archive>/data/<n>      the bytes of a storage
    <archive>/version       `3`
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from llm_runner_router.errors import Unsupported
from llm_runner_router.models.checkpoint import Checkpoint, Weight
from llm_runner_router.plugins import load

from . import companions
from .base import Options, Tick, converts
from .safetensors_write import WIDTHS, SafetensorsWriter, announced

ARCHIVE: Final = "pytorch_model"
STORAGES: Final = {
    "F64": "DoubleStorage", "F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage",
    "I64": "LongStorage", "I32": "IntStorage", "I16": "ShortStorage", "I8": "CharStorage",
    "U8": "ByteStorage", "BOOL": "BoolStorage",
}  # fmt: skip
CHUNK: Final = 16 * 1024 * 1024
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The same weights give the same file, byte for byte."""


@converts("pytorch", "safetensors", speed=300e6)
def to_safetensors(source: Path, target: Path, options: Options, tick: Tick) -> None:
    """A folder with PyTorch's weights as the folder `target` with safetensors.

    Raises:
        ModelFileError: the source cannot be used.
        Unsupported: a tensor has a type that safetensors lacks.
        Cancelled: `tick` raised it.
    """
    with load("models.formats", "pytorch").open_checkpoint(source) as checkpoint:
        write_safetensors(checkpoint, target, tick)
    companions.copy(source, target)


@converts("safetensors", "pytorch", speed=200e6)
def to_pytorch(source: Path, target: Path, options: Options, tick: Tick) -> None:
    """A folder with safetensors as the folder `target` with `pytorch_model.bin`.

    Raises:
        ModelFileError, Unsupported, Cancelled: as `to_safetensors`.
    """
    with load("models.formats", "safetensors").open_checkpoint(source) as checkpoint:
        _check(checkpoint.weights.values(), STORAGES)
        companions.copy(source, target)
        _write_archive(checkpoint, target / "pytorch_model.bin", tick)


def write_safetensors(checkpoint: Checkpoint, target: Path, tick: Tick) -> None:
    """All weights of `checkpoint`, as they are, in `target/model.safetensors`.

    Raises:
        Unsupported, Cancelled: as `to_safetensors`.
    """
    _check(checkpoint.weights.values(), WIDTHS)
    target.mkdir(parents=True, exist_ok=True)
    path = target / "model.safetensors"
    with SafetensorsWriter(path, announced(checkpoint.weights.values())) as writer:
        for piece in _pieces(checkpoint, checkpoint.weights.values(), tick):
            writer.data(piece)
        writer.finish()


def _check(weights: Iterable[Weight], known: Iterable[str]) -> None:
    for weight in weights:
        if weight.dtype not in known:
            raise Unsupported(
                f"the tensor `{weight.name}` has the type `{weight.dtype}`, which the target lacks",
                hint=f"known: {', '.join(known)}",
            )


def _pieces(checkpoint: Checkpoint, weights: Iterable[Weight], tick: Tick) -> Iterator[memoryview]:
    total = sum(weight.bytes for weight in checkpoint.weights.values())
    done = 0
    for weight in weights:
        data = checkpoint.read(weight.name)
        tick(done, total, weight.name)
        for start in range(0, weight.bytes, CHUNK):
            piece = data[start : start + CHUNK]
            yield piece
            done += len(piece)
            tick(done, total, weight.name)


# ---------------------------------------------------------------- the zip


def _write_archive(checkpoint: Checkpoint, path: Path, tick: Tick) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    weights = list(checkpoint.weights.values())
    total = sum(weight.bytes for weight in weights)
    done = 0
    try:
        with zipfile.ZipFile(part, "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
            _entry(archive, "data.pkl", pickled(weights))
            _entry(archive, "byteorder", b"little")
            for number, weight in enumerate(weights):
                tick(done, total, weight.name)
                _entry(archive, f"data/{number}", checkpoint.read(weight.name))
                done += weight.bytes
            _entry(archive, "version", b"3\n")
        tick(total, total, "")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _entry(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(f"{ARCHIVE}/{name}", _EPOCH)
    with archive.open(info, "w", force_zip64=len(data) > 0x7FFF_0000) as entry:
        for start in range(0, len(data), CHUNK):
            entry.write(data[start : start + CHUNK])


# ---------------------------------------------------------------- the pickle


def pickled(weights: Iterable[Weight]) -> bytes:
    """The program that makes the dictionary: only what `torch.load(weights_only=True)` allows.

    Each tensor is `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())` with the
    storage told as `("storage", type, number, "cpu", length)`.
    """
    out = [b"\x80\x02}("]  # PROTO 2, EMPTY_DICT, MARK
    for number, weight in enumerate(weights):
        strides, step = [], 1
        for length in reversed(weight.shape):
            strides.append(step)
            step *= max(1, length)
        count = weight.bytes // WIDTHS[weight.dtype]
        storage = STORAGES[weight.dtype].encode()
        out += [
            _text(weight.name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            _text("storage"),
            b"ctorch\n" + storage + b"\n",
            _text(str(number)),
            _text("cpu"),
            _integer(count),
            b"tQ",  # TUPLE, BINPERSID
            _integer(0),
            b"(" + b"".join(map(_integer, weight.shape)) + b"t",
            b"(" + b"".join(map(_integer, reversed(strides))) + b"t",
            b"\x89",  # NEWFALSE: no gradient
            b"ccollections\nOrderedDict\n)R",
            b"tR",  # TUPLE, REDUCE
        ]
    out.append(b"u.")  # SETITEMS, STOP
    return b"".join(out)


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw
