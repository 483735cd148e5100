"""Weights to blocks and back: ggml's own functions, out of the library inside the engine's wheel.

Knows: the C functions that `xllamacpp` exports from ggml, and how to be sure that they are those
this file was written for. Does not know: models, files, which type is good for which tensor. Only
`native.py`, which runs whole models, calls into that library too.

The library is loaded without importing the Python module. Its functions take plain pointers and
numbers, no structs; types are checked against our table by name, block and size, and one block is
quantised and compared, before anything else is called. ctypes releases the GIL during a call, so
rows are shared among threads. A wrong call can end the process: this runs in the command line or in
a conversion's own process, never in the gateway.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llm_runner_router.errors import EngineError
from llm_runner_router.models.formats.gguf_types import KINDS, Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGE: Final = "xllamacpp"
TRIED: Final = "2026.10.11549"
"""The version of the wheel that these calls were tried with."""
BLOCK_WEIGHTS: Final = 1 << 18
"""Weights a thread takes at a time: 1 MiB of F32, so that source and result stay in its cache, and
long enough that a call's 2 µs do not show."""

_NUMBERS: Final = {kind.name: number for number, kind in KINDS.items()}
_INTEGERS: Final = {"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64}
_NO_KERNEL: Final = frozenset({"Q8_1", "Q8_K", "F64", *_INTEGERS})
"""Types that no file stores weights in; ggml quantises to them only while it computes."""


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h, read only."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Library:
    """The functions, typed; `to_float` per type."""

    def __init__(self, found: ctypes.CDLL) -> None:
        self.quantize_chunk = found.ggml_quantize_chunk
        self.quantize_chunk.restype = ctypes.c_size_t
        self.quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_int64, ctypes.c_void_p,
        ]  # fmt: skip
        self.requires_imatrix = found.ggml_quantize_requires_imatrix
        self.requires_imatrix.argtypes = [ctypes.c_int]
        self.requires_imatrix.restype = ctypes.c_bool
        self.validate = found.ggml_validate_row_data
        self.validate.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        self.validate.restype = ctypes.c_bool
        self.traits = found.ggml_get_type_traits
        self.traits.argtypes = [ctypes.c_int]
        self.traits.restype = ctypes.POINTER(_Traits)
        self.to_float: dict[str, Callable[[int, int, int], None]] = {}


# ---------------------------------------------------------------- what callers use


def kind(type_name: str) -> Kind:
    """Block and size of a type.

    Raises:
        ValueError: there is no such type.
    """
    if type_name not in _NUMBERS:
        raise ValueError(f"unknown tensor type `{type_name}`")
    return KINDS[_NUMBERS[type_name]]


def row_bytes(type_name: str, cols: int) -> int:
    """Bytes of one row of `cols` weights.

    Raises:
        ValueError: unknown type, or the row is no whole number of blocks.
    """
    _, block, size = kind(type_name)
    if cols < 1 or cols % block:
        raise ValueError(f"a row of {cols} weights is no multiple of {block}, as {type_name} needs")
    return cols // block * size


def requires_imatrix(type_name: str) -> bool:
    """Whether the type cannot be made without an importance matrix."""
    kind(type_name)
    return bool(_library().requires_imatrix(_NUMBERS[type_name]))


def quantize(
    type_name: str,
    weights: NDArray[np.float32],
    imatrix: NDArray[np.float32] | None = None,
    *,
    threads: int = 1,
) -> NDArray[np.uint8]:
    """Rows of F32 as blocks of `type_name`.

    Args:
        type_name: for example `Q4_K`; F32, F16 and BF16 too.
        weights: [rows, cols], finite.
        imatrix: [cols], how much an error in each column weighs; None for all alike.
        threads: how many share the rows.

    Returns:
        [rows, bytes per row].

    Raises:
        ValueError: shapes that do not fit, a type nobody stores, or numbers that are not finite.
        EngineError: the engine's library is not what this was written for.
    """
    rows, cols = weights.shape
    result = np.empty((rows, row_bytes(type_name, cols)), np.uint8)
    weights = np.ascontiguousarray(weights, np.float32)
    job = functools.partial(quantize_into, type_name, imatrix=imatrix)

    def work(part: slice) -> None:
        job(weights[part], result[part])

    share(work, spans(rows, cols), threads)
    return result


def quantize_into(
    type_name: str,
    weights: NDArray[np.float32],
    result: NDArray[np.uint8],
    imatrix: NDArray[np.float32] | None = None,
) -> None:
    """As `quantize`, by the calling thread, into `result`; both arrays are contiguous.

    Raises:
        ValueError: as `quantize`.
        EngineError: as `quantize`.
    """
    rows, cols = weights.shape
    number, library = _NUMBERS[kind(type_name).name], _library()
    if type_name in _NO_KERNEL:
        raise ValueError(f"nothing is quantised to {type_name}")
    if result.shape != (rows, row_bytes(type_name, cols)):
        raise ValueError(f"the result has the shape {result.shape}, not that of {type_name}")
    if weights.dtype != np.float32 or result.dtype != np.uint8:
        raise ValueError("weights are F32 and the result is bytes")
    if not (weights.flags.c_contiguous and result.flags.c_contiguous):
        raise ValueError("weights and result must be contiguous")
    important = None
    if imatrix is not None:
        important = np.ascontiguousarray(imatrix, np.float32)
        if important.shape != (cols,):
            raise ValueError(f"the importance matrix has {important.shape}, the rows {cols}")
    elif library.requires_imatrix(number):
        raise ValueError(f"{type_name} cannot be made without an importance matrix")
    # NaN reaches table look-ups by `lrintf` inside ggml; only sums tell it apart cheaply.
    with np.errstate(all="ignore"):
        if not np.isfinite(weights.sum(dtype=np.float64)) and not np.isfinite(weights).all():
            raise ValueError("the weights hold numbers that are not finite")
    pointer = None if important is None else important.ctypes.data
    library.quantize_chunk(number, weights.ctypes.data, result.ctypes.data, 0, rows, cols, pointer)
    if not library.validate(number, result.ctypes.data, result.nbytes):
        raise ValueError(f"the weights do not fit {type_name}: a block's scale overflows")


def dequantize(
    type_name: str, blocks: Any, shape: Sequence[int], *, threads: int = 1
) -> NDArray[np.float32]:
    """Blocks of `type_name` as F32.

    Args:
        type_name: any type of `gguf_types.KINDS` that weights are stored in; integers too.
        blocks: bytes, or a contiguous array of them.
        shape: of the result, outermost first.
        threads: how many share the rows.

    Raises:
        ValueError: the bytes are not as many as the shape needs.
        EngineError: the engine's library is not what this was written for.
    """
    *outer, cols = (int(n) for n in shape)
    rows = int(np.prod(outer, dtype=np.int64)) if outer else 1
    flat = np.frombuffer(blocks, np.uint8)
    width = row_bytes(type_name, cols)
    if flat.nbytes != rows * width:
        raise ValueError(
            f"{type_name} of shape {tuple(shape)} takes {rows * width} bytes, not {flat.nbytes}"
        )
    flat = flat.reshape(rows, width)
    result = np.empty((rows, cols), np.float32)

    def work(part: slice) -> None:
        dequantize_into(type_name, flat[part], result[part])

    share(work, spans(rows, cols), threads)
    return result.reshape(tuple(shape))


def dequantize_into(type_name: str, blocks: NDArray[np.uint8], result: NDArray[np.float32]) -> None:
    """As `dequantize`, by the calling thread; both arrays are two-dimensional and contiguous.

    Raises:
        ValueError: as `dequantize`.
        EngineError: as `dequantize`.
    """
    rows, cols = result.shape
    if blocks.shape != (rows, row_bytes(type_name, cols)):
        raise ValueError(f"the blocks have the shape {blocks.shape}, not that of {type_name}")
    if not (blocks.flags.c_contiguous and result.flags.c_contiguous):
        raise ValueError("blocks and result must be contiguous")
    if type_name == "F32" or type_name == "F64" or type_name in _INTEGERS:
        plain = {"F32": np.float32, "F64": np.float64, **_INTEGERS}[type_name]
        result[...] = blocks.view(plain)
        return
    to_float = _library().to_float.get(type_name)
    if to_float is None:
        raise ValueError(f"the engine cannot read {type_name}")
    to_float(blocks.ctypes.data, result.ctypes.data, rows * cols)


def spans(rows: int, cols: int, weights: int = BLOCK_WEIGHTS) -> Iterator[slice]:
    """Slices of rows of about `weights` weights."""
    step = max(1, weights // max(cols, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def share(work: Callable[[slice], object], parts: Iterator[slice], threads: int) -> None:
    """Let `threads` threads do `work` on all parts; the first error is raised here."""
    if threads < 2:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="kernels") as pool:
        for _ in pool.map(work, parts):
            pass


# ---------------------------------------------------------------- the library


@functools.cache
def _library() -> _Library:
    """The engine's library, loaded and checked once.

    Raises:
        EngineError: it is missing, lacks a function, or its types are not ours.
    """
    path = library_path()
    try:
        library = _Library(ctypes.CDLL(str(path)))
    except OSError as exc:
        raise _unfit(f"it cannot be loaded: {exc}") from exc
    except AttributeError as exc:
        raise _unfit(f"it lacks a function: {exc}") from None
    for number, ours in KINDS.items():
        _check_type(library, number, ours)
    _check_call(library)
    return library


def library_path() -> Path:
    """The file of the engine's library; finding it does not import the package.

    Raises:
        EngineError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    for place in places:
        for pattern in ("*.so", "*.pyd", "*.dylib"):
            for path in sorted(Path(place).glob(f"{PACKAGE}{pattern}")):
                return path
    raise EngineError(
        f"the package `{PACKAGE}` is not installed; quantising uses functions of its library",
        hint=f"pip install {PACKAGE}=={TRIED}",
    )


def _check_type(library: _Library, number: int, ours: Kind) -> None:
    theirs = library.traits(number).contents
    name = (theirs.type_name or b"").decode("ascii", "replace")
    if (name.upper(), theirs.blck_size, theirs.type_size) != (ours.name, ours.block, ours.size):
        raise _unfit(
            f"its type {number} is {name} with {theirs.blck_size} weights in {theirs.type_size}"
            f" bytes, not {ours.name} with {ours.block} in {ours.size}"
        )
    if theirs.to_float:
        library.to_float[ours.name] = _TO_FLOAT(theirs.to_float)


def _check_call(library: _Library) -> None:
    """One block of Q8_0 there and back: scale 2⁻³, whose quotients are the integers we choose."""
    wanted = np.arange(-127, 129, 8).astype(np.int8)
    weights = wanted.astype(np.float32) / 8
    made = np.zeros(34, np.uint8)
    count = library.quantize_chunk(8, weights.ctypes.data, made.ctypes.data, 0, 1, 32, None)
    scale = float(made[:2].view(np.float16)[0])
    if count != 34 or scale != 0.125 or not np.array_equal(made[2:].view(np.int8), wanted):
        raise _unfit("a block that it quantised is not what it should be")


def _unfit(why: str) -> EngineError:
    try:
        found = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        found = "of unknown version"
    return EngineError(
        f"the library of `{PACKAGE}` {found} cannot be used for quantising: {why}",
        hint=f"pip install {PACKAGE}=={TRIED}, the version that this was written for",
    )
