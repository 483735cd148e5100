"""GGUF to a Hugging Face folder: plain numbers under their old names, settings and tokenizer.

Knows: how the rows of a family are read backwards. Does not know: how blocks become numbers
(`arrays.py`), what `config.json` and `tokenizer.json` say. Quantised weights become plain ones of
the chosen type: nothing is gained by it but that other programs can read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llm_runner_router.errors import ModelFileError, Unsupported
from llm_runner_router.models.checkpoint import Checkpoint
from llm_runner_router.plugins import load

from .base import Options, Tick, converts
from .safetensors_write import WIDTHS, SafetensorsWriter

if TYPE_CHECKING:
    from .arrays import Array
    from .family import Config, Row

TORCH: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_COMPUTED: Final = ("rope_freqs.weight",)
"""Tensors that follow from the settings."""


class _Part(msgspec.Struct, frozen=True):
    """A tensor of the folder: where it comes from, and which of several it is there."""

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: str
    row: Any
    expert: int | None = None


@converts("gguf", "safetensors", grow=4.0, speed=60e6)
def to_safetensors(source: Path, target: Path, options: Options, tick: Tick) -> None:
    """A GGUF file as the folder `target`. `options.type` is for quantised weights.

    Raises:
        Unsupported: the architecture, its tokenizer or the type is not converted; names it.
        ModelFileError: the source cannot be used.
        Cancelled: `tick` raised it.
    """
    from . import gguf_config, gguf_tokenizer

    wanted = options.type.upper()
    if wanted not in TORCH:
        raise Unsupported(
            f"safetensors hold no `{options.type}` here", hint="choose `f16`, `bf16` or `f32`"
        )
    opened: Checkpoint = load("models.formats", "gguf").open_checkpoint(source)
    with opened as checkpoint:
        fields, architecture = checkpoint.config, checkpoint.info.architecture
        kept = [w.dtype for w in checkpoint.weights.values() if len(w.shape) > 1]
        main = kept[0] if kept and kept[0] in TORCH else wanted
        settings = gguf_config.config(
            architecture,
            fields,
            checkpoint.weights.keys(),
            rows=_rows(checkpoint),
            dtype=TORCH[main],
            factors=_factors(checkpoint),
        )
        written = {"config.json": settings, **gguf_tokenizer.files(fields)}
        ids = {key: value for key, value in settings.items() if key.endswith("_token_id")}
        written["generation_config.json"] = ids
        texts = {name: _text(name, content) for name, content in written.items()}
        target.mkdir(parents=True, exist_ok=True)
        _write(checkpoint, list(_parts(checkpoint, settings, wanted)), settings, target, tick)
        for name, text in texts.items():
            (target / name).write_bytes(text + b"\n")


def _text(name: str, content: dict[str, Any]) -> bytes:
    """`content` as JSON.

    Raises:
        Unsupported: there are bytes in it that are no text; GGUF allows them, JSON does not.
    """
    try:
        return msgspec.json.format(msgspec.json.encode(content), indent=1)
    except UnicodeEncodeError as exc:
        raise Unsupported(
            f"`{name}` cannot hold {exc.object[:60]!r}, whose bytes are no text",
            hint="run the GGUF file as it is",
        ) from exc


def _rows(checkpoint: Checkpoint) -> int:
    embedding = checkpoint.weights.get("token_embd.weight")
    if embedding is None:
        raise ModelFileError("the file has no tensor `token_embd.weight`")
    return embedding.shape[0]


def _factors(checkpoint: Checkpoint) -> list[float]:
    from .arrays import decode

    weight = checkpoint.weights.get("rope_freqs.weight")
    if weight is None:
        return []
    return [float(f) for f in decode(checkpoint.read(weight.name), weight.dtype, weight.shape)]


# ---------------------------------------------------------------- names


def _family_rows(architecture: str) -> list[tuple[re.Pattern[str], Row]]:
    """The rows of an architecture, to be found by their targets; of two alike the first counts."""
    from .hf_tensors import families

    found: list[tuple[re.Pattern[str], Row]] = []
    seen: set[str] = set()
    for family in families().values():
        if family.name != architecture:
            continue
        for row in family.rows:
            if row[1] and row[1] not in seen and _undone(row) is not None:
                seen.add(row[1])
                pattern = re.escape(row[1]).replace(r"\*", r"(?P<layer>\d+)")
                found.append((re.compile(pattern + r"\Z"), row))
    return found


def _undone(row: Row) -> Any:
    """What undoes a row's transform: `(array, config) -> array`; None where nothing does."""
    import numpy as np

    from . import family

    transform = row[2] if len(row) > 2 else family.same
    undo: dict[Any, Any] = {
        family.same: lambda a, config: a,
        family.stacked: lambda a, config: a,
        family.plus_one: lambda a, config: a - np.float32(1),
        family.flat: lambda a, config: a.reshape(1, -1),
        family.query: lambda a, config: family.deinterleave(a, config.heads),
        family.key: lambda a, config: family.deinterleave(a, config.kv_heads),
    }
    return undo.get(transform)


def _parts(checkpoint: Checkpoint, settings: dict[str, Any], wanted: str) -> Iterator[_Part]:
    from .family import flat, stacked

    architecture = checkpoint.info.architecture
    rows = _family_rows(architecture)
    for weight in checkpoint.weights.values():
        if weight.name in _COMPUTED or (
            weight.name == "output.weight" and settings["tie_word_embeddings"]
        ):
            continue
        stem, _, suffix = weight.name.rpartition(".")
        found = next(((m, row) for pattern, row in rows if (m := pattern.match(stem))), None)
        if found is None:
            raise Unsupported(
                f"the tensor `{weight.name}` of `{architecture}` is not converted from GGUF",
                hint="run the GGUF file as it is",
            )
        match, row = found
        layer = match.groupdict().get("layer") or ""
        name = f"{row[0].replace('*', layer)}.{suffix}"
        dtype = weight.dtype if weight.dtype in TORCH else wanted
        transform = row[2] if len(row) > 2 else None
        if transform is stacked:
            for expert in range(weight.shape[0]):
                yield _Part(name.replace("#", str(expert)), weight.name, weight.shape[1:], dtype,
                            row, expert)  # fmt: skip
        else:
            shape = (1, *weight.shape) if transform is flat else weight.shape
            yield _Part(name, weight.name, shape, dtype, row)


# ---------------------------------------------------------------- numbers


def _write(
    checkpoint: Checkpoint,
    parts: list[_Part],
    settings: dict[str, Any],
    target: Path,
    tick: Tick,
) -> None:
    from . import arrays
    from .family import Config

    config = Config(settings)
    sizes = [WIDTHS[part.dtype] * _count(part.shape) for part in parts]
    total, done = sum(sizes), 0
    announced = [(part.name, part.dtype, part.shape) for part in parts]
    with SafetensorsWriter(target / "model.safetensors", announced) as writer:
        for part, size in zip(parts, sizes, strict=True):
            tick(done, total, part.name)
            array = _undone(part.row)(_read(checkpoint, part, config), config)
            writer.data(arrays.encode(array, part.dtype))
            done += size
        writer.finish()
    tick(total, total, "")


def _read(checkpoint: Checkpoint, part: _Part, config: Config) -> Array:
    """The numbers of one tensor, or of one expert of a stack."""
    from . import arrays

    weight = checkpoint.weights[part.source]
    data, shape = checkpoint.read(part.source), weight.shape
    if part.expert is not None:
        size = weight.bytes // shape[0]
        data, shape = data[part.expert * size : (part.expert + 1) * size], shape[1:]
    return arrays.decode(data, weight.dtype, shape)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
