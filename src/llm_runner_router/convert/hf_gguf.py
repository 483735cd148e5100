"""Hugging Face folders to GGUF: weights, settings, tokenizer and chat templates in one file.

Knows: the order of a GGUF file, which tensors keep full precision. Does not know: families, files
of weights, tokenizers; each has its module. numpy is imported when a conversion runs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llm_runner_router.errors import Unsupported
from llm_runner_router.models import sentence
from llm_runner_router.models.checkpoint import Checkpoint
from llm_runner_router.models.sentence import Modules
from llm_runner_router.plugins import load

from .base import Options, Tick, converts

if TYPE_CHECKING:
    from .family import Out, Piece
    from .gguf_write import GGUFWriter
    from .hf_tensors import Plan

FILE_TYPES: Final = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""`general.file_type`, as llama.cpp's `llama_ftype` numbers them."""
FULL: Final = ("ffn_gate_inp", "token_types", "position_embd", "rope_f", "exp_probs_b", "cls.")
"""Parts of names of tensors that stay F32 (as in llama.cpp's converter); so do vectors and
norms."""
CHUNK: Final = 32 * 1024 * 1024
"""Bytes of a tensor that are in memory at a time, where nothing has to be rearranged."""


@converts("safetensors", "gguf", grow=1.1, speed=120e6)
def from_safetensors(source: Path, target: Path, options: Options, tick: Tick) -> None:
    """A folder with safetensors as the GGUF file `target`.

    Raises:
        ModelFileError, Unsupported: the source cannot be used, or GGUF has no place for something
            in it; names the file, tensor or field.
        Cancelled: `tick` raised it.
    """
    _convert("safetensors", source, target, options, tick)


@converts("pytorch", "gguf", grow=1.1, speed=100e6)
def from_pytorch(source: Path, target: Path, options: Options, tick: Tick) -> None:
    """A folder with PyTorch's weights as the GGUF file `target`.

    Raises:
        ModelFileError, Unsupported, Cancelled: as `from_safetensors`.
    """
    _convert("pytorch", source, target, options, tick)


def _convert(kind: str, source: Path, target: Path, options: Options, tick: Tick) -> None:
    from . import behind, family, hf_tensors
    from .gguf_write import GGUFWriter

    folder = source if source.is_dir() else source.parent
    modules = sentence.read(folder)
    with _opened(kind, source, modules) as checkpoint:
        plan = hf_tensors.plan(checkpoint.config, checkpoint.weights)
        pooling = behind.pooling_of(plan.family, modules)
        _check_types(plan, checkpoint)
        wanted = options.type.upper()
        if wanted not in FILE_TYPES:
            raise Unsupported(
                f"GGUF is not converted to {wanted} in one step",
                param="type",
                hint="convert to f16, then `llmrr quantize`",
            )
        with GGUFWriter(target, plan.family.name) as writer:
            with family.sensible("config.json"):  # what GGUF cannot hold is told here too
                for key, value, field in _fields(plan, checkpoint, folder, wanted, pooling):
                    writer.field(key, value, field)
            _write(writer, plan, checkpoint, wanted, tick)
            writer.finish()


def _opened(kind: str, source: Path, modules: Modules) -> Checkpoint:
    """The checkpoint with what follows it; one in 8-bit floats with scales reads as plain."""
    from . import behind, family, fp8, hf_tensors

    checkpoint: Checkpoint = load("models.formats", kind).open_checkpoint(source)
    try:
        if fp8.is_scaled(checkpoint.config):
            checkpoint = fp8.Plain(checkpoint)
        if modules.dense and hf_tensors.family_of(family.Config(checkpoint.config)).dense:
            checkpoint = behind.WithDense(checkpoint, modules.dense)
        return checkpoint
    except BaseException:
        checkpoint.close()
        raise


# ---------------------------------------------------------------- fields


def _fields(
    plan: Plan, checkpoint: Checkpoint, folder: Path, wanted: str, pooling: int
) -> Iterator[tuple[str, Any, Any]]:
    from . import hf_tensors, templates, vocabulary

    info, family = checkpoint.info, plan.family
    yield "general.type", "model", None
    yield "general.name", info.name or folder.resolve().name, None
    if info.license:
        yield "general.license", info.license, None
    yield "general.file_type", FILE_TYPES[wanted], "U32"
    yield "general.quantization_version", 2, "U32"
    settings = hf_tensors.fields(plan)
    settings["vocab_size"] = plan.rows
    if pooling:
        settings["pooling_type"] = pooling
    for key, value in settings.items():
        if value is not None:
            whole = key if key.startswith("tokenizer.") else f"{family.name}.{key}"
            yield (key if key in ("tensor_data_layout",) else whole), value, None
    types = plan.config.get("type_vocab_size")
    if types is not None and any(out.name == "token_types.weight" for out in plan.outs):
        yield "tokenizer.ggml.token_type_count", types, "U32"
    read = vocabulary.read(folder, plan.rows, plan.config.raw, pairs=family.ranks)
    yield from read.fields()
    yield from templates.fields(templates.read(folder))


def _check_types(plan: Plan, checkpoint: Checkpoint) -> None:
    """A pair's two texts must look alike to a ranking model: llama.cpp gives all tokens type 0.

    Raises:
        Unsupported: the model was trained with a type of its own for the second text.
    """
    from . import arrays

    out = next((out for out in plan.outs if out.name == "token_types.weight"), None)
    if not plan.family.ranks or out is None or out.shape[0] < 2:
        return
    weight = checkpoint.weights[out.pieces[0].sources[0]]
    rows = arrays.decode(checkpoint.read(weight.name), weight.dtype, weight.shape)
    if (rows[0] != rows[1]).any():
        raise Unsupported(
            f"`{weight.name}` gives the tokens of a document another type than those of a query,"
            " which llama.cpp does not: its scores would be others",
            hint="run the folder as it is, with the engine `transformers` or `onnx`",
        )


# ---------------------------------------------------------------- weights


def type_of(name: str, shape: tuple[int, ...], wanted: str) -> str:
    """The type a tensor gets where `wanted` is chosen for matrices."""
    from .arrays import fits

    if len(shape) < 2 or any(part in name for part in FULL) or name.endswith("_norm.weight"):
        return "F32"
    return wanted if fits(wanted, shape[-1]) else "F16"


def _write(writer: GGUFWriter, plan: Plan, checkpoint: Checkpoint, wanted: str, tick: Tick) -> None:
    from . import hf_tensors
    from .arrays import size

    extra = hf_tensors.extra(plan)
    for name, values in extra:
        writer.tensor(name, "F32", (len(values),))
    types = {out.name: out.type or type_of(out.name, out.shape, wanted) for out in plan.outs}
    for out in plan.outs:
        writer.tensor(out.name, types[out.name], out.shape)
    writer.begin()
    for name, values in extra:
        writer.data(name, struct.pack(f"<{len(values)}f", *values))
    total = sum(size(types[out.name], out.shape) for out in plan.outs)
    done = 0
    for out in plan.outs:
        tick(done, total, out.name)
        for data in _encoded(out, checkpoint, types[out.name]):
            writer.data(out.name, data)
            done += data.nbytes
            tick(done, total, out.name)
    tick(total, total, "")


def _encoded(out: Out, checkpoint: Checkpoint, dtype: str) -> Iterator[Any]:
    """The bytes of a tensor, a part at a time."""
    for piece in out.pieces:
        if piece.make is None:
            yield from _rows(piece, checkpoint, dtype, out.shape[-1])
        else:
            yield _rearranged(piece, checkpoint, dtype)


def _rows(piece: Piece, checkpoint: Checkpoint, dtype: str, row: int) -> Iterator[Any]:
    from . import arrays

    weight = checkpoint.weights[piece.sources[0]]
    data = checkpoint.read(weight.name)
    if weight.dtype == dtype:
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]
        return
    count = len(data) and weight.bytes // max(1, _count(weight.shape) // row)
    step = max(1, CHUNK // max(1, count)) * count
    for start in range(0, len(data), max(1, step)):
        part = data[start : start + step]
        rows = len(part) // count
        yield arrays.encode(arrays.decode(part, weight.dtype, (rows, row)), dtype)


def _rearranged(piece: Piece, checkpoint: Checkpoint, dtype: str) -> Any:
    from . import arrays

    assert piece.make is not None
    sources = [checkpoint.weights[name] for name in piece.sources]
    read = [arrays.decode(checkpoint.read(w.name), w.dtype, w.shape) for w in sources]
    return arrays.encode(piece.make(*read), dtype)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
