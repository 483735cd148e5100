"""Reads safetensors: one file, or a folder as Hugging Face lays it out. Nothing is loaded.

Knows: the layout, and where the parts of a model of several files are listed. Does not know: what
the numbers mean. Facts of the model come from the files beside it (`_hub.py`).

    length u64 · JSON · data
    JSON: {"name": {"dtype", "shape", "data_offsets": [from, to]}, …, "__metadata__": {…}}

Stricter than needed to read sound files: the data must be covered wholly and once, because what one
program overlooks another one may read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from llm_runner_router.models.checkpoint import Checkpoint, Weight
from llm_runner_router.models.info import ModelInfo

from ._files import MAX_ENTRIES, Bad, Opened, Place, Source, inside, naming, parse_json
from ._hub import adapter, checked_info, facts
from ._parts import Part, all_sources, all_weights, count, distinct, indexed

MAX_HEADER: Final = 100 * 1024 * 1024
"""Bytes of a header; the limit that the format's own library sets."""
MAX_DIMS: Final = 8
INDEX: Final = "model.safetensors.index.json"
BITS: Final[dict[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
    "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits per number of each type, as in the `Dtype` of safetensors 0.8."""
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")


def sniff(path: Path, head: bytes) -> bool:
    """Whether `path` is a safetensors file, or a folder with some."""
    if not head:
        return path.is_dir() and _names_of(path) != []
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and 2 <= length <= MAX_HEADER and head[8:9] == b"{"


def describe(path: Path) -> ModelInfo:
    """The facts in the headers of `path`, a file or a folder, checked.

    Raises:
        ModelFileError: something is missing, unreadable or not sound; says what and why.
    """
    with naming(path):
        return load(path)[1]


def open_checkpoint(path: Path) -> Checkpoint:
    """The model at `path`, a file or a folder, with its weights mapped.

    Raises:
        ModelFileError: as `describe`.
    """
    with naming(path):
        parts, info, config = load(path)
    return Opened(path, info, config, all_weights(parts), all_sources(parts))


def read_parts(path: Path) -> list[Part]:
    """The headers of all files of the model at `path`, checked.

    Raises:
        Bad: something is not sound.
        OSError: something cannot be read.
    """
    if not path.is_dir():
        return [read_part(path)]
    index = next((p for p in (path / INDEX, *sorted(path.glob("*.safetensors.index.json")))
                  if p.is_file()), None)  # fmt: skip
    if index is not None:
        return indexed(path, index, read_part)
    names = _names_of(path)
    if not names:
        raise Bad("the folder has no `.safetensors` file")
    parts = [read_part(inside(path, name, "the file")) for name in names]
    distinct(parts)
    return parts


def read_part(path: Path) -> Part:
    """The header of one file, checked.

    Raises:
        Bad: it is not sound.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 10:
            raise Bad(f"it has {size} bytes, too few for a safetensors header")
        if not 2 <= length <= MAX_HEADER:
            raise Bad(f"its header claims {length} bytes, not 2 to {MAX_HEADER}: no safetensors")
        if 8 + length > size:
            raise Bad(f"its header claims {length} bytes, more than the file can hold")
        text = file.read(length)
    if text[:1] != b"{":
        raise Bad(f"its header begins with {text[:4]!r}, not with `{{`: no safetensors")
    header = parse_json(text, "the header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Bad("its `__metadata__` is not an object of strings")
    if len(header) > MAX_ENTRIES:
        raise Bad(f"it claims {len(header)} tensors, more than {MAX_ENTRIES}")
    start = 8 + length
    found = sorted(_entries(header, size - start), key=lambda e: (e[1], e[2]))
    _covered(found, size - start)
    weights = {w.name: w for w, _, _ in found}
    sources: dict[str, Source] = {
        w.name: Place(path, start + begin, w.bytes) for w, begin, _ in found
    }
    return Part(path, size, weights, sources, metadata)


def _entries(header: dict[str, Any], room: int) -> Iterator[tuple[Weight, int, int]]:
    """The tensors, each checked against itself: type, shape and length agree."""
    for name, entry in header.items():
        shown = f"the tensor {name[:80]!r}"
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise Bad(f"{shown} does not have exactly `dtype`, `shape` and `data_offsets`")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        bits = BITS.get(dtype) if isinstance(dtype, str) else None
        if bits is None:
            raise Bad(f"{shown} has the unknown type {str(dtype)[:40]!r}")
        if not _sizes(shape) or len(shape) > MAX_DIMS:
            raise Bad(f"{shown} has the shape {str(shape)[:80]}, not up to {MAX_DIMS} sizes")
        if not _sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= room:
            raise Bad(f"{shown} has the offsets {str(offsets)[:80]}, outside its {room} bytes")
        count = bits
        for length in shape:
            count *= length
            # A product of eight such numbers is small; only one that fits the file goes on.
            if count > 8 * room and 0 not in shape:
                raise Bad(f"{shown} of shape {shape} is larger than the file")
        if count % 8 or count // 8 != offsets[1] - offsets[0]:
            raise Bad(
                f"{shown}: {dtype} of shape {shape} takes {count / 8:g} bytes,"
                f" but its offsets span {offsets[1] - offsets[0]}"
            )
        yield Weight(name, dtype, tuple(shape), count // 8), offsets[0], offsets[1]


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


def _covered(found: list[tuple[Weight, int, int]], room: int) -> None:
    """The tensors follow each other without a gap or an overlap, from first to last byte."""
    end, before = 0, ""
    for weight, begin, stop in found:
        if begin < end:
            raise Bad(f"the tensors {before[:80]!r} and {weight.name[:80]!r} overlap")
        if begin > end:
            raise Bad(f"{begin - end} bytes before {weight.name[:80]!r} belong to no tensor")
        end, before = stop, weight.name
    if end != room:
        raise Bad(f"its tensors take {end} bytes, but {room} follow the header")


# ---------------------------------------------------------------- models of several files


def _names_of(folder: Path) -> list[str]:
    """The weight files of a folder, or those that an index lists first; adapters come last."""
    names = sorted(p.name for p in folder.glob("*.safetensors"))
    parts = [name for name in names if _PART.search(name)]
    for choice in ("model.safetensors", "adapter_model.safetensors"):
        if choice in names:
            return [choice]
    if len(names) == 1 or parts == names:
        return names
    # `consolidated.safetensors` is Mistral's own copy of the same weights.
    return parts or [name for name in names if not name.startswith("consolidated")] or names


# ---------------------------------------------------------------- facts


def load(path: Path) -> tuple[list[Part], ModelInfo, dict[str, Any]]:
    """The files of the model at `path`, its facts, and its `config.json`.

    Raises:
        Bad: something is not sound.
        OSError: something cannot be read.
    """
    parts = read_parts(path)
    folder = path if path.is_dir() else path.parent
    names = {name for part in parts for name in part.weights}
    config, fields = facts(folder, names)
    notes = list(fields.pop("notes"))
    found = None if path.is_dir() else _PART.search(path.name)
    if found and int(found.group(2)) > 1:
        notes.append(f"it is one of {int(found.group(2))} parts; name the folder for the model")
    part, said = adapter(folder, names, {part.path.name for part in parts})
    notes += said
    if not config and not part:
        notes.append("there is no `config.json` beside it, so its architecture is not known")
    info = checked_info(
        format="safetensors",
        bytes=sum(part.size for part in parts),
        part=part,
        notes=tuple(notes),
        **count(all_weights(parts).values()),
        **fields,
    )
    return parts, info, config
