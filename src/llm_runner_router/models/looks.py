"""What a file is that no format recognised, in words, and what to do with it.

Knows: the beginnings of files that people take for models, and files beside them that tell what
they are part of. Does not know: any format that can be used. Magic numbers are from the formats'
own specifications. Only the head of a file is looked at, and a few bytes behind its compression.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

Look = tuple[str, str]
"""What it looks like, completing "is no model in a known format:", and the next step."""

_KNOWN: Final = "name a model in a format listed under `llmrr inspect --help`"
_AGAIN: Final = "download it again"
_MAX_INDEX: Final = 16 * 1024 * 1024
_MAGICS: Final[tuple[tuple[int, bytes, str, str], ...]] = (
    (0, b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS, not the file itself",
     "fetch the content: `git lfs pull` in its folder, or `llmrr pull hf:ORG/REPO`"),
    (0, b"version https://hawser.github.com/spec/", "a pointer of Git LFS, not the file itself",
     "fetch the content: `git lfs pull` in its folder"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them",
     "export it from Keras as ONNX or safetensors"),
    (4, b"TFL3", "a TensorFlow Lite model", "look for the model in GGUF or safetensors"),
    (0, b"\x93NUMPY", "a NumPy array", "save the model's weights as safetensors"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first: `7z x FILE`"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with Zstandard", "unpack it first: `zstd -d FILE`"),
    (0, b"\xfd7zXZ\x00", "compressed with xz", "unpack it first: `xz -dk FILE`"),
    (0, b"BZh", "compressed with bzip2", "unpack it first: `bzip2 -dk FILE`"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unpack it first"),
    (257, b"ustar", "a tar archive", "unpack it first: `tar -xf FILE`"),
    (0, b"MZqFpD", "a llamafile: a program with a model inside",
     "take the `.gguf` out of it (`unzip FILE`), or download the model as GGUF"),
    (0, b"\x7fELF", "a program for Linux", _KNOWN),
    (0, b"MZ", "a program for Windows", _KNOWN),
    (0, b"%PDF", "a PDF document", _KNOWN),
    (0, b"UQFF", "a UQFF file of mistral.rs", "name the model it was made from"),
    (0, b"PK\x05\x06", "an empty zip archive", _AGAIN),
)  # fmt: skip
_FOLDERS: Final[tuple[tuple[str, str, str], ...]] = (
    ("*.gguf", "a folder with GGUF files", "name one of them, as in `{0}`"),
    ("saved_model.pb", "a SavedModel of TensorFlow", "convert it: `python -m tf2onnx.convert`"),
    ("flax_model.msgpack", "a Flax checkpoint", "save it from `transformers` as safetensors"),
    ("tf_model.h5", "a TensorFlow checkpoint", "save it from `transformers` as safetensors"),
    ("model_index.json", "a pipeline of `diffusers`, which makes images", _KNOWN),
    ("*.tflite", "a folder with TensorFlow Lite models", _KNOWN),
    ("*.mlpackage", "a folder with Core ML models", _KNOWN),
    ("config.json", "a model's folder without its weights", "download it again, with its weights"),
    ("tokenizer.json", "a tokenizer's folder without a model", _AGAIN),
)


def looks_like(path: Path, head: bytes) -> Look:
    """What `path` looks like, and what to do about it. Never fails.

    Args:
        head: the first bytes of a file; empty for a folder.
    """
    if path.is_dir():
        return _folder(path)
    if not head:
        return "it is empty", _AGAIN
    if (found := _part(path)) is not None:
        return found
    if not head.strip(b"\0"):
        return "it begins with zeros only, as a download does that was cut short", _AGAIN
    for at, magic, what, hint in _MAGICS:
        if head[at : at + len(magic)] == magic:
            return f"it is {what}", hint.replace("FILE", path.name)
    for look in (_gzip, _zip, _text):
        if (found := look(path, head)) is not None:
            return found
    raw = ": raw numbers perhaps, whose meaning lies elsewhere" if path.suffix == ".bin" else ""
    return f"it begins with {head[:8]!r}, which no format does{raw}", _KNOWN


def _part(path: Path) -> Look | None:
    """Numbers without a header: which model beside them they belong to."""
    try:
        graph = path.with_suffix(".xml")
        if graph.is_file():
            return f"it is the weights of `{graph.name}`", f"name `{graph}`"
        index = path.with_name("model.json")
        with index.open("rb") as file:
            if json.dumps(path.name).encode() in file.read(_MAX_INDEX):
                return "it is a shard of a TensorFlow.js model", f"name `{index}`"
    except OSError:
        pass
    return None


def _folder(path: Path) -> Look:
    try:
        if next(path.iterdir(), None) is None:
            return "it is an empty folder", "name a model file or its folder"
        for pattern, what, hint in _FOLDERS:
            if (found := next(iter(sorted(path.glob(pattern))), None)) is not None:
                return f"it is {what}", hint.format(found)
    except OSError as exc:
        return f"its files cannot be listed ({exc.strerror})", "check its permissions"
    return "the folder has no model file in it", "name a model file or its folder"


def _gzip(path: Path, head: bytes) -> Look | None:
    """What is inside, from the first bytes; no more than that is unpacked."""
    if head[:2] != b"\x1f\x8b":
        return None
    try:
        inner = zlib.decompressobj(wbits=31).decompress(head, 512)
    except zlib.error:
        return "it begins as gzip does, but is damaged", _AGAIN
    return f"it is compressed with gzip, {_inside(inner)}", f"unpack it first: `gunzip {path.name}`"


def _inside(inner: bytes) -> str:
    names: tuple[tuple[Callable[[bytes], bool], str], ...] = (
        (lambda b: b[:4] == b"GGUF", "with a GGUF model inside"),
        (lambda b: b[8:9] == b"{" and b[6:8] == b"\0\0", "with a safetensors file inside"),
        (lambda b: b[:4] == b"PK\x03\x04" or b[:1] == b"\x80", "with a PyTorch file inside"),
        (lambda b: b[257:262] == b"ustar", "with a tar archive inside"),
    )
    return next((what for check, what in names if check(inner)), "with an unknown file inside")


def _zip(path: Path, head: bytes) -> Look | None:
    """A zip archive that is no PyTorch file: told by the name of its first entry."""
    if head[:4] != b"PK\x03\x04":
        return None
    length = int.from_bytes(head[26:28], "little")
    name = head[30 : 30 + length].decode("utf-8", "replace")
    if name.endswith(".npy"):
        return "it is an archive of NumPy arrays", "save the weights as safetensors"
    if path.suffix == ".keras":
        return "it is a Keras model", "export it from Keras as ONNX or safetensors"
    return (
        f"it is a zip archive; its first entry is {name[:80]!r}",
        f"unpack it: `unzip {path.name}`",
    )


def _text(path: Path, head: bytes) -> Look | None:
    start = head.lstrip()[:200].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page, as a download gets that was refused", (
            "download it again; the page may ask for a login or for consent"
        )
    if b"\0" in head:
        return None
    if start.startswith((b"{", b"[")):
        folder = path.resolve().parent
        return "it is a JSON text", f"name the model's folder, as in `{folder}`"
    if start.startswith(b"from ") or b"\nfrom " in start:
        return "it is a Modelfile, a recipe and not a model", "name the model after its `FROM`"
    try:
        head[:-4].decode("utf-8")  # the last character may be cut
    except UnicodeDecodeError:
        return None
    return "it is a text", _KNOWN
