"""Models in packed files: a GGUF file in gzip, a folder in a zip or tar archive, and so on.

Knows: which files in an archive make which kind of model, and what can be told of it from its
first `LOOK` bytes. Does not know: how a container is read (`_archive.py`), how it is unpacked
(`convert/unpack.py`). A file of PyTorch is a zip archive too; that format is asked before this one.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from llm_runner_router.models.info import ModelInfo

from . import _hub, ggml, gguf, onnx, safetensors
from ._archive import ENDS, Container, Content, Member, container_of, walk
from ._files import MAX_JSON, Bad, naming, parse_json, refusal
from ._inflate import Enough
from ._inflate import kind_of as is_squeezed
from .gguf_types import BITNET

__all__ = ["Content", "Inside", "Member", "describe", "inside", "members", "refusal", "sniff"]

LOOK: Final = 48 * 1024 * 1024
"""Bytes that are unpacked to tell what is inside. The largest headers of GGUF have 20 MB."""
HEAD: Final = 4096
FOLDERS: Final = ("mlx", "safetensors", "pytorch", "onnx-genai", "onnx", "tfjs", "peft")
FILES: Final = ("gguf", "bitnet-gguf", "ggml")
"""Kinds that are one file."""
_NESTED: Final = (*ENDS, ".zip", ".tar", ".tgz", ".txz", ".7z", ".rar")
_WEIGHTS: Final = (".gguf", ".safetensors", ".onnx", ".bin", ".pt", ".pth")
_MODULE = re.compile(r"(^|/)\d+_\w+/[^/]+\Z")
"""A file of one of sentence-transformers' modules."""
_UNPACK: Final = "unpack it, and name the model in it"


class Inside(Struct, frozen=True):
    """What is in a packed file, as far as it was looked into."""

    container: Container
    kind: str
    """A kind of `convert/plan.py`."""
    main: str = ""
    """The file that is the model, for kinds of one file, or the largest seen."""
    members: tuple[Member, ...] = ()
    whole: bool = False
    """All members were seen."""
    info: ModelInfo | None = None
    """What the model's own header or configuration says."""

    @property
    def declared(self) -> int:
        """Bytes that the members seen say they have."""
        return sum(max(0, member.size) for member in self.members)


class _Seen:
    """What a look inside has found so far."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.heads: dict[str, bytes] = {}
        self.config: dict[str, Any] = {}
        self.info: ModelInfo | None = None

    def take(self, other: _Seen) -> None:
        """Have seen what `other` has."""
        self.members, self.heads = other.members, other.heads
        self.config, self.info = other.config, other.info

    @property
    def worth_telling(self) -> bool:
        """Whether some file is named or begins like a model's weights, or is packed itself."""
        pairs = [(member, self.heads[member.name]) for member in self.members]
        return any(_is_model(*pair) or _is_packed(*pair) for pair in pairs)


_last: tuple[object, _Seen, bool] | None = None
"""What was looked into last, and whether all was seen: a model's format is asked for, then its
facts, then its kind, and each look may unpack `LOOK` bytes."""


def sniff(path: Path, head: bytes) -> bool:
    """Whether `path` is a packed file with a model in it, be it one that is refused."""
    seen = _Seen()
    container = None
    try:
        container = container_of(path, head)
        if container is None:
            return False
        _look(path, container, seen)
    except OSError:
        return False
    except Bad:  # an archive that is refused is told by `describe`
        return seen.worth_telling or (container is not None and bool(container.kind))
    return seen.worth_telling


def describe(path: Path) -> ModelInfo:
    """What can be told of the model inside, without unpacking all of it.

    Raises:
        ModelFileError: it is missing or damaged, there is no single model in it, or something in
            it is refused; says what.
    """
    found = inside(path)
    with naming(path):
        size = path.stat().st_size
    info = found.info or ModelInfo(format="packed", architecture="unknown")
    if found.kind == "peft":
        info = replace(info, part="adapter")
    what = f"{found.container.words}, with {_words(found.kind)} inside"
    more = "" if found.whole or not found.container.kind else ", as far as its first bytes tell"
    note = f"it is {what}{more}; it is unpacked once, when it is first loaded or converted"
    return replace(info, format="packed", bytes=size, notes=(note, *info.notes))


def inside(path: Path) -> Inside:
    """The kind of model in `path`, by its first bytes.

    Raises:
        ModelFileError: as `describe`.
    """
    with naming(path):
        return _inside(path)


def members(path: Path, found: Inside) -> Iterator[tuple[Member, Content]]:
    """All files in `path`, one after the other; each is read before the next is asked for.

    Whoever comes to the end has all sums of check compared.

    Raises:
        ModelFileError: it is damaged, or has something that is refused.
    """
    with naming(path):
        for member, content in walk(path, found.container):
            yield member, _Named(path, content)


class _Named:
    """A content whose refusals name the file, wherever it is read."""

    def __init__(self, path: Path, content: Content) -> None:
        self._path = path
        self._content = content

    @property
    def consumed(self) -> int:
        return self._content.consumed

    def read(self, count: int) -> bytes:
        with naming(self._path):
            return self._content.read(count)


def _inside(path: Path) -> Inside:
    with path.open("rb") as file:
        container = container_of(path, file.read(HEAD))
    if container is None:
        raise Bad("it is no archive and not compressed")
    seen = _Seen()
    whole = _look(path, container, seen)
    kind, main = decide(seen.members, seen.heads, seen.config)
    if kind in FILES and seen.info is not None and set(BITNET.values()) & seen.info.types.keys():
        kind = "bitnet-gguf"
    return Inside(container, kind, main, tuple(seen.members), whole, seen.info)


def _look(path: Path, container: Container, seen: _Seen) -> bool:
    """Fill `seen`; whether all of it was seen."""
    global _last  # one value, replaced whole: right in any thread
    at = path.stat()
    key = (path.absolute(), at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino, container)
    last = _last
    if last is None or last[0] != key:
        last = _last = key, seen, _walk(path, container, seen)
    _, known, whole = last
    seen.take(known)
    return whole


def _walk(path: Path, container: Container, seen: _Seen) -> bool:
    try:
        for member, content in walk(path, container, LOOK):
            seen.members.append(member)
            seen.heads[member.name] = b""
            seen.heads[member.name] = content.read(HEAD)
            _read(member, content, seen)
            if not container.kind:
                return False  # a single file; its head is all there is to see
        return True
    except Enough:
        return False


def _read(member: Member, content: Content, seen: _Seen) -> None:
    """What a member's content tells beyond its head."""
    head = seen.heads[member.name]
    last = member.name.rpartition("/")[2]
    if last == "config.json" and not seen.config and not _MODULE.search(member.name):
        value = parse_json(head + content.read(MAX_JSON), f"`{last}`")
        if isinstance(value, dict):
            seen.config = value
            seen.info = _hub.checked_info(format="packed", **_hub.config_facts(value))
    elif head[:4] == b"GGUF" and seen.info is None:
        start, whole = _start(head, content)
        size = len(start) if whole else member.size if member.size >= 0 else 1 << 62
        try:
            seen.info = gguf.describe_start(start, size)
        except Bad as exc:
            if whole:
                raise Bad(f"{member.name[:80]!r} in it cannot be used: {exc}") from None


def _start(head: bytes, content: Content) -> tuple[bytes, bool]:
    """As much of a file's beginning as may be looked at, and whether that is all of it."""
    parts, left = [head], LOOK - len(head) - HEAD
    try:
        while left > 0:
            part = content.read(min(left, 1 << 20))
            if not part:
                return b"".join(parts), True
            parts.append(part)
            left -= len(part)
    except Enough:
        pass
    return b"".join(parts), False


def decide(
    members: Sequence[Member], heads: dict[str, bytes], config: dict[str, Any]
) -> tuple[str, str]:
    """The kind of model that these files are, and the file that is it or the largest of it.

    Args:
        members: the files, in order.
        heads: their first bytes by name.
        config: the content of `config.json`; empty without one.

    Raises:
        Bad: none, more than one, or an archive among them.
    """
    for member in members:
        if _is_packed(member, heads.get(member.name, b"")):
            raise Bad(f"there is another packed file in it: {member.name[:80]!r}", _UNPACK)
    models = [m for m in members if _is_model(m, heads.get(m.name, b""))]
    if not models:
        shown = ", ".join(repr(m.name[:60]) for m in members[:3]) or "nothing"
        raise Bad(f"there is no model in it: it holds {shown}", "name a model file or its folder")
    ggufs = [m for m in models if heads.get(m.name, b"")[:4] == b"GGUF"]
    if ggufs:
        if len(ggufs) > 1:
            raise Bad(f"there are {len(ggufs)} GGUF files in it", _UNPACK)
        return "gguf", ggufs[0].name
    main = max(models, key=lambda m: m.size).name
    return _folder_kind(models, heads, config, {m.name.rpartition("/")[2] for m in members}), main


def _folder_kind(
    models: Sequence[Member], heads: dict[str, bytes], config: dict[str, Any], names: set[str]
) -> str:
    """In the order of `detect.py`: the more particular and the safer first."""
    first = [heads.get(m.name, b"") for m in models]
    if any(safetensors.sniff(Path(), head) for head in first if head):
        if "adapter_config.json" in names:
            return "peft"
        return "mlx" if isinstance(config.get("quantization"), dict) else "safetensors"
    if any(head[:1] == b"\x80" or _is_torch(head) for head in first):
        return "peft" if "adapter_config.json" in names else "pytorch"
    if any(m.name.lower().endswith(".onnx") for m in models) or any(
        onnx.sniff(Path(), head) for head in first if head
    ):
        return "onnx-genai" if "genai_config.json" in names else "onnx"
    if any(ggml.sniff(Path(), head) for head in first):
        return "ggml"
    if "model.json" in names:
        return "tfjs"
    raise Bad(
        f"{models[0].name[:80]!r} in it begins with {first[0][:8]!r}, as no known format does",
        "name a model file or its folder",
    )


def _is_model(member: Member, head: bytes) -> bool:
    name = member.name.lower()
    if name.endswith(_WEIGHTS) or name.rpartition("/")[2] == "model.json":
        return True
    return (
        head[:4] == b"GGUF"
        or (safetensors.sniff(Path(), head) if head else False)
        or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        or ggml.sniff(Path(), head)
    )


def _is_packed(member: Member, head: bytes) -> bool:
    archive = head[:4] == b"PK\x03\x04" and not _is_torch(head)
    return archive or is_squeezed(head) != "" or member.name.lower().endswith(_NESTED)


def _is_torch(head: bytes) -> bool:
    """Whether a zip archive is one of PyTorch, by the name of its first entry."""
    return _first_name(head).endswith("/data.pkl")


def _first_name(head: bytes) -> str:
    if head[:4] != b"PK\x03\x04" or len(head) < 30:
        return ""
    length = struct.unpack_from("<H", head, 26)[0]
    return head[30 : 30 + length].decode("utf-8", "replace")


def _words(kind: str) -> str:
    return {
        "gguf": "a GGUF file",
        "bitnet-gguf": "a GGUF file of bitnet.cpp",
        "ggml": "a file from before GGUF",
        "peft": "a LoRA adapter",
    }.get(kind, f"a model in {kind}")
