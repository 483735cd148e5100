"""The header of a GGUF file: read strictly, with every size bounded by the file itself.

Knows: the layout of GGUF 2 and 3. Does not know: what the metadata mean (`gguf.py`). Nothing is
loaded: the file is mapped and only its header is touched; long arrays (the vocabulary) are stepped
over, and read later if someone asks.

Files come from strangers. Native loaders have had out-of-bounds reads on headers like those refused
here, so this runs in the parent before any native code sees the file.

    magic "GGUF" · version u32 · tensors u64 · pairs u64
    pairs:   key string · type u32 · value            string = length u64 + bytes
    tensors: name string · dims u32 · ne u64×dims · type u32 · offset u64
    padding to `general.alignment` · data (offsets count from here)
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ._files import Bad
from .gguf_types import BITNET, FORKS, KINDS

MAGIC: Final = b"GGUF"
MAX_STRING: Final = 16 * 1024 * 1024
MAX_PAIRS: Final = 65_536
MAX_TENSORS: Final = 262_144
MAX_STRINGS: Final = 1_500_000
"""Strings of all arrays together; the largest vocabularies have 0.3 million tokens, 0.5 of merges.
A sparse file costs its maker nothing, so its size alone is no bound on what reading it may cost."""
MAX_KEPT_BYTES: Final = 64 * 1024 * 1024
KEPT_NUMBER: Final = 40
"""Bytes of a number and its place in a tuple, in CPython."""
MAX_ALIGNMENT: Final = 1024 * 1024
MAX_DIMS: Final = 4
MAX_KEPT: Final = 4096
"""Arrays of numbers up to this length are kept; longer ones are only measured."""

STRING, ARRAY = 8, 9
SCALARS: Final[dict[int, str]] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
"""Codes of `struct` for the types of numbers."""

Value = str | int | float | bool | tuple[int | float | bool, ...]


class Skipped(Struct, frozen=True):
    """An array that was stepped over: the type of its elements, how many, and where they begin."""

    type: int
    length: int
    start: int = 0


class Tensor(Struct, frozen=True):
    """One tensor: its shape, and where it lies counted from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    bytes: int


def bitnet(architecture: object, kind: int) -> bool:
    """Whether a tensor type is one of bitnet.cpp's, in a model of that architecture."""
    return kind in BITNET and (kind not in KINDS or str(architecture).startswith("bitnet"))


class Header(Struct, frozen=True):
    """All of a header."""

    version: int
    fields: dict[str, Value | Skipped]
    tensors: tuple[Tensor, ...]
    data: int
    """Where the tensors' data begins, in bytes from the start of the file."""
    spans: dict[str, tuple[int, int]] = {}
    """Where each metadata entry lies, its key included: first byte, byte after the last."""


def open_header(path: Path) -> tuple[Header, int]:
    """The header of `path`, and the size of the file in bytes.

    Raises:
        Bad: it is not sound.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 24:
            raise Bad(f"it has {size} bytes, too few for a GGUF header")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, size).header(), size


def header_of(start: bytes, size: int) -> Header:
    """The header in the first bytes of a file of `size` bytes.

    Raises:
        Bad: it is not sound, or goes on behind `start`.
    """
    return _Reader(start, size).header()


class _Reader:
    """A cursor over the mapped file; every step is checked against the end."""

    def __init__(self, data: mmap.mmap | bytes, size: int) -> None:
        self._data = data
        self._size = size
        self._at = 0
        self._strings = 0
        self._kept = 0
        self._spans: dict[str, tuple[int, int]] = {}

    def header(self) -> Header:
        magic = self._data[:4]
        if magic != MAGIC:
            raise Bad(f"it begins with {magic!r}, not with {MAGIC!r}: it is not a GGUF file")
        self._at = 4
        version = self._number("I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = "a big-endian file" if swapped in (2, 3) else f"GGUF version {version}"
            raise Bad(f"{what} is not supported, only versions 2 and 3 in little-endian order")
        tensors, pairs = self._number("Q"), self._number("Q")
        self._room(pairs, 13, "metadata entries", MAX_PAIRS)
        fields = dict(self._pairs(pairs))
        self._room(tensors, 24, "tensors", MAX_TENSORS)
        alignment = fields.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or not 8 <= alignment <= MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise Bad(
                f"`general.alignment` is {alignment!r}, not a power of two of 8 bytes to 1 MiB"
            )
        architecture = fields.get("general.architecture")
        found = [self._tensor(alignment, architecture) for _ in range(tensors)]
        start = -(-self._at // alignment) * alignment
        found = _measured(found, architecture, max(0, self._size - start))
        _check_places(found, start, self._size)
        return Header(version, fields, tuple(found), start, self._spans)

    def _pairs(self, count: int) -> Iterator[tuple[str, Value | Skipped]]:
        for _ in range(count):
            start = self._at
            key = self._string("a metadata key")
            if key in self._spans:
                raise Bad(f"the metadata key {key[:80]!r} stands there twice")
            value = self._value(key, self._number("I"))
            self._spans[key] = (start, self._at)
            yield key, value

    def _value(self, key: str, kind: int) -> Value | Skipped:
        if kind == STRING:
            return self._string(f"`{key}`")
        if kind == ARRAY:
            return self._array(key)
        if kind not in SCALARS:
            raise Bad(f"`{key}` has the unknown type {kind}")
        return self._scalar(kind)

    def _array(self, key: str) -> Value | Skipped:
        kind, length = self._number("I"), self._number("Q")
        if kind == STRING:
            self._room(length, 8, f"strings in `{key}`")
            self._strings += length
            self._room(self._strings, 0, "strings in arrays", MAX_STRINGS)
            start = self._at
            self._skip_strings(length, key)
            return Skipped(kind, length, start)
        if kind not in SCALARS:
            raise Bad(f"`{key}` is an array of the type {kind}, which no array may hold")
        width = struct.calcsize("<" + SCALARS[kind])
        self._room(length, width, f"numbers in `{key}`")
        self._keep(min(length, MAX_KEPT) * KEPT_NUMBER)
        if length > MAX_KEPT:
            start, self._at = self._at, self._at + length * width
            return Skipped(kind, length, start)
        return tuple(self._scalar(kind) for _ in range(length))

    def _tensor(self, alignment: int, architecture: object) -> Tensor:
        name = self._string("a tensor's name")
        dims = self._number("I")
        if not 1 <= dims <= MAX_DIMS:
            raise Bad(f"the tensor {name[:80]!r} has {dims} dimensions, not 1 to {MAX_DIMS}")
        shape = tuple(self._number("Q") for _ in range(dims))
        kind, offset = self._number("I"), self._number("Q")
        count = 1
        for length in shape:
            count *= length
        if offset % alignment:
            raise Bad(f"the tensor {name[:80]!r} is not aligned to {alignment} bytes")
        if bitnet(architecture, kind):
            # The least that any of these types takes: 1.58 bits per weight, rounded down.
            if count == 0 or count // 6 > self._size:
                raise Bad(f"the tensor {name[:80]!r} of shape {shape} is larger than the file")
            return Tensor(name, shape, kind, offset, 0)
        if kind not in KINDS:
            known = f" ({FORKS[kind]})" if kind in FORKS else ""
            raise Bad(f"the tensor {name[:80]!r} has type {kind}{known}, which this engine lacks")
        _, block, width = KINDS[kind]
        # Python's integers do not wrap, so a product beyond the file is simply too large.
        if count == 0 or count // block * width > self._size:
            raise Bad(f"the tensor {name[:80]!r} of shape {shape} is larger than the file")
        if shape[0] % block:
            raise Bad(f"the rows of {name[:80]!r} ({shape[0]}) are no multiple of {block}")
        return Tensor(name, shape, kind, offset, count // block * width)

    # ------------------------------------------------------------ steps

    def _keep(self, size: int) -> None:
        """Count what stays in memory, before it does."""
        self._kept += size
        if self._kept > MAX_KEPT_BYTES:
            raise Bad(f"its metadata takes more than {MAX_KEPT_BYTES} bytes")

    def _room(self, count: int, least: int, what: str, most: int | None = None) -> None:
        """Refuse a count that is absurd or cannot fit into what is left, before looping over it."""
        if count * least > self._size - self._at:
            raise Bad(f"it claims {count} {what}, more than the file can hold")
        if most is not None and count > most:
            raise Bad(f"it claims {count} {what}, more than {most}")

    def _number(self, code: str) -> int:
        value = self._unpack(code)
        assert isinstance(value, int)
        return value

    def _scalar(self, kind: int) -> int | float | bool:
        return self._unpack(SCALARS[kind])

    def _unpack(self, code: str) -> int | float | bool:
        try:
            value: int | float | bool = struct.unpack_from("<" + code, self._data, self._at)[0]
        except struct.error:
            raise Bad(f"it ends inside the header, at byte {self._size}") from None
        self._at += struct.calcsize("<" + code)
        return value

    def _skip_string(self, what: str) -> tuple[int, int]:
        length = self._number("Q")
        if length > MAX_STRING:
            raise Bad(f"a string in {what[:80]} has {length} bytes, more than {MAX_STRING}")
        start, end = self._at, self._at + length
        if end > self._size:
            raise Bad(f"it ends inside the header, at byte {self._size}")
        self._at = end
        return start, end

    def _skip_strings(self, count: int, what: str) -> None:
        """As `_skip_string` so often; a vocabulary has half a million, so this loop is tight."""
        data, at, size, number = self._data, self._at, self._size, int.from_bytes
        for _ in range(count):
            length = number(data[at : at + 8], "little")
            if length > MAX_STRING or at + 8 > size:
                break
            at += 8 + length
        else:
            if at <= size:
                self._at = at
                return
        self._at = min(at, size)
        self._skip_string(what)  # says what is wrong
        raise Bad(f"it ends inside the header, at byte {size}")

    def _string(self, what: str) -> str:
        start, end = self._skip_string(what)
        self._keep(end - start)
        return self._data[start:end].decode("utf-8", "replace")


def _measured(tensors: list[Tensor], architecture: object, size: int) -> list[Tensor]:
    """Tensors of bitnet.cpp with their bytes: up to where the next one begins, or to the end."""
    if not any(bitnet(architecture, tensor.type) for tensor in tensors):
        return tensors
    starts = sorted({tensor.offset for tensor in tensors} | {size})
    after = dict(pairwise(starts))
    return [
        replace(t, bytes=max(0, after.get(t.offset, t.offset) - t.offset))
        if bitnet(architecture, t.type)
        else t
        for t in tensors
    ]


def _check_places(tensors: list[Tensor], start: int, size: int) -> None:
    """No tensor outside the file, none over another, no name twice."""
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise Bad("two of its tensors have the same name")
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda t: t.offset):
        if tensor.offset < end:
            raise Bad(f"the tensors {before[:80]!r} and {tensor.name[:80]!r} overlap")
        end, before = tensor.offset + tensor.bytes, tensor.name
        if start + end > size:
            raise Bad(
                f"it ends at byte {size}, but the tensor {tensor.name[:80]!r} reaches to"
                f" {start + end}: it is cut short"
            )
