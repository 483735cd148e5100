"""Quantises a GGUF file: the same model with its matrices in smaller types.

Knows: the order of the work, one tensor after another and a slab of rows at a time, so memory stays
at some tens of MB whatever the model's size; how the error is measured. Does not know: which tensor
gets which type (`mixes.py`), how a block is made (`kernels.py`), the command line.

Everything in the source's metadata is kept. Several parts become one file.
"""

from __future__ import annotations

import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct

from llm_runner_router.errors import BadRequest, ModelFileError
from llm_runner_router.models.checkpoint import Checkpoint, Weight
from llm_runner_router.models.detect import check_whole
from llm_runner_router.models.formats import gguf
from llm_runner_router.units import format_size

from . import kernels, mixes
from .gguf_write import GGUFWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .base import Tick

QUANTISATION_VERSION: Final = 2
"""GGML_QNT_VERSION of ggml.h: of the block layouts."""
SLAB_WEIGHTS: Final = 1 << 24
"""Weights whose result is held before it is written: 18 MB in eight bits."""
FINE: Final = frozenset({"F64", "F32", "F16", "BF16", "Q8_0"})
"""Types that lose so little that a mix may be made from them."""
_OURS: Final = frozenset(
    {"general.architecture", "general.alignment", "general.file_type",
     "general.quantization_version"}
)  # fmt: skip


class Made(Struct, frozen=True):
    """One tensor of the result. Errors are relative: RMS of the change over RMS of the weights."""

    name: str
    before: str
    after: str
    weights: int
    bytes_before: int
    bytes_after: int
    error: float
    rmse: float
    """The error in the weights' own unit."""
    weighted: float | None = None
    """As `error`, each column weighed by its importance; None without an importance matrix."""


class Report(Struct, frozen=True):
    """What was made."""

    path: Path
    mix: str
    before: int
    """Bytes of all weights in the source."""
    after: int
    seconds: float
    threads: int
    tensors: tuple[Made, ...]

    @property
    def bits(self) -> float:
        """Bits per weight of the result."""
        weights = sum(t.weights for t in self.tensors)
        return self.after * 8 / weights if weights else 0.0

    @property
    def types(self) -> dict[str, int]:
        """Bytes of the result by type, the largest first."""
        found: dict[str, int] = {}
        for tensor in self.tensors:
            found[tensor.after] = found.get(tensor.after, 0) + tensor.bytes_after
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def quantize(
    source: Path,
    target: Path,
    mix: str,
    *,
    imatrix: Mapping[str, NDArray[np.float32]] | None = None,
    threads: int = 1,
    requantize: bool = False,
    tick: Tick | None = None,
) -> Report:
    """Write `source` to `target` with the types of `mix`.

    Args:
        source: a GGUF file, or the first of its parts.
        target: where the result will be, whole or not at all.
        mix: a name of `mixes.MIXES` or one of its aliases, in any case.
        imatrix: by tensor, [cols] or [experts, cols]: how much an error in each column weighs.
        threads: how many work.
        requantize: take matrices of less than eight bits too, which adds their error to the new.
        tick: called with bytes done, bytes in all and the next tensor; may raise to stop.

    Raises:
        BadRequest: there is no such mix, or `target` is `source`.
        ModelFileError: the source is not sound, has weights that are not finite, or is quantised
            already; or the disk has no room.
        EngineError: the engine's library cannot be used.
    """
    try:
        chosen = mixes.named(mix)
    except KeyError:
        known = ", ".join(mixes.MIXES)
        raise BadRequest(
            f"there is no quantisation `{mix}`", param="type", hint=f"one of {known}"
        ) from None
    if target.exists() and target.samefile(source):
        raise BadRequest("a file cannot be quantised onto itself", hint="name another file")
    begun = time.monotonic()
    with gguf.open_checkpoint(source) as model:
        check_whole(source, model.info)
        items = [mixes.Item(w.name, w.dtype, w.shape) for w in model.weights.values()]
        types = mixes.plan(chosen, shape_of(model), items, important=imatrix is not None)
        _check(source, items, types, requantize=requantize)
        _check_room(target, mixes.size(items, types))
        made = _write(model, target, chosen, types, _Work(imatrix or {}, max(1, threads), tick))
    return Report(
        path=target,
        mix=chosen.name,
        before=sum(t.bytes_before for t in made),
        after=sum(t.bytes_after for t in made),
        seconds=time.monotonic() - begun,
        threads=max(1, threads),
        tensors=tuple(made),
    )


def shape_of(model: Checkpoint) -> mixes.Shape:
    """The sizes that the rules of a mix ask for."""
    architecture = model.info.architecture

    def number(key: str) -> int:
        value = model.config.get(f"{architecture}.{key}", 0)
        first = value[0] if isinstance(value, tuple) and value else value
        return int(first) if isinstance(first, int) else 0

    heads = number("attention.head_count")
    return mixes.Shape(
        architecture=architecture,
        layers=number("block_count"),
        heads=heads,
        kv_heads=number("attention.head_count_kv") or heads,
        experts=number("expert_count"),
    )


# ---------------------------------------------------------------- checks before the work


def _check(
    source: Path, items: Sequence[mixes.Item], types: Mapping[str, str], *, requantize: bool
) -> None:
    for item in items:
        after = types[item.name]
        if item.type == after or item.type in FINE or requantize:
            continue
        raise ModelFileError(
            f"`{source.name}` is quantised already: `{item.name}` has {item.type}, which {after}"
            " would only make worse",
            hint="quantise the original (F16, BF16 or Q8_0), or add `--requantize`",
        )


def _check_room(target: Path, size: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise ModelFileError(
            f"`{target.name}` takes {format_size(size)}, but `{target.parent}` has"
            f" {format_size(free)} left",
            hint="free some space, or name another folder",
        )


# ---------------------------------------------------------------- the work


class _Work(Struct, frozen=True):
    """What stays the same for all tensors."""

    imatrix: Mapping[str, Any]
    threads: int
    tick: Tick | None


def _write(
    model: Checkpoint, target: Path, mix: mixes.Mix, types: Mapping[str, str], work: _Work
) -> list[Made]:
    total = sum(weight.bytes for weight in model.weights.values())
    done = 0
    made = []
    with (
        GGUFWriter(target, model.info.architecture) as out,
        ThreadPoolExecutor(work.threads, thread_name_prefix="quantize") as pool,
    ):
        _copy_fields(model, out, mix)
        if work.imatrix:
            out.field("quantize.imatrix.entries_count", len(work.imatrix))
        for name, kind in types.items():
            out.tensor(name, kind, model.weights[name].shape)
        out.begin()
        for name, kind in types.items():
            if work.tick is not None:
                work.tick(done, total, name)
            one = _Tensor(model.weights[name], kind, model.read(name), work.imatrix.get(name))
            made.append(_one(one, partial(out.data, name), pool, work.threads))
            done += model.weights[name].bytes
        if work.tick is not None:
            work.tick(done, total, "")
        out.finish()
    return made


def _copy_fields(model: Checkpoint, out: GGUFWriter, mix: mixes.Mix) -> None:
    """All metadata as it stands; of the parts of a split model no trace is left."""
    metadata: Any = model.config
    for key in metadata:
        if key in _OURS or key.startswith(("split.", "quantize.imatrix.")):
            continue
        entry = metadata.raw(key)
        at = 8 + struct.unpack_from("<Q", entry)[0]
        out.raw_field(key, struct.unpack_from("<I", entry, at)[0], entry[at + 4 :])
    out.field("general.file_type", mix.file_type)
    out.field("general.quantization_version", QUANTISATION_VERSION)


class _Tensor:
    """One tensor as rows, its new type, and the importance of its columns."""

    def __init__(self, weight: Weight, kind: str, data: memoryview, imatrix: Any) -> None:
        *outer, self.cols = weight.shape
        self.rows = int(np.prod(outer, dtype=np.int64)) if outer else 1
        self.weight, self.kind, self.data = weight, kind, data
        self.experts = outer[0] if len(outer) > 1 else 1
        self.imatrix = self._important(imatrix)
        width = kernels.row_bytes(weight.dtype, self.cols)
        self.source = np.frombuffer(data, np.uint8).reshape(self.rows, width)

    def _important(self, imatrix: Any) -> Any:
        """[experts, cols], or None."""
        if imatrix is None:
            return None
        found = np.ascontiguousarray(imatrix, np.float32)
        if found.size != self.experts * self.cols or not np.isfinite(found).all():
            raise ModelFileError(
                f"the importance matrix does not fit `{self.weight.name}`: it has {found.size}"
                f" numbers, not {self.experts} × {self.cols}, or some are not finite",
                hint="make it from this model: `llmrr quantize … --calibrate TEXT`",
            )
        return found.reshape(self.experts, self.cols)

    def parts(self, rows: slice, threads: int) -> Iterator[slice]:
        """Shares of `rows`, none of them over two experts."""
        each = self.rows // self.experts
        step = min(kernels.BLOCK_WEIGHTS, -(-(rows.stop - rows.start) * self.cols // threads))
        step = max(1, step // self.cols)
        at = rows.start
        while at < rows.stop:
            end = min(at + step, rows.stop, (at // each + 1) * each)
            yield slice(at, end)
            at = end


class _Sums(Struct, frozen=True):
    """Squares: of the weights, of their changes, and both weighed by importance."""

    weights: float = 0.0
    changes: float = 0.0
    weighed: float = 0.0
    weighed_changes: float = 0.0

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(
            self.weights + other.weights,
            self.changes + other.changes,
            self.weighed + other.weighed,
            self.weighed_changes + other.weighed_changes,
        )


def _one(
    tensor: _Tensor, write: Callable[[Any], None], pool: ThreadPoolExecutor, threads: int
) -> Made:
    weight, sums = tensor.weight, _Sums()
    after = tensor.rows * kernels.row_bytes(tensor.kind, tensor.cols)
    if weight.dtype == tensor.kind:
        for rows in kernels.spans(tensor.rows, tensor.cols, SLAB_WEIGHTS):
            write(tensor.source[rows])
    else:
        for rows in kernels.spans(tensor.rows, tensor.cols, SLAB_WEIGHTS):
            width = kernels.row_bytes(tensor.kind, tensor.cols)
            result = np.empty((rows.stop - rows.start, width), np.uint8)
            job = partial(_part, tensor, result, rows.start)
            parts = tensor.parts(rows, threads)
            for some in pool.map(job, parts) if threads > 1 else map(job, parts):
                sums = sums.plus(some)
            write(result)
    count = tensor.rows * tensor.cols
    weighted = _ratio(sums.weighed_changes, sums.weighed) if tensor.imatrix is not None else None
    return Made(
        name=weight.name,
        before=weight.dtype,
        after=tensor.kind,
        weights=count,
        bytes_before=weight.bytes,
        bytes_after=after,
        error=_ratio(sums.changes, sums.weights),
        rmse=float(np.sqrt(sums.changes / count)),
        weighted=weighted,
    )


def _part(tensor: _Tensor, result: NDArray[np.uint8], first: int, rows: slice) -> _Sums:
    """Quantise some rows into `result`, whose row 0 is the tensor's row `first`."""
    weights = np.empty((rows.stop - rows.start, tensor.cols), np.float32)
    made = result[rows.start - first : rows.stop - first]
    important = None
    if tensor.imatrix is not None:
        important = tensor.imatrix[rows.start // (tensor.rows // tensor.experts)]
    try:
        kernels.dequantize_into(tensor.weight.dtype, tensor.source[rows], weights)
        kernels.quantize_into(tensor.kind, weights, made, important)
    except ValueError as exc:
        raise ModelFileError(
            f"the tensor `{tensor.weight.name}` cannot become {tensor.kind}: {exc}",
            hint="`llmrr verify --deep` on the source says more",
        ) from None
    change = np.empty_like(weights)
    kernels.dequantize_into(tensor.kind, made, change)
    change -= weights
    flat, moved = weights.ravel(), change.ravel()
    sums = _Sums(float(flat @ flat), float(moved @ moved))
    if important is None:
        return sums
    np.square(weights, out=weights)
    np.square(change, out=change)
    return _Sums(
        sums.weights,
        sums.changes,
        float(weights.sum(axis=0) @ important),
        float(change.sum(axis=0) @ important),
    )


def _ratio(part: float, whole: float) -> float:
    return float(np.sqrt(part / whole)) if whole > 0 else 0.0
