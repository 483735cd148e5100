"""The process that runs a model over a text, to see what its matrices are multiplied with and how
well it foretells the text.

Knows: the part of llama.h (b11549) that this takes: load, tokenize, decode with a callback on every
node of the graph, logits. Does not know: what the numbers are for (`imatrix.py`, `perplexity.py`).

The engine's server offers neither the probabilities of a prompt nor its activations; the C
functions that it is built on do, and the wheel exports them. They take structs by value, whose
layout is only valid for one version: it must be exactly the one this was written for, and the
defaults that the library fills in must lie where they are expected. A mistake here could end the
process, so it always is one of its own:

    stdin   one line of JSON (`Job`), then open as long as the parent lives
    stdout  lines of JSON: {"done": …, "total": …} and last {"result": …} or {"error": …}
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from msgspec import Struct

from llm_runner_router.errors import EngineError, ModelFileError, RunnerError

from . import kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECE: Final = 128
"""Tokens per call: with a vocabulary of 150 000 their logits take 77 MB."""
LEAST_ROWS: Final = 16
"""Products with fewer rows belong to no whole piece of text and are not counted, as in llama.cpp's
own tool."""
NOT_FINITE: Final = "not_finite"
"""Code of the error for a model whose logits are no numbers."""
_MUL_MAT, _MUL_MAT_ID, _F32 = "MUL_MAT", "MUL_MAT_ID", 0

_Pointer, _Int, _Uint, _Float, _Bool = (
    ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32, ctypes.c_float, ctypes.c_bool
)  # fmt: skip


class Job(Struct, frozen=True):
    """What the process is asked for."""

    model: str
    text: str
    context: int = 512
    chunks: int = 0
    """At most so many contexts of text; 0 for all."""
    threads: int = 1
    imatrix: str = ""
    """Where sums of squares go; empty if they are not wanted."""


class Result(Struct, frozen=True):
    """What came out."""

    nll: float
    """Sum of −ln p of the tokens that were foretold."""
    squares: float
    """Sum of the squares of those, for the error of their mean."""
    tokens: int
    context: int
    chunks: int


class _ModelParams(ctypes.Structure):
    """`struct llama_model_params`."""

    _fields_ = (
        ("devices", _Pointer), ("tensor_buft_overrides", _Pointer), ("n_gpu_layers", _Int),
        ("split_mode", _Int), ("load_mode", _Int), ("lazy_mode", _Int), ("main_gpu", _Int),
        ("tensor_split", _Pointer), ("progress_callback", _Pointer), ("progress_data", _Pointer),
        ("kv_overrides", _Pointer), ("vocab_only", _Bool), ("check_tensors", _Bool),
        ("use_extra_bufts", _Bool), ("no_host", _Bool), ("no_alloc", _Bool), ("load_mtp", _Bool),
    )  # fmt: skip


class _ContextParams(ctypes.Structure):
    """`struct llama_context_params`."""

    _fields_ = (
        ("n_ctx", _Uint), ("n_batch", _Uint), ("n_ubatch", _Uint), ("n_seq_max", _Uint),
        ("n_rs_seq", _Uint), ("n_outputs_max", _Uint), ("n_outputs_max_per_seq", _Uint),
        ("n_threads", _Int), ("n_threads_batch", _Int), ("ctx_type", _Int),
        ("rope_scaling_type", _Int), ("pooling_type", _Int), ("attention_type", _Int),
        ("flash_attn_type", _Int), ("rope_freq_base", _Float), ("rope_freq_scale", _Float),
        ("yarn_ext_factor", _Float), ("yarn_attn_factor", _Float), ("yarn_beta_fast", _Float),
        ("yarn_beta_slow", _Float), ("yarn_orig_ctx", _Uint), ("defrag_thold", _Float),
        ("cb_eval", _Pointer), ("cb_eval_data", _Pointer), ("type_k", _Int), ("type_v", _Int),
        ("moe_cache_size", ctypes.c_size_t), ("abort_callback", _Pointer), ("abort_data", _Pointer),
        ("embeddings", _Bool), ("offload_kqv", _Bool), ("no_perf", _Bool), ("op_offload", _Bool),
        ("swa_full", _Bool), ("kv_unified", _Bool), ("samplers", _Pointer),
        ("n_samplers", ctypes.c_size_t), ("ctx_other", _Pointer),
    )  # fmt: skip


class _Batch(ctypes.Structure):
    """`struct llama_batch`."""

    _fields_ = (
        ("n_tokens", _Int), ("token", _Pointer), ("embd", _Pointer), ("pos", _Pointer),
        ("n_seq_id", _Pointer), ("seq_id", _Pointer), ("logits", _Pointer),
    )  # fmt: skip


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor`."""


_Tensor._fields_ = (
    ("type", _Int), ("buffer", _Pointer), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", _Int), ("op_params", _Int * 16), ("flags", _Int),
    ("src", ctypes.POINTER(_Tensor) * 10), ("view_src", _Pointer), ("view_offs", ctypes.c_size_t),
    ("data", _Pointer), ("name", ctypes.c_char * 64), ("extra", _Pointer),
    ("padding", ctypes.c_char * 8),
)  # fmt: skip

_EVAL = ctypes.CFUNCTYPE(_Bool, ctypes.POINTER(_Tensor), _Bool, _Pointer)
_LOG = ctypes.CFUNCTYPE(None, _Int, ctypes.c_char_p, _Pointer)


class Sums:
    """Sums of squares of what each matrix was multiplied with, by tensor: [experts, cols]."""

    def __init__(self) -> None:
        self.squares: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}

    def add(self, name: str, experts: int, expert: int, rows: NDArray[np.float32]) -> None:
        """Count `rows` [n, cols] for one expert (0 for a matrix without experts)."""
        if name not in self.squares:
            self.squares[name] = np.zeros((experts, rows.shape[1]))
            self.counts[name] = np.zeros(experts, np.int64)
        self.squares[name][expert] += np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
        self.counts[name][expert] += len(rows)


class Engine:
    """A model in this process. One per process.

    Raises:
        EngineError: the library has another version or other defaults than expected.
        ModelFileError: the engine does not load the file.
    """

    def __init__(self, path: Path, context: int, threads: int, sums: Sums | None = None) -> None:
        self._lib = _load()
        self._silent = _LOG(lambda level, text, data: None)
        self._lib.llama_log_set(self._silent, None)
        self._lib.llama_backend_init()
        params: Any = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ModelFileError(
                f"the engine does not load `{path.name}`", hint=f"llmrr inspect {path} --why"
            )
        self.trained = int(self._lib.llama_model_n_ctx_train(self._model))
        self.context = max(2, min(context, self.trained or context))
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.vocabulary = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self._sums, self._error = sums, ""
        self._eval = _EVAL(self._node)
        self._context = self._open(threads)
        self._memory = self._lib.llama_get_memory(self._context)

    def _open(self, threads: int) -> Any:
        params: Any = self._lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = self.context, PIECE, PIECE
        params.n_outputs_max = params.n_outputs_max_per_seq = PIECE
        params.n_threads = params.n_threads_batch = threads
        if self._sums is not None:
            params.cb_eval = ctypes.cast(self._eval, _Pointer)
        found = self._lib.llama_init_from_model(self._model, params)
        if not found:
            raise EngineError("the engine has no room for a context", hint="free some memory")
        return found

    @property
    def bos(self) -> int | None:
        """The token that begins a text, if the vocabulary wants one."""
        if not self._lib.llama_vocab_get_add_bos(self._vocab):
            return None
        return int(self._lib.llama_vocab_bos(self._vocab))

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text, with the token that begins one if the vocabulary wants it."""
        raw = text.encode()
        room = len(raw) + 8  # no token is shorter than a byte, but for the ones that are added
        ids = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self._vocab, raw, len(raw), ids, room, True, False)
        if count < 0:
            raise EngineError("the engine cannot tokenize the text", hint="try another text")
        return list(ids[:count])

    def forget(self) -> None:
        """Empty the context."""
        self._lib.llama_memory_clear(self._memory, True)

    def decode(self, ids: Sequence[int], at: int) -> NDArray[np.float32]:
        """Logits [tokens, vocabulary] after each of `ids`, which stand at position `at`; valid
        until the next call.

        Raises:
            EngineError: the engine failed, or the observer saw numbers that are not finite.
        """
        n = len(ids)
        tokens, places = (ctypes.c_int32 * n)(*ids), (ctypes.c_int32 * n)(*range(at, at + n))
        ones, zero = (ctypes.c_int32 * n)(*[1] * n), (ctypes.c_int32 * 1)(0)
        sequences = (_Pointer * n)(*[ctypes.addressof(zero)] * n)
        wanted = (ctypes.c_int8 * n)(*[1] * n)
        address = ctypes.addressof
        batch = _Batch(
            n, address(tokens), None, address(places), address(ones), address(sequences),
            address(wanted),
        )  # fmt: skip
        status = self._lib.llama_decode(self._context, batch)
        if status != 0 or self._error:
            raise EngineError(
                self._error or f"the engine failed on the text (status {status})",
                hint="check the model: `llmrr verify --deep`",
            )
        logits = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (n, self.vocabulary))

    # ------------------------------------------------------------ the observer

    def _node(self, node: Any, ask: bool, _: Any) -> bool:
        """Called before (`ask`) and after each node of the graph."""
        try:
            tensor = node.contents
            op = _ops(self._lib)
            if tensor.op not in (op[_MUL_MAT], op[_MUL_MAT_ID]):
                return not ask
            name = tensor.src[0].contents.name.decode("utf-8", "replace")
            source = tensor.src[1].contents
            if not name.startswith("blk.") or source.type != _F32:
                return not ask
            if tensor.op == op[_MUL_MAT]:
                if source.ne[1] < LEAST_ROWS:
                    return not ask
                if not ask:
                    self._matrix(name, source)
            elif not ask:
                self._experts(name, tensor, source)
            return True
        except Exception as exc:  # nothing may pass through C's frames
            self._error = f"cannot read the model's activations: {exc!r}"
            return False

    def _matrix(self, name: str, source: Any) -> None:
        assert self._sums is not None
        values = _array(source, np.float32)
        rows = values.reshape(-1, values.shape[-1])
        self._finite(name, rows)
        self._sums.add(name, 1, 0, rows)

    def _experts(self, name: str, tensor: Any, source: Any) -> None:
        """`source` is [tokens, experts used or 1, cols]; `src[2]` says which expert each was."""
        assert self._sums is not None
        values = _array(source, np.float32)[0]
        chosen = _array(tensor.src[2].contents, np.int32)[0, 0]
        experts = int(tensor.src[0].contents.ne[2])
        self._finite(name, values)
        for slot in range(chosen.shape[1]):
            rows = values[:, slot % values.shape[1]]
            for expert in np.unique(chosen[:, slot]):
                if not 0 <= expert < experts:
                    raise ValueError(f"{name} has no expert {expert}")
                self._sums.add(name, experts, int(expert), rows[chosen[:, slot] == expert])

    def _finite(self, name: str, values: NDArray[np.float32]) -> None:
        if not np.isfinite(values).all():
            raise ValueError(f"what comes to {name} is not finite")


def _array(tensor: Any, kind: type[Any]) -> NDArray[Any]:
    """A tensor's numbers, outermost first, whatever its strides; a copy."""
    shape, strides = tuple(tensor.ne[::-1]), tuple(tensor.nb[::-1])
    size = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + tensor.nb[0]
    raw = (ctypes.c_char * size).from_address(tensor.data)
    return np.ndarray(shape, kind, raw, 0, strides).copy()


# ---------------------------------------------------------------- the library

_OPS: dict[str, int] = {}


def _ops(library: Any) -> dict[str, int]:
    """The numbers of the two operations, asked from the library by name."""
    if not _OPS:
        for number in range(256):
            name = library.ggml_op_name(number).decode()
            if name in (_MUL_MAT, _MUL_MAT_ID):
                _OPS[name] = number
            if len(_OPS) == 2:
                break
    return _OPS


def _load() -> Any:
    """The library with its functions typed.

    Raises:
        EngineError: it is of another version, or its defaults are not where they should be.
    """
    version = importlib.metadata.version(kernels.PACKAGE)
    path = kernels.library_path()
    if version != kernels.TRIED:
        raise _other(f"`{kernels.PACKAGE}` is of version {version}")
    library: Any = ctypes.CDLL(str(path))
    for name, result, arguments in (
        ("llama_log_set", None, [_LOG, _Pointer]),
        ("llama_backend_init", None, []),
        ("llama_model_default_params", _ModelParams, []),
        ("llama_context_default_params", _ContextParams, []),
        ("llama_model_load_from_file", _Pointer, [ctypes.c_char_p, _ModelParams]),
        ("llama_init_from_model", _Pointer, [_Pointer, _ContextParams]),
        ("llama_model_n_ctx_train", _Int, [_Pointer]),
        ("llama_model_get_vocab", _Pointer, [_Pointer]),
        ("llama_vocab_n_tokens", _Int, [_Pointer]),
        ("llama_vocab_get_add_bos", _Bool, [_Pointer]),
        ("llama_vocab_bos", _Int, [_Pointer]),
        ("llama_tokenize", _Int,
         [_Pointer, ctypes.c_char_p, _Int, _Pointer, _Int, _Bool, _Bool]),
        ("llama_get_memory", _Pointer, [_Pointer]),
        ("llama_memory_clear", None, [_Pointer, _Bool]),
        ("llama_decode", _Int, [_Pointer, _Batch]),
        ("llama_get_logits", ctypes.POINTER(_Float), [_Pointer]),
        ("ggml_op_name", ctypes.c_char_p, [_Int]),
    ):  # fmt: skip
        function = getattr(library, name, None)
        if function is None:
            raise _other(f"it lacks `{name}`")
        function.restype, function.argtypes = result, arguments
    _check(library)
    return library


def _check(library: Any) -> None:
    """The defaults of b11549, each where its field should be."""
    context, model = library.llama_context_default_params(), library.llama_model_default_params()
    found = (
        context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max,
        context.n_outputs_max_per_seq, context.yarn_ext_factor, context.defrag_thold,
        context.type_k, context.type_v, context.offload_kqv, context.swa_full, context.n_samplers,
        model.n_gpu_layers, model.split_mode, model.load_mode, model.use_extra_bufts,
        model.vocab_only,
    )  # fmt: skip
    wanted = (512, 2048, 512, 1, 1, -1.0, -1.0, 1, 1, True, True, 0, -1, 1, -1, True, False)
    if found != wanted:
        raise _other(f"its defaults are {found}, not {wanted}")


def _other(why: str) -> EngineError:
    return EngineError(
        f"the engine's library cannot be used to run a model over a text: {why}",
        hint=f"pip install {kernels.PACKAGE}=={kernels.TRIED}, the version this was written for",
    )


# ---------------------------------------------------------------- the work


def run(job: Job, say: Callable[[dict[str, Any]], None]) -> Result:
    """Run the model over the text, a context at a time.

    As llama.cpp's own tool does it: each context starts afresh with the token that begins a text,
    and only its second half is scored, so that every scored token has at least half a context
    before it. A text of less than two contexts is one context, scored from its second token on.

    Raises:
        EngineError: the library cannot be used, or the engine failed.
        ModelFileError: the engine does not load the file.
    """
    sums = Sums() if job.imatrix else None
    engine = Engine(Path(job.model), job.context, job.threads, sums)
    ids = engine.tokenize(job.text)
    if len(ids) < 2:
        raise EngineError("the text has fewer than two tokens", hint="give a longer text")
    size, first = engine.context, engine.context // 2
    if len(ids) < 2 * size:
        ids = ids[:size]
        size, first = len(ids), 1
    chunks = max(1, len(ids) // size)
    if job.chunks:
        chunks = min(chunks, job.chunks)
    nll = squares = 0.0
    count = 0
    for chunk in range(chunks):
        say({"done": chunk, "total": chunks})
        own = ids[chunk * size : (chunk + 1) * size]
        if engine.bos is not None:
            own[0] = engine.bos
        for loss in _losses(engine, own, first):
            nll += float(loss.sum())
            squares += float(np.square(loss).sum())
            count += len(loss)
        if not np.isfinite(nll):
            raise EngineError(
                f"`{Path(job.model).name}` computes what is no number (NaN) on the text",
                hint="`llmrr verify --deep` looks for the tensor",
                code=NOT_FINITE,
            )
    say({"done": chunks, "total": chunks})
    if sums is not None:
        _save(Path(job.imatrix), sums, size, chunks)
    return Result(nll, squares, count, size, chunks)


def _losses(engine: Engine, ids: list[int], first: int) -> Iterator[NDArray[np.float64]]:
    """−ln p of the tokens from position `first` on, given all before them, a piece at a time."""
    engine.forget()
    for at in range(0, len(ids), PIECE):
        piece = ids[at : at + PIECE]
        logits = engine.decode(piece, at)
        follow = np.array(ids[at + 1 : at + 1 + len(piece)], np.int64)
        skip = max(0, first - 1 - at)
        if skip >= len(follow):
            continue
        some = logits[skip : len(follow)].astype(np.float64)
        top = some.max(axis=1, keepdims=True)
        total = np.log(np.exp(some - top).sum(axis=1)) + top[:, 0]
        yield total - some[np.arange(len(some)), follow[skip:]]


def _save(path: Path, sums: Sums, size: int, chunks: int) -> None:
    from .imatrix import Entry, Imatrix, write

    entries = {
        name: Entry(squares.astype(np.float32), sums.counts[name])
        for name, squares in sums.squares.items()
    }
    write(path, Imatrix(entries, chunks=chunks, chunk=size))


def _owned() -> None:
    """End this process when the parent's end of the pipe closes."""
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(1)


def main() -> int:
    """Read a job, do it, say what came out. The exit code."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints is no answer

    def say(thing: dict[str, Any]) -> None:
        out.write(msgspec.json.encode(thing) + b"\n")

    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    threading.Thread(target=_owned, daemon=True).start()
    try:
        say({"result": run(job, say)})
        code = 0
    except RunnerError as exc:
        file = isinstance(exc, ModelFileError)
        say({"error": exc.message, "hint": exc.hint, "code": exc.code, "file": file})
        code = 1
    sys.stderr.flush()
    os._exit(code)  # not through the library's destructors, which may hang while stdin is read


if __name__ == "__main__":
    main()
