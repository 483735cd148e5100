"""Reads TensorFlow.js: `model.json` and its shards, layers and graph models, also quantised.

Knows: where each weight lies in the shards, and how the converter quantised it. Does not know: the
graph; nothing is run. From the documentation of `tfjs-converter` and its `WeightsManifestConfig`.

    {"format", "modelTopology", "weightsManifest": [{"paths": [shard…], "weights": [
        {"name", "shape", "dtype", "quantization": {"dtype", "min", "scale"}?}…]}…]}

The shards of a group, one behind the other, hold its weights, one behind the other.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from llm_runner_router.models.checkpoint import Checkpoint, Weight
from llm_runner_router.models.info import ModelInfo

from ._files import MAX_JSON, Bad, Opened, Place, Source, inside, naming, read_object
from ._hub import checked_info, facts
from ._parts import MAX_PARTS, count

MAX_DIMS: Final = 16
_TYPES: Final = {
    "float32": ("F32", 4), "int32": ("I32", 4), "bool": ("BOOL", 1), "complex64": ("C64", 8),
    "float16": ("F16", 2), "uint8": ("U8", 1), "uint16": ("U16", 2),
}  # fmt: skip
_FORMATS: Final = ("layers-model", "graph-model", None)


class _Manifest(Struct, frozen=True):
    weights: dict[str, Weight]
    sources: dict[str, Source]
    bytes: int
    quantised: tuple[str, ...]


def sniff(path: Path, head: bytes) -> bool:
    """Whether `path` is a `model.json` with a manifest of weights, or a folder with one."""
    file = path
    if not head:
        file = path / "model.json"
        if not path.is_dir() or not file.is_file():
            return False
    elif head.lstrip()[:1] != b"{":
        return False
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_JSON)
    except OSError:
        return False
    return content.lstrip()[:1] == b"{" and b'"weightsManifest"' in content


def describe(path: Path) -> ModelInfo:
    """The facts of a `model.json` or its folder.

    Raises:
        ModelFileError: it, or one of its shards, is missing or not sound.
    """
    with naming(path):
        return _load(path)[0]


def open_checkpoint(path: Path) -> Checkpoint:
    """The model's weights; those quantised to 8 or 16 bits are `F32` again when read.

    Raises:
        ModelFileError: as `describe`.
    """
    with naming(path):
        info, config, manifest = _load(path)
    return Opened(path, info, config, manifest.weights, manifest.sources)


def _load(path: Path) -> tuple[ModelInfo, dict[str, Any], _Manifest]:
    file = path / "model.json" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(2, "No such file", str(file))
    model = read_object(file)
    kind = model.get("format")
    if kind not in _FORMATS:
        raise Bad(f"its `format` is {str(kind)[:40]!r}, not `layers-model` or `graph-model`")
    manifest = _manifest(file.parent, model.get("weightsManifest"))
    config, fields = facts(file.parent)
    notes = list(fields.pop("notes"))
    notes.append("a TensorFlow.js model: it runs here after `llmrr convert` to safetensors")
    if manifest.quantised:
        notes.append(f"quantised to {', '.join(manifest.quantised)} by the converter")
    if not config:
        fields["architecture"] = _named(model) or kind or ""
    info = checked_info(
        format="tfjs",
        bytes=file.stat().st_size + manifest.bytes,
        notes=tuple(notes),
        **count(manifest.weights.values()),
        **fields,
    )
    topology = {key: value for key, value in model.items() if key != "weightsManifest"}
    return info, config or topology, manifest


def _named(model: dict[str, Any]) -> str:
    """The class of a layers model, for example `Sequential`."""
    block: Any = model.get("modelTopology")
    for key in ("model_config", "class_name"):
        block = block.get(key) if isinstance(block, dict) else None
    return block[:100] if isinstance(block, str) else ""


def _manifest(folder: Path, groups: object) -> _Manifest:
    if not isinstance(groups, list) or not groups:
        raise Bad("its `weightsManifest` is no list of groups")
    weights: dict[str, Weight] = {}
    sources: dict[str, Source] = {}
    quantised: dict[str, None] = {}
    used: set[Path] = set()
    total = 0
    for group in groups:
        if not isinstance(group, dict):
            raise Bad("a group of its `weightsManifest` is no object")
        shards = _shards(folder, group.get("paths"), used)
        at = 0
        ends = list(accumulate(shard.bytes for shard in shards))
        room = ends[-1] if ends else 0
        for entry in _list(group.get("weights"), "weights"):
            weight, stored, restore, how = _weight(entry)
            if weight.name in weights:
                raise Bad(f"the weight {weight.name[:80]!r} stands there twice")
            if at + stored > room:
                raise Bad(f"the weight {weight.name[:80]!r} reaches behind the end of its shards")
            pieces = list(_pieces(shards, ends, at, stored))
            weights[weight.name] = weight
            sources[weight.name] = _source(pieces, restore)
            quantised |= {how: None} if how else {}
            at += stored
        if at != room:
            raise Bad(f"its weights take {at} bytes, but a group's shards hold {room}")
        total += room
    return _Manifest(weights, sources, total, tuple(quantised))


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise Bad(f"the `{what}` of a group are no list")
    return value


def _shards(folder: Path, paths: object, used: set[Path]) -> list[Place]:
    found = []
    for name in _list(paths, "paths"):
        file = inside(folder, name, "the shard")
        if file in used or len(used) >= MAX_PARTS:
            raise Bad(f"the shard {name[:80]!r} is listed twice, or there are too many")
        used.add(file)
        found.append(Place(file, 0, file.stat().st_size))
    return found


Restore = Callable[[bytes], bytes]


def _weight(entry: Any) -> tuple[Weight, int, Restore | None, str]:
    """A weight, its bytes in the shards, how they become its numbers, and what that is called."""
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise Bad("a weight has no name")
    shown = f"the weight {name[:80]!r}"
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise Bad(f"{shown} has the unknown type {str(dtype)[:40]!r}")
    sizes = isinstance(shape, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
    if not sizes or len(shape) > MAX_DIMS:
        raise Bad(f"{shown} has the shape {str(shape)[:80]}")
    number = math.prod(shape)
    kind, width = _TYPES[dtype]
    block = entry.get("quantization")
    if block is None:
        return Weight(name, kind, tuple(shape), number * width), number * width, None, ""
    stored = block.get("dtype") if isinstance(block, dict) else None
    if stored == "float16" and dtype == "float32":
        return Weight(name, "F16", tuple(shape), number * 2), number * 2, None, "float16"
    if stored not in ("uint8", "uint16") or dtype not in ("float32", "int32"):
        raise Bad(f"{shown} is quantised to {str(stored)[:40]!r} from {dtype}")
    scale, least = block.get("scale"), block.get("min", 0)
    if not _finite(scale) or not _finite(least):
        raise Bad(f"{shown} has the scale {str(scale)[:40]} and the least value {str(least)[:40]}")
    if dtype == "int32" and abs(least) + 65535 * abs(scale) >= 2**31:
        raise Bad(f"{shown} has the scale {scale}, too large for its type")
    restore = _restorer(stored == "uint16", float(scale), float(least), whole=dtype == "int32")
    width = 2 if stored == "uint16" else 1
    return Weight(name, kind, tuple(shape), number * 4), number * width, restore, stored


def _finite(value: object) -> bool:
    """Whether it is a number that a `float32` can hold."""
    return isinstance(value, int | float) and type(value) is not bool and -3e38 < value < 3e38


def _restorer(wide: bool, scale: float, least: float, *, whole: bool) -> Restore:
    """As the library restores them: multiplied and added as doubles, then rounded to their type."""

    def restore(content: bytes) -> bytes:
        numbers = memoryview(content).cast("H") if wide else memoryview(content)
        if whole:
            return array("i", (math.floor(n * scale + least + 0.5) for n in numbers)).tobytes()
        return array("f", (n * scale + least for n in numbers)).tobytes()

    return restore


def _source(pieces: list[Place], restore: Restore | None) -> Source:
    if restore is None:
        return pieces[0] if len(pieces) == 1 else pieces
    return lambda: restore(b"".join(_content(place) for place in pieces))


def _content(place: Place) -> bytes:
    with place.file.open("rb") as file:
        file.seek(place.start)
        content = file.read(place.bytes)
    if len(content) != place.bytes:
        raise Bad(f"`{place.file.name}` got shorter while it was open")
    return content


def _pieces(shards: list[Place], ends: list[int], at: int, size: int) -> Iterator[Place]:
    """Where `size` bytes from byte `at` of the joined shards lie; `ends` is where each shard ends.

    The first shard is looked up: a hundred thousand empty weights in thousands of shards would
    otherwise take minutes.
    """
    index = bisect_right(ends, at)
    while size > 0:
        shard = shards[index]
        start = at - (ends[index] - shard.bytes)
        length = min(size, shard.bytes - start)
        if length:
            yield Place(shard.file, start, length)
        size, at, index = size - length, at + length, index + 1
