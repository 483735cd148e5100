"""The metadata of a GGUF file as a mapping; long arrays are read from the file when asked for.

Knows: where each entry lies. Does not know: what the entries mean.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ._files import Bad, naming
from ._gguf_header import SCALARS, STRING, Header, Skipped


class Metadata(Mapping[str, Any]):
    """Every entry by key: strings, numbers, booleans, and tuples for arrays.

    The strings of an array that are not UTF-8 come with `surrogateescape`, so that encoding them
    the same way gives back their bytes. Long arrays are read at each access and not kept: the
    tokens and merges of a large vocabulary take 50 MB as Python strings.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._path = path
        self._header = header

    def __getitem__(self, key: str) -> Any:
        value = self._header.fields[key]
        return self._array(value) if isinstance(value, Skipped) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._header.fields)

    def __len__(self) -> int:
        return len(self._header.fields)

    def __contains__(self, key: object) -> bool:
        return key in self._header.fields  # without reading the array, as Mapping's own would

    def length(self, key: str) -> int:
        """How many elements the array `key` has, without reading it; zero if it is none."""
        value = self._header.fields.get(key)
        if isinstance(value, Skipped):
            return value.length
        return len(value) if isinstance(value, tuple) else 0

    def raw(self, key: str) -> bytes:
        """The whole entry as it lies in the file: key, type and value. For copying it as it is.

        Raises:
            KeyError: there is no such entry.
            ModelFileError: the file cannot be read any more.
        """
        start, end = self._header.spans[key]
        with naming(self._path), self._path.open("rb") as file:
            file.seek(start)
            content = file.read(end - start)
            if len(content) != end - start:
                raise Bad("it got shorter while it was open")
            return content

    def _array(self, array: Skipped) -> tuple[Any, ...]:
        with (
            naming(self._path),
            self._path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            try:
                if array.type == STRING:
                    return tuple(_strings(data, array))
                code = f"<{array.length}{SCALARS[array.type]}"
                return struct.unpack_from(code, data, array.start)
            except (struct.error, IndexError):
                raise Bad("it got shorter while it was open") from None


def _strings(data: mmap.mmap, array: Skipped) -> Iterator[str]:
    at, number = array.start, int.from_bytes
    for _ in range(array.length):
        end = at + 8 + number(data[at : at + 8], "little")
        if end > len(data):
            raise IndexError(end)
        yield data[at + 8 : end].decode("utf-8", "surrogateescape")
        at = end
