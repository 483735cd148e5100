"""Reads ONNX: one file with its external data, or a folder, also as onnxruntime-genai lays it out.

Knows: the fields of `ModelProto`, `GraphProto` and `TensorProto` (onnx.proto3, IR version 13) that
tell what a model holds; `genai_config.json`. Does not know: what the graph computes; nothing is
run, and tensors inside of branches and loops are not looked for.

External data must lie in the model's folder: a path that leads out of it made `onnx` read any file
of the machine (CVE-2022-25882, CVE-2024-27318).
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from llm_runner_router.models.checkpoint import Checkpoint, Weight
from llm_runner_router.models.info import ModelInfo

from ._files import MAX_ENTRIES, Bad, Opened, Place, Source, inside, naming, read_object
from ._hub import checked_info, facts
from ._parts import count
from ._protobuf import Message, Span

GENAI: Final = "genai_config.json"
MAX_DIMS: Final = 16
MAX_OPSETS: Final = 64
MAX_TYPED: Final = 1 << 24
"""Bytes of all tensors' numbers that are not raw: exporters write a few scalars so."""
_HIGH: Final = bytes(range(128, 256))
_TYPES: Final[dict[int, tuple[str, int]]] = {
    1: ("F32", 32), 2: ("U8", 8), 3: ("I8", 8), 4: ("U16", 16), 5: ("I16", 16), 6: ("I32", 32),
    7: ("I64", 64), 9: ("BOOL", 8), 10: ("F16", 16), 11: ("F64", 64), 12: ("U32", 32),
    13: ("U64", 64), 14: ("C64", 64), 16: ("BF16", 16), 17: ("F8_E4M3", 8), 19: ("F8_E5M2", 8),
    21: ("U4", 4), 22: ("I4", 4), 23: ("F4", 4), 24: ("F8_E8M0", 8), 25: ("U2", 2), 26: ("I2", 2),
}  # fmt: skip
"""`TensorProto.DataType`: our name, bits."""
_STANDARD: Final = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "ai.onnx.contrib")
"""Domains of operators that onnxruntime brings along, or its own extensions do."""
_NEXT: Final = frozenset(b"\x12\x1a\x22\x28\x32\x3a\x42\x72")
"""Tags of the fields that may follow the first one of a `ModelProto`."""


def sniff(path: Path, head: bytes) -> bool:
    """Whether `path` is an ONNX file: `ir_version` first, another field of a model next."""
    if not head:
        return path.is_dir() and _main(path) is not None
    return len(head) > 2 and head[0] == 0x08 and 1 <= head[1] < 64 and head[2] in _NEXT


def describe(path: Path) -> ModelInfo:
    """The facts of a file or a folder.

    Raises:
        ModelFileError: it is missing, damaged, or its external data lies elsewhere.
    """
    with naming(path):
        return _load(path)[0]


def open_checkpoint(path: Path) -> Checkpoint:
    """The initializers of the model's graph, by their names in the graph.

    Numbers of four and two bits are packed as in the file; their types are `I4 U4 I2 U2`.

    Raises:
        ModelFileError: as `describe`.
    """
    with naming(path):
        info, config, graph = _load(path)
    return Opened(path, info, config, graph.weights, graph.sources)


def _main(folder: Path) -> str | None:
    """The graph of a folder: the one `genai_config.json` names, else the usual names."""
    if (folder / GENAI).is_file():
        decoder = _dict(_dict(_safe(folder / GENAI), "model"), "decoder")
        name = decoder.get("filename", "model.onnx")
        return name if isinstance(name, str) else "model.onnx"
    for name in ("model.onnx", "onnx/model.onnx", "decoder_model_merged.onnx"):
        if (folder / name).is_file():
            return name
    found = sorted(folder.glob("*.onnx"))
    return found[0].name if len(found) == 1 else None


def _safe(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (Bad, OSError):
        return {}  # told by `describe`


def _dict(value: dict[str, Any], key: str) -> dict[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def _load(path: Path) -> tuple[ModelInfo, dict[str, Any], _Graph]:
    file = path
    if path.is_dir():
        main = _main(path)
        if main is None:
            raise Bad("the folder has no `.onnx` file, or several and no `genai_config.json`")
        file = inside(path, main, "the graph")
    graph = _Graph(file)
    folder = file.parent
    if folder.name == "onnx" and not (folder / "config.json").is_file():
        folder = folder.parent
    config, fields = facts(folder)
    genai = read_object(file.parent / GENAI)
    notes = list(fields.pop("notes"))
    notes.append(f"ONNX IR {graph.version}, " + ", ".join(graph.opsets))
    if genai:
        fields |= {k: v for k, v in _genai(genai).items() if v}
        config = {**config, "genai_config": genai}
        notes.append("laid out for `onnxruntime-genai`")
    else:
        if "logits" not in graph.outputs and fields["task"] == "generate":
            fields["task"] = "embed"
        notes.append("a graph alone, for `onnxruntime`")
    custom = sorted(graph.domains.difference(_STANDARD))
    if custom:
        notes.append(
            f"needs operators of {', '.join(custom)[:200]}, whose libraries are not loaded"
        )
    info = checked_info(
        format="onnx",
        bytes=sum(p.stat().st_size for p in {file, *graph.files}),
        notes=tuple(notes),
        **count(graph.weights.values()),
        **fields,
    )
    return info, config, graph


def _genai(genai: dict[str, Any]) -> dict[str, Any]:
    """The fields of `ModelInfo` that onnxruntime-genai's configuration tells."""
    model = _dict(genai, "model")
    decoder = _dict(model, "decoder")

    def number(block: dict[str, Any], key: str) -> int:
        value = block.get(key)
        return value if type(value) is int and 0 < value < 1 << 40 else 0

    kind = model.get("type")
    return {
        "architecture": kind[:100] if isinstance(kind, str) else "",
        "context": number(model, "context_length"),
        "vocabulary": number(model, "vocab_size"),
        "layers": number(decoder, "num_hidden_layers"),
        "width": number(decoder, "hidden_size"),
        "heads": number(decoder, "num_attention_heads"),
        "kv_heads": number(decoder, "num_key_value_heads"),
        "key_length": number(decoder, "head_size"),
        "value_length": number(decoder, "head_size"),
        "task": "generate",
    }


class _Graph:
    """What one ONNX file holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = 0
        self.opsets: list[str] = []
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.domains: set[str] = set()
        self.weights: dict[str, Weight] = {}
        self.sources: dict[str, Source] = {}
        self.files: set[Path] = set()
        self._typed = 0
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 8:
                raise Bad(f"it has {size} bytes, too few for an ONNX model")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._model(Message(data), (0, size))

    def _model(self, message: Message, span: Span) -> None:
        graphs = 0
        for number, value in message.fields(span):
            if number == 1 and isinstance(value, int):
                self.version = value
            elif number == 7 and not isinstance(value, int):
                graphs += 1
                self._graph(message, value)
            elif number == 8 and not isinstance(value, int):
                self.opsets.append(_opset(message, value))
                if len(self.opsets) > MAX_OPSETS:
                    raise Bad(f"it names more than {MAX_OPSETS} sets of operators")
        if not 1 <= self.version < 64:
            raise Bad(f"its `ir_version` is {self.version}: it is no ONNX model")
        if graphs != 1:
            raise Bad(f"it has {graphs} graphs, not one")

    def _graph(self, message: Message, span: Span) -> None:
        for number, value in message.fields(span):
            if isinstance(value, int):
                continue
            if number == 1:
                self.domains.update(message.text(v) for n, v in message.fields(value) if n == 7)
            elif number == 5:
                self._tensor(message, value)
            elif number in (11, 12):
                names = [message.text(v) for n, v in message.fields(value) if n == 1]
                (self.inputs if number == 11 else self.outputs).extend(names[:1])

    def _tensor(self, message: Message, span: Span) -> None:
        said = _collected(message, span)
        if said.code == 8:
            return  # texts
        kind, bits = _TYPES.get(said.code, ("", 0))
        shown = f"the tensor {said.name[:80]!r}"
        if not bits:
            raise Bad(f"{shown} has the unknown type {said.code}")
        if said.name in self.weights or len(self.weights) >= MAX_ENTRIES:
            raise Bad(f"{shown} stands there twice, or there are more than {MAX_ENTRIES}")
        if len(said.dims) > MAX_DIMS or any(not 0 <= n < 1 << 48 for n in said.dims):
            raise Bad(f"{shown} has the shape {str(said.dims)[:80]}")
        size = -(-bits * math.prod(said.dims) // 8)
        self.weights[said.name] = Weight(said.name, kind, tuple(said.dims), size)
        if said.external:
            self.sources[said.name] = self._outside(shown, said.outside, size)
        else:
            self.sources[said.name] = self._within(shown, message, said.data, size, bits)

    def _outside(self, shown: str, said: dict[str, str], size: int) -> Place:
        file = inside(self.path.parent, said.get("location"), f"{shown}: the external file")
        numbers = [said.get("offset", "0"), said.get("length", str(size))]
        if not all(n.isascii() and n.isdigit() and len(n) < 19 for n in numbers):
            raise Bad(f"{shown} lies at {numbers[0][:40]!r} for {numbers[1][:40]!r} bytes")
        offset, length = map(int, numbers)
        have = file.stat().st_size
        if length != size or offset + size > have:
            raise Bad(
                f"{shown} takes {size} bytes, but is said to lie at byte {offset} for {length} in"
                f" `{file.name}` of {have}"
            )
        self.files.add(file)
        return Place(file, offset, size)

    def _within(
        self, shown: str, message: Message, data: dict[int, int | Span], size: int, bits: int
    ) -> Source:
        """Raw bytes, or one of the fields of typed numbers, which are few."""
        field, span = next(iter(data.items()), (9, (0, 0)))
        if len(data) > 1:
            raise Bad(f"{shown} has its numbers in two fields")
        if isinstance(span, int):
            raise Bad(f"{shown} has numbers that are not packed")
        if field in (4, 9, 10) and span[1] - span[0] != size:
            raise Bad(f"{shown} takes {size} bytes, but {span[1] - span[0]} are there")
        if field in (4, 9, 10):
            return Place(self.path, span[0], size)
        width = max(1, bits // 8)
        numbers = message.raw(span, MAX_TYPED)
        self._typed += len(numbers)
        if self._typed > MAX_TYPED:
            raise Bad(f"more than {MAX_TYPED} bytes of numbers in it are not raw")
        # Each number ends in a byte below 128; decoding them waits until someone reads them.
        there = len(numbers.translate(None, _HIGH)) * width
        if there != size or numbers[-1:] > b"\x7f":
            raise Bad(f"{shown} takes {size} bytes, but {there} are there")
        return lambda: _typed(numbers, width)


class _Said(Struct):
    """The fields of a `TensorProto` that matter."""

    name: str = ""
    code: int = 0
    dims: list[int] = []
    data: dict[int, int | Span] = {}
    """The fields that hold numbers, of which one should be there."""
    outside: dict[str, str] = {}
    external: bool = False


def _collected(message: Message, span: Span) -> _Said:
    said = _Said()
    for number, value in message.fields(span):
        if number == 1:
            said.dims.extend(message.varints(value) if _short(value) else [-1])
            if len(said.dims) > MAX_DIMS:
                shape = f"{str(said.dims)[:80]}, more than {MAX_DIMS} sizes"
                raise Bad(f"the tensor {said.name[:80]!r} has the shape {shape}")
        elif number == 2 and isinstance(value, int):
            said.code = value
        elif number == 8:
            said.name = message.text(value)
        elif number == 13 and not isinstance(value, int):
            said.outside.update([_pair(message, value)])
        elif number == 14:
            said.external = value == 1
        elif number in (4, 5, 7, 9, 10, 11):
            if number in said.data:
                raise Bad(f"the tensor {said.name[:80]!r} has its numbers in two pieces")
            said.data[number] = value
    return said


def _typed(numbers: bytes, width: int) -> bytes:
    """Packed numbers as little-endian bytes of that width."""
    mask = (1 << 8 * width) - 1
    found = bytearray()
    for value in Message(numbers).varints((0, len(numbers))):
        found += (value & mask).to_bytes(width, "little")
    return bytes(found)


def _short(value: int | Span) -> bool:
    return isinstance(value, int) or value[1] - value[0] <= 10 * MAX_DIMS


def _opset(message: Message, span: Span) -> str:
    domain, version = "", 0
    for number, value in message.fields(span):
        if number == 1:
            domain = message.text(value)
        elif number == 2 and isinstance(value, int):
            version = value
    return f"{domain[:60] or 'ai.onnx'} {version}"


def _pair(message: Message, span: Span) -> tuple[str, str]:
    found = {number: message.text(value) for number, value in message.fields(span)}
    return found.get(1, ""), found.get(2, "")
