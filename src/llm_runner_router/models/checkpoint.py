"""The one view converters have of a model's weights, whatever file they come from.

Knows: names, types, shapes, raw bytes. Does not know: what the numbers mean, any inference library,
numpy. A format that can give weights offers `open_checkpoint(path) -> Checkpoint` in its module.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from msgspec import Struct

from .info import ModelInfo


class Weight(Struct, frozen=True):
    """One tensor. `shape` counts outermost first, as numpy and PyTorch do."""

    name: str
    dtype: str
    """`F64 F32 F16 BF16 F8_E4M3 F8_E5M2 I64 I32 I16 I8 U8 BOOL` (rarely another of safetensors'
    types: `U64 U32 U16 C64 F8_E8M0 F6_E2M3 F6_E3M2 F4`), or the name of a GGUF type."""
    shape: tuple[int, ...]
    bytes: int


class Checkpoint(Protocol):
    """An opened model: facts and mapped weights. A context manager; leaving it unmaps the files."""

    @property
    def path(self) -> Path:
        """The file or folder it was opened from."""
        ...

    @property
    def info(self) -> ModelInfo:
        """What `describe` says of it."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of `config.json`; for GGUF its metadata; empty where there is none."""
        ...

    @property
    def weights(self) -> Mapping[str, Weight]:
        """Every tensor by name, in the order of the file."""
        ...

    def read(self, name: str) -> memoryview:
        """The bytes of a tensor: little-endian, contiguous, read-only, valid until `close`.

        Raises:
            KeyError: there is no such tensor.
        """
        ...

    def close(self) -> None:
        """Unmap the files."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
