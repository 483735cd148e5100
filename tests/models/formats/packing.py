"""Archives for tests: sound ones, and such as nobody should unpack."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping

from attacks.archives import patched
from tests.models.test_gguf import build

from .building import safetensors

Entries = Mapping[str, bytes] | Iterable[tuple[str, bytes]]
GGUF = build()
WEIGHTS = safetensors({f"layer.{i}.weight": ("F32", (2, 3)) for i in range(5)})
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
}


def hub() -> dict[str, bytes]:
    """A small folder of Hugging Face's layout, in a folder of its own."""
    return {
        "model/config.json": json.dumps(CONFIG).encode(),
        "model/model.safetensors": WEIGHTS,
        "model/tokenizer.json": b'{"model": {"type": "BPE", "vocab": {"a": 0}}}',
        "model/1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
    }


def _pairs(entries: Entries) -> Iterable[tuple[str, bytes]]:
    return entries.items() if isinstance(entries, Mapping) else entries


def zipped(entries: Entries, method: int = zipfile.ZIP_DEFLATED, mode: int = 0) -> bytes:
    """A zip archive; names are taken as they are, also twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in _pairs(entries):
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content, method)
    return buffer.getvalue()


def tarred(
    entries: Entries,
    change: Callable[[tarfile.TarInfo], None] = lambda info: None,
    format: int = tarfile.PAX_FORMAT,
) -> bytes:
    """A tar archive; `change` may do something to each header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, content in _pairs(entries):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return buffer.getvalue()


def _typed(kind: bytes) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    return change


def _claims(size: int) -> bytes:
    """A tar archive whose one entry claims a size, and has a right sum."""
    block = bytearray(tarred({"m.gguf": GGUF})[:512])
    block[124:136] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block) + bytes(4096)


def _local(name: bytes, content: bytes) -> bytes:
    head = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, 0, 0, 0, 0, zlib.crc32(content),
                       len(content), len(content), len(name), 0)  # fmt: skip
    return head + name + content


def hostile() -> dict[str, tuple[str, bytes, str]]:
    """Name → file name, content, and words of its refusal."""
    gguf, central = {"m.gguf": GGUF}, b"PK\x01\x02"
    zeros = bytes(80 << 20)
    stream = zlib.compressobj(9, wbits=31)
    bomb = stream.compress(GGUF + bytes(80 << 20)) + stream.flush()
    sound, stored = zipped(gguf), zipped(gguf, zipfile.ZIP_STORED)
    tar = tarred(gguf)
    squeezed = gzip.compress(tar, mtime=0)
    return {
        "zip: up": ("a.zip", zipped({"../m.gguf": GGUF}), "leads out"),
        "zip: absolute": ("a.zip", zipped({"/m.gguf": GGUF}), "leads out"),
        "zip: Windows": ("a.zip", zipped({"c:/m.gguf": GGUF}), "leads out"),
        "zip: backslash": ("a.zip", zipped({"x\\..\\m.gguf": GGUF}), "leads out"),
        "zip: link": ("a.zip", zipped(gguf, mode=0o120777), "a link or a device"),
        "zip: device": ("a.zip", zipped(gguf, mode=0o060777), "a link or a device"),
        "zip: twice": ("a.zip", zipped([("m.gguf", GGUF)] * 2), "stands twice"),
        "zip: twice on some": ("a.zip", zipped({"M.gguf": GGUF, "m.GGUF": GGUF}), "stands twice"),
        "zip: file and folder": ("a.zip", zipped({"m": b"x", "m/m.gguf": GGUF}), "stands twice"),
        "zip: encrypted": ("a.zip", patched(sound, central, 8, b"\x01\x00"), "is encrypted"),
        "zip: sum": ("a.zip", patched(stored, central, 16, b"\1\2\3\4"), "sum of check"),
        "zip: cut": ("a.zip", sound[:-30], "cut short"),
        "zip: claims more": ("a.zip", patched(sound, central, 24, b"\xff\xff\0\0"), "of 65535"),
        "zip: claims less": ("a.zip", patched(sound, central, 24, b"\x09\0\0\0"), "longer than"),
        "zip: method": ("a.zip", zipped(gguf, zipfile.ZIP_LZMA), "compressed with LZMA"),
        "zip: bomb": ("a.zip", zipped({"m.gguf": GGUF, "z": zeros}), "which no model"),
        "zip: nested": ("a.zip", zipped({"m.zip": sound}), "another packed file"),
        "zip: nested, unnamed": ("a.zip", zipped({"m.gguf": sound}), "another packed file"),
        "zip: nested beside": (
            "a.zip", zipped({"m.gguf": GGUF, "x.tar.gz": b""}), "another packed file"),
        "zip: many": (
            "a.zip", zipped([("m.gguf", GGUF), *((f"{i}.txt", b"") for i in range(4100))]),
            "more than 4096"),
        "zip: two models": ("a.zip", zipped({"a.gguf": GGUF, "b.gguf": GGUF}), "2 GGUF files"),
        "zip: only local headers": (
            "a.zip", _local(b"m.gguf", GGUF), "cut short"),
        "zip: long name": ("a.zip", zipped({f"{'x' * 300}.gguf": GGUF}), "is too long"),
        "tar: up": ("a.tar", tarred({"x/../../m.gguf": GGUF}), "leads out"),
        "tar: absolute": ("a.tar", tarred({"/m.gguf": GGUF}), "leads out"),
        "tar: symbolic link": ("a.tar", tarred(gguf, _typed(tarfile.SYMTYPE)), "is a link"),
        "tar: hard link": ("a.tar", tarred(gguf, _typed(tarfile.LNKTYPE)), "is a link"),
        "tar: device": ("a.tar", tarred(gguf, _typed(tarfile.BLKTYPE)), "is a device"),
        "tar: pipe": ("a.tar", tarred(gguf, _typed(tarfile.FIFOTYPE)), "is a pipe"),
        "tar: sparse": ("a.tar", tarred(gguf, _typed(b"S")), "unknown kind"),
        "tar: twice": ("a.tar", tarred([("m.gguf", GGUF)] * 2), "stands twice"),
        "tar: cut": ("a.tar", tar[:1024], "cut short"),
        "tar: claims": ("a.tar", _claims(1 << 60), "too many"),
        "tar: followed": ("a.tar", tar + tar, "follow the end"),
        "tgz: cut": ("a.tgz", squeezed[:-12], "cut short"),
        "tgz: sum": ("a.tgz", squeezed[:-8] + b"\1\2\3\4" + squeezed[-4:], "damaged"),
        "tgz: followed": ("a.tgz", squeezed + b"x" * 9, "bytes follow"),
        "tgz: nested": ("a.tgz", gzip.compress(tarred({"m.gz": squeezed})), "another packed"),
        "gz: bomb": ("m.gguf.gz", bomb, "which no model"),
        "gz: nested": ("m.gguf.gz", gzip.compress(gzip.compress(GGUF)), "another packed"),
        "gz: cut": ("m.gguf.gz", gzip.compress(GGUF)[:-100], "cut short"),
        "gz: no whole model": ("m.gguf.gz", gzip.compress(GGUF[:-100]), "cut short"),
    }  # fmt: skip
