"""Reads GGUF: the facts in its header, and its weights as they lie in the file.

Knows: the metadata keys that matter here, and how a model is split over several files. Does not
know: the layout of the header (`_gguf_header.py`), how the weights are used.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Final, Literal

from msgspec import Struct

from llm_runner_router.models.checkpoint import Checkpoint, Weight
from llm_runner_router.models.info import ENCODERS, PARTS, ModelInfo

from ._files import Bad, Opened, Place, naming
from ._gguf_header import MAGIC, Header, Skipped, Tensor, Value, bitnet, header_of, open_header
from ._gguf_metadata import Metadata
from .gguf_types import BITNET, KINDS

__all__ = ["Header", "Skipped", "Tensor", "describe", "open_checkpoint", "read_header", "sniff"]

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def sniff(path: Path, head: bytes) -> bool:
    """Whether `path` is a GGUF file of any version."""
    return head[:4] == MAGIC


def describe(path: Path) -> ModelInfo:
    """The facts in the header of `path`, checked; of all parts where it is the first of several.

    Raises:
        ModelFileError: the file is missing, unreadable or not a sound GGUF file; says why.
    """
    with naming(path):
        return _info(_parts(path))


def describe_start(start: bytes, size: int) -> ModelInfo:
    """The facts in the beginning of a GGUF file of `size` bytes, checked.

    Raises:
        Bad: it is not sound, or the header goes on behind `start`.
    """
    return _info([_Part(Path(), header_of(start, size), size)])


def read_header(path: Path) -> Header:
    """The whole header of `path`, checked.

    Raises:
        ModelFileError: as `describe`.
    """
    with naming(path):
        return open_header(path)[0]


def open_checkpoint(path: Path) -> Checkpoint:
    """The model at `path` with its weights mapped; `config` is the metadata (see `Metadata`).

    A weight's `dtype` is the name of its GGUF type, its shape is turned round to count outermost
    first, and its bytes are the blocks as they lie in the file.

    Raises:
        ModelFileError: as `describe`.
    """
    with naming(path):
        parts = _parts(path)
        info = _info(parts)
    weights: dict[str, Weight] = {}
    places: dict[str, Place] = {}
    for part in parts:
        for tensor in part.header.tensors:
            dtype = _kind(tensor, info.architecture)
            shape = tuple(reversed(tensor.shape))
            weights[tensor.name] = Weight(tensor.name, dtype, shape, tensor.bytes)
            at = part.header.data + tensor.offset
            places[tensor.name] = Place(part.path, at, tensor.bytes)
    return Opened(path, info, Metadata(path, parts[0].header), weights, places)


class _Part(Struct, frozen=True):
    """One file of a model, read."""

    path: Path
    header: Header
    size: int


def _parts(path: Path) -> list[_Part]:
    """All files of the model, the named one first; no tensor in two of them."""
    parts = [_Part(path, *open_header(path))]
    for sibling in _siblings(path, parts[0].header):
        with naming(sibling):
            parts.append(_Part(sibling, *open_header(sibling)))
    names = [tensor.name for part in parts for tensor in part.header.tensors]
    if len(names) != len(set(names)):
        raise Bad("two of its parts have a tensor of the same name")
    return parts


def _siblings(path: Path, header: Header) -> list[Path]:
    """The other parts of a file that was split.

    Raises:
        Bad: it is not the first part, or its name does not say the parts.
    """
    count = _int(header.fields, "split.count")
    if count <= 1:
        return []
    named = _SPLIT.search(path.name)
    if named is None or int(named[2]) != count:
        raise Bad(f"it is one of {count} parts, but is not named `…-00001-of-{count:05d}.gguf`")
    if named[1] != "00001":
        raise Bad(f"it is part {int(named[1])} of {count}; name the first part")
    stem = path.name[: named.start()]
    return [path.with_name(f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(2, count + 1)]


def _info(parts: list[_Part]) -> ModelInfo:
    fields = parts[0].header.fields
    tensors = [tensor for part in parts for tensor in part.header.tensors]
    architecture = _text(fields, "general.architecture")
    part = _part(fields, architecture)
    if not architecture and part != "imatrix":
        raise Bad("it does not say its architecture (`general.architecture`)")

    def number(key: str) -> int:
        return _int(fields, f"{architecture}.{key}")

    task = _task(fields, architecture)
    heads, width = number("attention.head_count"), number("embedding_length")
    head = width // heads if heads else 0
    return ModelInfo(
        format="gguf",
        architecture=architecture,
        name=_text(fields, "general.name"),
        license=_text(fields, "general.license"),
        bytes=sum(part.size for part in parts),
        tensors=len(tensors),
        context=number("context_length"),
        layers=number("block_count"),
        width=width,
        heads=heads,
        kv_heads=number("attention.head_count_kv") or heads,
        key_length=number("attention.key_length") or head,
        value_length=number("attention.value_length") or head,
        vocabulary=_vocabulary(fields) or number("vocab_size"),
        chat_template=_text(fields, "tokenizer.chat_template") or None,
        task=task,
        pooling=_pooling(fields, architecture),
        tokenizer=_tokenizer(fields),
        experts=number("expert_count"),
        experts_used=number("expert_used_count"),
        window=number("attention.sliding_window"),
        tied=task == "generate" and _tied(tensors),
        part=part,
        notes=_notes(tensors, architecture),
        **_counted(tensors, architecture),
    )


def _kind(tensor: Tensor, architecture: str) -> str:
    if bitnet(architecture, tensor.type):
        return BITNET[tensor.type]
    return KINDS[tensor.type].name


def _counted(tensors: list[Tensor], architecture: str) -> dict[str, Any]:
    types: dict[str, int] = {}
    parameters = 0
    for tensor in tensors:
        name = _kind(tensor, architecture)
        types[name] = types.get(name, 0) + tensor.bytes
        parameters += math.prod(tensor.shape)
    most = max(types, key=types.__getitem__) if types else ""
    return {"types": types, "parameters": parameters, "quantisation": most}


def _notes(tensors: list[Tensor], architecture: str) -> tuple[str, ...]:
    kinds = {BITNET[t.type] for t in tensors if bitnet(architecture, t.type)}
    if not kinds:
        return ()
    return (
        f"weights in {', '.join(sorted(kinds))} of bitnet.cpp, which llama.cpp does not read:"
        " `llmrr convert` repacks I2_S to TQ2_0 without loss",
    )


def _part(fields: dict[str, Value | Skipped], architecture: str) -> str:
    """What the file is if no model: `general.type` says it; older projectors are named `clip`."""
    said = _text(fields, "general.type")
    if said in PARTS:
        return said
    return "mmproj" if architecture == "clip" else ""


_TOKENIZERS = {"gpt2": "bpe", "llama": "spm", "bert": "wordpiece", "t5": "unigram"}
POOLINGS: Final = {1: "mean", 2: "cls", 3: "last", 4: "rank"}
"""`pooling_type`, as llama.cpp numbers it."""


def _tokenizer(fields: dict[str, Value | Skipped]) -> str:
    """The kind, and the name of the pre-tokenizer where there is one."""
    said = _text(fields, "tokenizer.ggml.model")[:40]
    pre = _text(fields, "tokenizer.ggml.pre")[:40]
    kind = _TOKENIZERS.get(said, "" if said == "no_vocab" else said)
    return f"{kind}:{pre}" if kind and pre else kind


def _task(
    fields: dict[str, Value | Skipped], architecture: str
) -> Literal["generate", "embed", "rerank"]:
    pooling = _pooling(fields, architecture)
    if pooling == "rank":
        return "rerank"
    encoder = any(word in architecture for word in ENCODERS)
    return "embed" if encoder or pooling else "generate"


def _pooling(fields: dict[str, Value | Skipped], architecture: str) -> str:
    """By llama.cpp's number; empty where there is none, which is 0."""
    said = fields.get(f"{architecture}.pooling_type")
    return POOLINGS.get(said, "") if isinstance(said, int) else ""


def _tied(tensors: list[Tensor]) -> bool:
    names = {tensor.name for tensor in tensors}
    return "token_embd.weight" in names and not names & {"output.weight", "cls.weight"}


def _vocabulary(fields: dict[str, Value | Skipped]) -> int:
    """The number of tokens; the arrays that belong to them must be as long."""
    tokens = _length(fields.get("tokenizer.ggml.tokens"))
    for key in ("scores", "token_type"):
        length = _length(fields.get(f"tokenizer.ggml.{key}"))
        if tokens and length and length != tokens:
            raise Bad(f"it has {tokens} tokens, but {length} entries in `tokenizer.ggml.{key}`")
    return tokens


def _length(value: Value | Skipped | None) -> int:
    if isinstance(value, Skipped):
        return value.length
    return len(value) if isinstance(value, tuple) else 0


def _text(fields: dict[str, Value | Skipped], key: str) -> str:
    value = fields.get(key)
    return value if isinstance(value, str) else ""


def _int(fields: dict[str, Value | Skipped], key: str) -> int:
    """A number that is not negative; the largest of an array (sizes may differ per layer)."""
    value = fields.get(key)
    numbers = value if isinstance(value, tuple) else (value,)
    return max((n for n in numbers if isinstance(n, int) and n > 0), default=0)
