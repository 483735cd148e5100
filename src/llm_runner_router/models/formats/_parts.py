"""Models whose weights are spread over files, and the index that says where each tensor is.

Knows: `*.index.json` with its `weight_map`. Does not know: how one file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from llm_runner_router.models.checkpoint import Weight

from ._files import Bad, Source, inside, read_object

MAX_PARTS: Final = 4096
MAX_INDEX: Final = 64 * 1024 * 1024


class Part(Struct, frozen=True):
    """One file: its tensors in the order of their data, where each lies, and its metadata."""

    path: Path
    size: int
    weights: dict[str, Weight]
    sources: dict[str, Source]
    metadata: dict[str, str] = {}


def indexed(folder: Path, index: Path, read: Callable[[Path], Part]) -> list[Part]:
    """The parts that an index lists; every tensor where it says.

    Raises:
        Bad: the index is not sound, or a part of it is missing or not sound.
        OSError: something cannot be read.
    """
    where = read_object(index, MAX_INDEX).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise Bad(f"`{index.name}` has no `weight_map`")
    listed: dict[str, list[str]] = {}
    for name, file in where.items():
        listed.setdefault(str(file), []).append(name)
    if len(listed) > MAX_PARTS:
        raise Bad(f"`{index.name}` lists {len(listed)} files, more than {MAX_PARTS}")
    parts = []
    for file in sorted(listed):
        part = read(inside(folder, file, f"`{index.name}`: the part"))
        missing = [name for name in listed[file] if name not in part.weights]
        if missing:
            raise Bad(f"`{file}` lacks the tensor {missing[0][:80]!r} that `{index.name}` lists")
        parts.append(part)
    distinct(parts)
    return parts


def distinct(parts: Iterable[Part]) -> None:
    """No tensor in two files.

    Raises:
        Bad: there is one; names it and the files.
    """
    seen: dict[str, Path] = {}
    for part in parts:
        for name in part.weights:
            if name in seen:
                first, second = seen[name].name, part.path.name
                raise Bad(f"the tensor {name[:80]!r} is in `{first}` and in `{second}`")
            seen[name] = part.path


def all_weights(parts: Iterable[Part]) -> dict[str, Weight]:
    """The tensors of all parts."""
    return {name: weight for part in parts for name, weight in part.weights.items()}


def all_sources(parts: Iterable[Part]) -> dict[str, Source]:
    """Where the tensors of all parts lie."""
    return {name: source for part in parts for name, source in part.sources.items()}


def count(weights: Iterable[Weight] | Iterator[Weight]) -> dict[str, Any]:
    """The fields of `ModelInfo` that a list of tensors tells."""
    types: dict[str, int] = {}
    parameters = tensors = 0
    for weight in weights:
        types[weight.dtype] = types.get(weight.dtype, 0) + weight.bytes
        product = 1
        for length in weight.shape:
            product *= length
        parameters += product
        tensors += 1
    most = max(types, key=types.__getitem__) if types else ""
    return {"types": types, "parameters": parameters, "tensors": tensors, "quantisation": most}
