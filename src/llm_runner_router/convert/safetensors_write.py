"""Writes a safetensors file: the header first, then the tensors in its order, as they come.

Knows: the layout (https://github.com/huggingface/safetensors, README) and its names of types. Does
not know: what the tensors mean. The file appears whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

    from llm_runner_router.models.checkpoint import Weight

WIDTHS: Final = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes per number of each type that is written."""
_ALIGN: Final = 8


class SafetensorsWriter:
    """One file being written. Leaving the `with` block without `finish()` removes it.

    Args:
        path: the file that will be there after `finish()`.
        tensors: `(name, type, shape)` in the order in which their data will come.
        metadata: strings to keep in the header.

    Raises:
        ValueError: an unknown type, or data that is not as long as was announced.
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        tensors: Iterable[tuple[str, str, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        # transformers refuses a file that does not name the library it was made for.
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        end = 0
        for name, dtype, shape in tensors:
            if dtype not in WIDTHS:
                raise ValueError(f"safetensors has no type `{dtype}`")
            size = WIDTHS[dtype]
            for length in shape:
                size *= length
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGN)
        self._left = end
        self._done = False
        self._file = self._part.open("xb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def data(self, buffer: ReadableBuffer | NDArray[Any]) -> None:
        """The next bytes."""
        piece = memoryview(cast("ReadableBuffer", buffer)).cast("B")
        self._left -= piece.nbytes
        if self._left < 0:
            raise ValueError("more data than the header announced")
        self._file.write(piece)

    def finish(self) -> Path:
        """Put the whole file in its place; the path."""
        if self._left:
            raise ValueError(f"{self._left} bytes are missing")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self._path)
        self._done = True
        return self._path

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._done:
            self._file.close()
            self._part.unlink(missing_ok=True)


def announced(weights: Iterable[Weight]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """`(name, type, shape)` of weights that are copied as they are."""
    for weight in weights:
        yield weight.name, weight.dtype, weight.shape
