"""Reads what `torch.save` wrote, without unpickling: the zip form, the older one, and folders.

Knows: where tensors are described and where their bytes lie. Does not know: PyTorch; nothing of it
is imported, and no name in a file is looked up (`_pickle.py`). A file that holds more than tensors
and plain values is refused, with the name that it wanted to call.

    zip:   NAME/data.pkl describes, NAME/data/KEY holds the numbers of a storage, NAME/byteorder
    older: pickles of a magic number, a version, the machine's sizes, the description and the list
           of storage keys; then for each key a count u64 and the numbers
"""

from __future__ import annotations

import itertools
import mmap
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from llm_runner_router.models.checkpoint import Checkpoint, Weight
from llm_runner_router.models.info import ModelInfo

from ._files import MAX_ENTRIES, Bad, Opened, Place, Source, inside, naming
from ._hub import adapter, checked_info, facts
from ._parts import Part, all_sources, all_weights, count, distinct, indexed
from ._pickle import Pickle, Storage, View
from ._zip import Entry, entries

MAX_PICKLE: Final = 64 * 1024 * 1024
MAX_DEPTH: Final = 8
"""Containers within containers that are searched for tensors."""
_MAGIC: Final = 0x1950A86A20F9469CFC6C
_MAGIC_BYTES: Final = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
SIZES: Final[dict[str, int]] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1, "U16": 2, "U32": 4, "U64": 8, "C64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "module", "weights", "params")
"""Keys under which training programs put the weights, beside their own state."""
_FOLDER: Final = re.compile(
    r"^(pytorch_model|model|adapter_model|consolidated)([-.]\d+(-of-\d+)?)?\.(bin|pt|pth)$"
)
MAX_NAME: Final = 1024


def sniff(path: Path, head: bytes) -> bool:
    """Whether `path` is a PyTorch file, a pickle, or a folder with PyTorch files."""
    if not head:
        return path.is_dir() and (_index(path) is not None or bool(_names(path)))
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    if head[:4] != b"PK\x03\x04":
        return False
    try:
        with path.open("rb") as file:
            return any(name.endswith("/data.pkl") for name in entries(file))
    except (Bad, OSError):  # damaged: by the name of its first entry, so that it is explained
        length = int.from_bytes(head[26:28], "little")
        return head[30 : 30 + length].endswith(b"/data.pkl")


def describe(path: Path) -> ModelInfo:
    """The facts of a file or a folder.

    Raises:
        ModelFileError: it is missing, damaged, or holds more than weights; says what.
    """
    with naming(path):
        return _load(path)[1]


def open_checkpoint(path: Path) -> Checkpoint:
    """The model at `path`, a file or a folder, with its weights mapped.

    Tensors that lie in the file in another order (transposed, every second) are copied when read.

    Raises:
        ModelFileError: as `describe`.
    """
    with naming(path):
        parts, info, config = _load(path)
    return Opened(path, info, config, all_weights(parts), all_sources(parts))


def _load(path: Path) -> tuple[list[Part], ModelInfo, dict[str, Any]]:
    parts = _read(path)
    weights = all_weights(parts)
    folder = path if path.is_dir() else path.parent
    config, fields = facts(folder, weights)
    notes = list(fields.pop("notes"))
    notes.append("PyTorch files can hold programs; this one was read without running anything")
    part, said = adapter(folder, weights, {part.path.name for part in parts})
    notes += said
    if not config and not part:
        notes.append("there is no `config.json` beside it, so its architecture is not known")
    info = checked_info(
        format="pytorch",
        bytes=sum(part.size for part in parts),
        part=part,
        notes=tuple(notes),
        **count(weights.values()),
        **fields,
    )
    return parts, info, config


def _index(folder: Path) -> Path | None:
    return next((p for p in sorted(folder.glob("*.bin.index.json")) if p.is_file()), None)


def _names(folder: Path) -> list[str]:
    names = sorted(p.name for p in folder.iterdir() if _FOLDER.match(p.name))
    if "pytorch_model.bin" in names:
        return ["pytorch_model.bin"]
    first = [name for name in names if name.startswith("pytorch_model")]
    return first or names


def _read(path: Path) -> list[Part]:
    if not path.is_dir():
        return [_read_part(path)]
    if (index := _index(path)) is not None:
        return indexed(path, index, _read_part)
    names = _names(path)
    if not names:
        raise Bad("the folder has no PyTorch file")
    parts = [_read_part(inside(path, name, "the file")) for name in names]
    distinct(parts)
    return parts


def _read_part(path: Path) -> Part:
    """One file, whichever of the two forms it has."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        magic = file.read(4)
        if magic == b"PK\x03\x04":
            found = entries(file)
            value, places = _zipped(path, found, lambda e: _content(path, e))
        elif magic[:1] == b"\x80":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                value, places = _older(path, data)
        else:
            raise Bad(f"it begins with {magic!r}: neither a zip archive nor a pickle")
    weights: dict[str, Weight] = {}
    sources: dict[str, Source] = {}
    for name, view in _tensors(value):
        if name in weights:
            raise Bad(f"two of its tensors would be called {name[:80]!r}")
        weights[name], sources[name] = _weight(name, view, places)
    if not weights:
        raise Bad("there are no tensors in it")
    return Part(path, size, weights, sources)


# ---------------------------------------------------------------- the two forms


def _zipped(
    path: Path, found: dict[str, Entry], content: Callable[[Entry], bytes]
) -> tuple[Any, dict[str, Place]]:
    """What the archive describes, and where each storage lies."""
    names = [name for name in found if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise Bad(f"its archive has {len(names)} entries `…/data.pkl`, not one")
    top = names[0].removesuffix("data.pkl")
    if f"{top}constants.pkl" in found or any(n.startswith(f"{top}code/") for n in found):
        raise Bad("it is a TorchScript program and not weights alone")
    packed = next((entry.name for entry in found.values() if not entry.stored), None)
    if packed is not None:
        raise Bad(f"the entry {packed[:80]!r} of its archive is compressed, which no weights are")
    order = found.get(f"{top}byteorder")
    if order is not None and content(order) != b"little":
        raise Bad("its numbers are big-endian; save it on a little-endian machine")
    if found[names[0]].bytes > MAX_PICKLE:
        raise Bad(f"its description has more than {MAX_PICKLE} bytes")
    pickle = Pickle(content(found[names[0]]))
    value = pickle.load()
    if pickle.at != found[names[0]].bytes:
        raise Bad("bytes follow the end of its pickle")
    stored = f"{top}data/"
    places = {
        name.removeprefix(stored): Place(path, entry.start, entry.bytes)
        for name, entry in found.items()
        if name.startswith(stored)
    }
    return value, places


def _content(path: Path, entry: Entry) -> bytes:
    if entry.bytes > MAX_PICKLE:
        raise Bad(f"the entry {entry.name[:80]!r} of its archive has {entry.bytes} bytes")
    with path.open("rb") as file:
        file.seek(entry.start)
        return file.read(entry.bytes)


def _older(path: Path, data: mmap.mmap) -> tuple[Any, dict[str, Place]]:
    """What the pickles describe, and where each storage lies behind them."""
    pickle = Pickle(data)
    first = pickle.load()
    if first != _MAGIC:
        raise Bad("it is a pickle, but not one that PyTorch wrote")
    if pickle.load() != 1001:
        raise Bad("its version is not 1001, the only one there is")
    sizes = pickle.load()
    if not isinstance(sizes, dict) or sizes.get("little_endian") is not True:
        raise Bad("its numbers are big-endian; save it on a little-endian machine")
    value = pickle.load()
    keys = pickle.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Bad("its list of storages is damaged")
    at = pickle.at
    places: dict[str, Place] = {}
    for key in keys:
        if key not in pickle.storages or key in places:
            raise Bad(f"its storage {key[:80]!r} is not described, or stands there twice")
        storage = pickle.storages[key]
        width = _width(storage)
        elements = int.from_bytes(data[at : at + 8], "little")
        if elements != storage.whole or at + 8 + elements * width > len(data):
            raise Bad(f"its storage {key[:80]!r} has {elements} elements, more than the file holds")
        places[key] = Place(path, at + 8, elements * width)
        at += 8 + elements * width
    if at != len(data):
        raise Bad(f"{len(data) - at} bytes follow its last storage")
    return value, places


# ---------------------------------------------------------------- tensors


def _tensors(value: Any) -> Iterator[tuple[str, View]]:
    """Every tensor with its name: keys joined by dots, without the key that wraps the weights."""
    if isinstance(value, View):
        yield "tensor", value
        return
    if isinstance(value, dict) and not any(isinstance(v, View) for v in value.values()):
        for key in _WRAPPERS:
            inner = value.get(key)
            if isinstance(inner, dict) and any(isinstance(v, View) for v in inner.values()):
                value = inner
                break
    seen: set[int] = set()
    stack: list[tuple[str, Any, int]] = [("", value, 0)]
    found = 0
    while stack:
        prefix, item, depth = stack.pop()
        if isinstance(item, View):
            found += 1
            if found > MAX_ENTRIES:
                raise Bad(f"it holds more than {MAX_ENTRIES} tensors")
            yield prefix, item
        elif isinstance(item, dict | list | tuple):
            if id(item) in seen or depth > MAX_DEPTH:
                continue  # shared or in a circle: its tensors have a name already
            seen.add(id(item))
            pairs = item.items() if isinstance(item, dict) else enumerate(item)
            below = [
                (_joined(prefix, key), inner, depth + 1)
                for key, inner in pairs
                if isinstance(inner, View | dict | list | tuple)
            ]
            stack.extend(reversed(below))


def _joined(prefix: str, key: object) -> str:
    """The name of what lies under a key. Keys can be shared: a long one costs nothing."""
    name = key if isinstance(key, str) else "bytes" if isinstance(key, bytes) else repr(key)
    if len(prefix) + len(name) > MAX_NAME:
        raise Bad(f"a name in it has more than {MAX_NAME} characters")
    return f"{prefix}.{name}" if prefix else name


def _weight(name: str, view: View, places: dict[str, Place]) -> tuple[Weight, Source]:
    """A tensor and where it lies, with its storage checked."""
    storage, width = view.storage, SIZES[view.dtype]
    shown = f"the tensor {name[:80]!r}"
    place = places.get(storage.key)
    if place is None:
        raise Bad(f"{shown} lies in the storage {storage.key[:80]!r}, which is missing")
    have = place.bytes // _width(storage)
    if _width(storage) not in (1, width) or storage.whole > have:
        raise Bad(f"{shown}: its storage claims {storage.whole} elements and has {have}")
    elements = storage.count * _width(storage) // width
    total = 1
    for length in view.shape:
        total *= length
    last = view.offset + sum(
        (n - 1) * s for n, s in zip(view.shape, view.strides, strict=True) if n > 0
    )
    if total and last >= elements:
        raise Bad(f"{shown} of shape {view.shape} reaches out of its storage of {elements}")
    if total > elements:
        raise Bad(f"{shown} of shape {view.shape} shows elements of its storage more than once")
    start = place.start + storage.start * _width(storage) + view.offset * width
    weight = Weight(name, view.dtype, view.shape, total * width)
    if _contiguous(view):
        return weight, Place(place.file, start, weight.bytes)
    span = Place(place.file, start, (last - view.offset + 1) * width)
    return weight, lambda: _gathered(span, view, width)


def _width(storage: Storage) -> int:
    """Bytes of an element; a storage without a type counts bytes."""
    return 1 if storage.dtype is None else SIZES[storage.dtype]


def _contiguous(view: View) -> bool:
    if 0 in view.shape:
        return True
    expected = 1
    for length, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _gathered(span: Place, view: View, width: int) -> bytes:
    """The elements of a view in the order of its shape, copied one innermost row at a time."""
    sizes = [(n, s) for n, s in zip(view.shape, view.strides, strict=True) if n != 1]
    *outer, (length, stride) = sizes
    with span.file.open("rb") as file:
        file.seek(span.start)
        content = file.read(span.bytes)
    if len(content) != span.bytes:
        raise Bad(f"`{span.file.name}` got shorter while it was open")
    items = _items(memoryview(content), width)
    steps = [range(0, n * s, s) if s else [0] * n for n, s in outer]
    rows = []
    for places in itertools.product(*steps):
        at = sum(places)
        if stride:
            rows.append(items[at : at + (length - 1) * stride + 1 : stride].tobytes())
        else:
            rows.append(items[at : at + 1].tobytes() * length)
    return b"".join(rows)


def _items(content: memoryview, width: int) -> memoryview[Any]:
    if width == 8:
        return content.cast("Q")
    if width == 4:
        return content.cast("I")
    return content.cast("H") if width == 2 else content
