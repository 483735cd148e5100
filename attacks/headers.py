"""Headers that lie: counts beyond the file, tensors over each other, keys that stand twice."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

from .attack import Attack


def string(value: str) -> bytes:
    """A text as GGUF writes it."""
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf(pairs: tuple[bytes, ...], tensors: tuple[bytes, ...] = (), *, tail: bytes = b"",
         counts: tuple[int, int] | None = None) -> bytes:  # fmt: skip
    """A GGUF file, padded, with `tail` for data."""
    first, second = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", 3, first, second) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + tail


def pair(key: str, kind: int, payload: bytes) -> bytes:
    """A metadata entry."""
    return string(key) + struct.pack("<I", kind) + payload


def placed(name: str, shape: tuple[int, ...], offset: int, kind: int = 0) -> bytes:
    """A tensor of GGUF."""
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def framed(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, shape: tuple[int, ...] | None = None, kind: str = "U8") -> object:
    """A tensor of safetensors."""
    return {"dtype": kind, "shape": list(shape or (end - begin,)), "data_offsets": [begin, end]}


LLAMA = pair("general.architecture", 8, string("llama"))


def attacks() -> Iterator[Attack]:
    """GGUF, then safetensors."""
    length = struct.pack("<IQ", 8, 2**63)
    nested = struct.pack("<IQ", 9, 1)
    rows = {
        "array-2-63": (gguf((pair("x", 9, length),)), "more than the file can hold",
                       "`gguf` 0.19.0 hangs on these 60 bytes"),
        "string-1-gib": (gguf((LLAMA, pair("x", 8, struct.pack("<Q", 2**30)))), "than 16777216",
                         "ggml#1516"),
        "nested-array": (gguf((LLAMA, pair("x", 9, nested))), "which no array may hold", "#26690"),
        "many-tensors": (gguf((LLAMA,), counts=(2**62, 1)), "more than the file can hold", ""),
        "alignment": (gguf((LLAMA, pair("general.alignment", 4, struct.pack("<I", 3)))),
                      "general.alignment", "llama.cpp#24997"),
        "product-wraps": (gguf((LLAMA,), (placed("a", (2**32, 2**32, 1), 0),), tail=bytes(64)),
                          "larger than the file", "GHSA-vgg9-87g3-85w8"),
        "overlap": (gguf((LLAMA,), (placed("a", (8,), 0), placed("b", (8,), 0)), tail=bytes(64)),
                    "overlap", ""),
        "outside": (gguf((LLAMA,), (placed("a", (8,), 2**60),), tail=bytes(64)), "cut short", ""),
        "key-twice": (gguf((LLAMA, LLAMA)), "stands there twice", ""),
        "architecture-twice": (gguf((LLAMA, pair("x", 4, bytes(4)), LLAMA)), "twice", ""),
    }  # fmt: skip
    for name, (content, error, source) in rows.items():
        yield Attack.file(f"gguf-{name}.gguf", content, error, source=source)
    first = json.dumps(entry(0, 4))
    twice = f'{{"a": {first}, "a": {first}}}'.encode()
    others = {
        "key-twice": (framed(twice, bytes(4)), "stands there twice"),
        "overlap": (framed({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)), "overlap"),
        "hidden": (framed({"a": entry(0, 4)}, bytes(4) + b"#!/bin/sh"), "follow the header"),
        "gap": (framed({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "belong to no tensor"),
        "header-2-63": (struct.pack("<Q", 2**63) + b"{" * 32, "no model in a known format"),
        "deep": (framed(b'{"a":' + b"[" * 100_000), "nested too deeply"),
        "giant": (framed({"a": entry(0, 4, (2**61, 2**61, 2**61))}, bytes(4)), "larger than"),
        "many": (framed(b"{" + b'"":1,' * 800_000 + b"}"), "more than 131072 entries"),
    }
    for name, (content, error) in others.items():
        yield Attack.file(f"safetensors-{name}.safetensors", content, error)
