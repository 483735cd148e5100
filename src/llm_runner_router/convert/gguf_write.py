"""Writes a GGUF file (version 3): fields, then tensors' names and shapes, then their data.

Knows: the container (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and the sizes of
the tensor types. Does not know: what a field or a tensor means. Data goes to disk as it comes, in
any order and in pieces, so memory does not grow with the file; a reader sees the whole file or
none, because it is written beside its place and renamed.

    with GGUFWriter(path, "llama") as out:
        out.field("llama.block_count", 2)
        out.tensor("token_embd.weight", "F16", (1024, 128))
        out.begin()
        out.data("token_embd.weight", memoryview(weights))
        out.finish()
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, cast

from llm_runner_router.models.formats.gguf_types import KINDS

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

FieldKind = Literal[
    "U8", "I8", "U16", "I16", "U32", "I32", "F32", "BOOL", "STRING", "U64", "I64", "F64"
]  # fmt: skip
Scalar = str | bytes | int | float | bool

_ARRAY = 9
_CODES: Final[dict[str, tuple[int, str]]] = {
    "U8": (0, "B"), "I8": (1, "b"), "U16": (2, "H"), "I16": (3, "h"), "U32": (4, "I"),
    "I32": (5, "i"), "F32": (6, "f"), "BOOL": (7, "?"), "STRING": (8, ""), "U64": (10, "Q"),
    "I64": (11, "q"), "F64": (12, "d"),
}  # fmt: skip
_TYPES: Final = {kind.name: number for number, kind in KINDS.items()}
_MAX_NAME: Final = 63
"""Bytes of a tensor's name; ggml keeps 64 with the zero at the end."""
_MAX_DIMS: Final = 4


class _Slot:
    """Where a tensor lies in the data, and how much of it was written."""

    __slots__ = ("kind", "offset", "shape", "size", "written")

    def __init__(self, kind: int, shape: tuple[int, ...], offset: int, size: int) -> None:
        self.kind = kind
        self.shape = shape
        self.offset = offset
        self.size = size
        self.written = 0


class GGUFWriter:
    """One file being written. Leaving the `with` block without `finish()` removes it.

    Args:
        path: the file that will be there after `finish()`; it replaces an older one.
        architecture: `general.architecture`; empty for a file that is no model.
        alignment: of every tensor's start, in bytes; a power of two from 8 on.

    Raises:
        ValueError: from every method, for what a sound file cannot hold or for calls out of order;
            both are mistakes of the caller, not of a file.
    """

    def __init__(self, path: Path, architecture: str, *, alignment: int = 32) -> None:
        if alignment < 8 or alignment & (alignment - 1):
            raise ValueError(f"alignment must be a power of two from 8 on: {alignment}")
        self.path = path
        self.alignment = alignment
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._fields: dict[str, bytes] = {}
        self._slots: dict[str, _Slot] = {}
        self._bytes = 0
        self._data = 0
        self._file: BinaryIO | None = None
        self._done = False
        if architecture:
            self.field("general.architecture", architecture)
        if alignment != 32:
            self.field("general.alignment", alignment)

    # ------------------------------------------------------------ before `begin`

    def field(
        self, key: str, value: Scalar | Sequence[Scalar], kind: FieldKind | None = None
    ) -> None:
        """Add a metadata entry.

        Without `kind`: text STRING, truth values BOOL, floats F32, integers U32 (I32 when negative,
        64 bits when they need them); in a list integers are I32, as readers expect of token types.
        `kind` names the type of a list's elements.
        """
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            kind = kind or _kind([value], listed=False)
            self.raw_field(key, _CODES[kind][0], _pack(key, kind, [value]))
            return
        values = list(value)
        if kind is None and not values:
            raise ValueError(f"the list `{key}` is empty: say its kind")
        kind = kind or _kind(values, listed=True)
        head = struct.pack("<IQ", _CODES[kind][0], len(values))
        self.raw_field(key, _ARRAY, head + _pack(key, kind, values))

    def raw_field(self, key: str, kind: int, payload: bytes) -> None:
        """Add an entry as it stood in another file: the number of its type and its bytes."""
        if self._file is not None:
            raise ValueError("fields come before `begin()`")
        if key in self._fields:
            raise ValueError(f"the field `{key}` is there already")
        self._fields[key] = struct.pack("<I", kind) + payload

    def tensor(self, name: str, type_name: str, shape: Sequence[int]) -> None:
        """Announce a tensor; `shape` is outermost first, as numpy has it, in weights."""
        if type_name not in _TYPES:
            raise ValueError(f"the tensor `{name}` has the unknown type `{type_name}`")
        number = _TYPES[type_name]
        _, block, width = KINDS[number]
        shape = tuple(int(n) for n in shape)
        if not 1 <= len(shape) <= _MAX_DIMS or min(shape) < 1:
            raise ValueError(f"the tensor `{name}` has the shape {shape}; 1 to 4 sizes from 1 on")
        if shape[-1] % block:
            raise ValueError(
                f"the rows of `{name}` have {shape[-1]} weights; {type_name} needs a multiple of"
                f" {block}"
            )
        self.foreign_tensor(name, number, shape, _count(shape) // block * width)

    def foreign_tensor(self, name: str, number: int, shape: Sequence[int], size: int) -> None:
        """Announce a tensor of a type that only other programs know: its number, its bytes."""
        if self._file is not None:
            raise ValueError("tensors are announced before `begin()`")
        if name in self._slots:
            raise ValueError(f"the tensor `{name}` is there already")
        if len(name.encode()) > _MAX_NAME:
            raise ValueError(f"the tensor's name `{name}` has more than {_MAX_NAME} bytes")
        self._slots[name] = _Slot(number, tuple(shape), self._bytes, size)
        self._bytes += size + -size % self.alignment

    # ------------------------------------------------------------ the file

    def begin(self) -> None:
        """Write the header. The file has its full size from now on; what is not written is zero.

        Raises:
            OSError: the folder cannot be written or the disk is full.
        """
        if self._file is not None:
            raise ValueError("`begin()` was called already")
        head = struct.pack("<4sIQQ", b"GGUF", 3, len(self._slots), len(self._fields))
        parts = [head]
        parts += [_string(key) + value for key, value in self._fields.items()]
        for name, slot in self._slots.items():
            dims = struct.pack(f"<I{len(slot.shape)}Q", len(slot.shape), *reversed(slot.shape))
            parts.append(_string(name) + dims + struct.pack("<IQ", slot.kind, slot.offset))
        header = b"".join(parts)
        self._data = len(header) + -len(header) % self.alignment
        self._file = self._part.open("xb")
        try:
            self._file.truncate(self._data + self._bytes)
            self._file.write(header)
        except OSError:
            self.abort()
            raise

    def data(self, name: str, buffer: ReadableBuffer | NDArray[Any]) -> None:
        """Write the next bytes of a tensor: all of them, or a piece at a time.

        `buffer` is bytes or a contiguous array in the tensor's own layout.

        Raises:
            OSError: the disk is full.
        """
        file, slot = self._open(), self._slots.get(name)
        if slot is None:
            raise ValueError(f"the tensor `{name}` was not announced")
        piece = memoryview(cast("ReadableBuffer", buffer)).cast("B")
        if slot.written + piece.nbytes > slot.size:
            raise ValueError(f"the tensor `{name}` has {slot.size} bytes and was given more")
        file.seek(self._data + slot.offset + slot.written)
        file.write(piece)
        slot.written += piece.nbytes

    def finish(self) -> Path:
        """Put the whole file in its place; the path.

        Raises:
            OSError: the disk is full, or the place cannot be written.
        """
        file = self._open()
        for name, slot in self._slots.items():
            if slot.written != slot.size:
                raise ValueError(f"the tensor `{name}` has {slot.written} of {slot.size} bytes")
        file.flush()
        os.fsync(file.fileno())
        file.close()
        os.replace(self._part, self.path)
        self._done = True
        return self.path

    def abort(self) -> None:
        """Remove what was written. After `finish()` it does nothing."""
        if self._file is not None and not self._done:
            self._file.close()
            self._part.unlink(missing_ok=True)
            self._done = True

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def _open(self) -> BinaryIO:
        if self._file is None or self._done:
            raise ValueError("data comes between `begin()` and `finish()`")
        return self._file


def _count(shape: Sequence[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _kind(values: Sequence[object], *, listed: bool) -> FieldKind:
    if all(isinstance(v, (str, bytes)) for v in values):
        return "STRING"
    if all(isinstance(v, bool) for v in values):
        return "BOOL"
    if not all(isinstance(v, Real) for v in values):
        raise ValueError(f"no GGUF type holds values such as {values[:2]!r}")
    if not all(isinstance(v, Integral) for v in values):
        return "F32"
    numbers = [int(v) for v in values if isinstance(v, Integral)]
    low, high = min(numbers), max(numbers)
    if not listed and low >= 0:
        return "U32" if high < 2**32 else "U64"
    if -(2**31) <= low and high < 2**31:
        return "I32"
    return "I64" if high < 2**63 else "U64"


def _pack(key: str, kind: FieldKind, values: Sequence[object]) -> bytes:
    if kind == "STRING":
        return b"".join(_string(v) for v in values if isinstance(v, (str, bytes)))
    try:
        return struct.pack(f"<{len(values)}{_CODES[kind][1]}", *values)
    except (struct.error, OverflowError) as exc:
        raise ValueError(f"`{key}` does not fit {kind}: {exc}") from None


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw
