"""Importance matrices: how much an error in each column of a matrix weighs in what it gives.

Knows: that the weight is the mean square of what the column is multiplied with, over a text; both
file formats of llama.cpp (GGUF, and the older binary one). Does not know: how the model is run
(`native.py`, a process of its own), how quantising uses the weights (ggml's kernels).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct

from llm_runner_router.errors import ModelFileError, RunnerError
from llm_runner_router.models.formats import gguf
from llm_runner_router.models.formats.gguf_types import KINDS

from .gguf_write import GGUFWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .base import Tick

_SQUARES, _COUNTS = ".in_sum2", ".counts"
_MOST_ENTRIES: Final = 1 << 20
_MOST_NAME: Final = 1024


class Entry(Struct, frozen=True):
    """What was seen of one matrix."""

    squares: Any
    """Sums of squares, F32 [experts, cols]."""
    counts: Any
    """How many rows each expert saw, integers [experts]."""


class Imatrix(Struct, frozen=True):
    """The entries of a model by the names of its matrices."""

    entries: dict[str, Entry]
    datasets: tuple[str, ...] = ()
    """Names of the texts."""
    chunks: int = 0
    chunk: int = 0
    """Tokens per chunk."""

    @property
    def weights(self) -> Mapping[str, NDArray[np.float32]]:
        """As `quantize` takes them: mean squares; ones for an expert that saw nothing."""
        found = {}
        for name, entry in self.entries.items():
            counts = np.asarray(entry.counts, np.float32)[:, None]
            mean = np.ones_like(entry.squares)
            np.divide(entry.squares, counts, out=mean, where=counts > 0)
            found[name] = mean
        return found


def compute(
    model: Path,
    text: str,
    target: Path,
    *,
    context: int = 512,
    chunks: int = 0,
    threads: int = 1,
    tick: Tick | None = None,
    deadline: float = 24 * 3600,
) -> Imatrix:
    """Run `model` over `text` in a process of its own and write the matrix to `target`.

    Args:
        model: a GGUF file that the engine can run, best of full precision.
        text: what the model will be used for, some tens of contexts or more.
        target: where the matrix will be, as a GGUF file.
        context: tokens that are read together.
        chunks: at most so many contexts; 0 for the whole text.
        threads: of the engine.
        tick: called with chunks done, chunks in all.
        deadline: seconds after which it is given up.

    Raises:
        ModelFileError: the engine does not load the model.
        EngineError: the engine's library cannot be used, or failed.
    """
    from .perplexity import ask

    ask(
        model, text, context=context, chunks=chunks, threads=threads, imatrix=target, tick=tick,
        deadline=deadline,
    )  # fmt: skip
    return read(target)


def write(path: Path, matrix: Imatrix) -> None:
    """Write the GGUF form, which llama.cpp reads too."""
    with GGUFWriter(path, "") as out:
        out.field("general.type", "imatrix")
        out.field("imatrix.datasets", list(matrix.datasets), "STRING")
        out.field("imatrix.chunk_count", matrix.chunks, "U32")
        out.field("imatrix.chunk_size", matrix.chunk, "U32")
        ordered = sorted(matrix.entries.items())
        for name, entry in ordered:
            out.tensor(name + _SQUARES, "F32", entry.squares.shape)
            out.tensor(name + _COUNTS, "F32", (len(entry.counts), 1))
        out.begin()
        for name, entry in ordered:
            out.data(name + _SQUARES, np.ascontiguousarray(entry.squares, np.float32))
            out.data(name + _COUNTS, np.asarray(entry.counts, np.float32))
        out.finish()


def read(path: Path) -> Imatrix:
    """Read either form.

    Raises:
        ModelFileError: it is missing or no sound importance matrix.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        found = _gguf(path) if magic == b"GGUF" else _binary(path)
    except RunnerError:
        raise
    except OSError as exc:
        raise _bad(path, exc.strerror or "it cannot be read") from exc
    except (ValueError, struct.error) as exc:
        raise _bad(path, str(exc)) from None
    for name, entry in found.entries.items():
        if not np.isfinite(entry.squares).all() or (entry.squares < 0).any():
            raise _bad(path, f"`{name}` has numbers that are no sums of squares")
        if not np.isfinite(entry.counts).all():
            raise _bad(path, f"`{name}` has counts that are not finite")
    if not found.entries:
        raise _bad(path, "it has no entries")
    return found


def _gguf(path: Path) -> Imatrix:
    header = gguf.read_header(path)
    if header.fields.get("general.type") != "imatrix":
        raise ValueError("it is a GGUF file of another kind (`general.type` is not `imatrix`)")
    arrays: dict[str, NDArray[np.float32]] = {}
    with path.open("rb") as file:
        for tensor in header.tensors:
            if KINDS[tensor.type].name != "F32" or not tensor.name.endswith((_SQUARES, _COUNTS)):
                continue
            file.seek(header.data + tensor.offset)
            values = np.frombuffer(file.read(tensor.bytes), "<f4")
            arrays[tensor.name] = values.reshape(-1, tensor.shape[0]).astype(np.float32)
    entries = {}
    for name, squares in arrays.items():
        if not name.endswith(_SQUARES):
            continue
        own = name.removesuffix(_SQUARES)
        counts = arrays.get(own + _COUNTS)
        if counts is None or squares.size % counts.size:
            raise ValueError(f"`{own}` has no fitting counts")
        entries[own] = Entry(squares.reshape(counts.size, -1), counts.ravel())
    return Imatrix(
        entries,
        chunks=_number(header.fields.get("imatrix.chunk_count")),
        chunk=_number(header.fields.get("imatrix.chunk_size")),
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _binary(path: Path) -> Imatrix:
    """The older form: count, then name, calls and sums per matrix; the sums are means × calls."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        entries = dict(_entries(data))
    return Imatrix(entries)


def _entries(data: mmap.mmap) -> Iterator[tuple[str, Entry]]:
    (count,) = struct.unpack_from("<i", data, 0)
    if not 0 < count <= _MOST_ENTRIES:
        raise ValueError(f"it claims {count} entries")
    at = 4
    for _ in range(count):
        (length,) = struct.unpack_from("<i", data, at)
        if not 0 < length <= _MOST_NAME or at + 4 + length > len(data):
            raise ValueError(f"a name at byte {at} has {length} bytes")
        name = data[at + 4 : at + 4 + length].decode("utf-8", "replace")
        at += 4 + length
        calls, values = struct.unpack_from("<ii", data, at)
        at += 8
        if values < 1 or at + 4 * values > len(data):
            raise ValueError(f"`{name}` claims {values} numbers, more than the file holds")
        squares = np.frombuffer(data[at : at + 4 * values], "<f4").astype(np.float32)
        at += 4 * values
        yield name, Entry(squares.reshape(1, -1), np.array([max(calls, 1)]))


def _bad(path: Path, why: str) -> ModelFileError:
    return ModelFileError(
        f"the importance matrix `{path}` cannot be used: {why}",
        hint="make one: `llmrr quantize MODEL --calibrate TEXT`",
    )
