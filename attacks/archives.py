"""Zip archives that two programs read differently, that grow, or that lead out of their folder."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

from .attack import Attack
from .pickles import archive, named, tensor, text, weights

GOOD = weights(tensor())


def packed(
    *entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED, note: bytes = b""
) -> bytes:
    """An archive of these entries, names taken as they are, also twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as zipped, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two of one name are meant
        for name, content in entries:
            zipped.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def patched(
    content: bytes, signature: bytes, at: int, value: bytes, *, last: bool = False
) -> bytes:
    """`content` with bytes changed `at` so far behind the first (or last) such signature."""
    where = (content.rfind if last else content.find)(signature) + at
    return content[:where] + value + content[where + len(value) :]


def attacks(marker: Path) -> Iterator[Attack]:
    """All of them; the harmless description comes first where a second one is hidden."""
    evil = b"\x80\x02" + named("os", "system") + text(f"touch '{marker}'") + b"\x85R."
    good, numbers = ("archive/data.pkl", GOOD), ("archive/data/0", bytes(16))
    sound = archive(GOOD)
    end, central, local = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04"
    rows: dict[str, tuple[bytes, str, str]] = {
        "twice": (packed(good, ("archive/data.pkl", evil), numbers), "stands twice", "picklescan"),
        "two-tops": (packed(good, ("other/data.pkl", evil), numbers), "has 2 entries", ""),
        "deep-description": (packed(("a/b/data.pkl", evil), numbers), "has 0 entries", ""),
        "bomb": (
            packed(("archive/data.pkl", bytes(10_000_000)), method=zipfile.ZIP_DEFLATED),
            "is compressed",
            "zip bomb",
        ),
        "encrypted": (patched(sound, central, 8, b"\x01\x00"), "is encrypted", "picklescan: flags"),
        "sizes-differ": (patched(sound, central, 20, b"\x01\0\0\0"), "two different sizes", ""),
        "renamed-inside": (
            patched(sound, local, 30, b"brchive/data.pkl"),
            "another name in its own header",
            "picklescan: names of local headers",
        ),
        "no-local-header": (patched(sound, central, 42, b"\x05\0\0\0"), "is not where", ""),
        "overlap": (
            patched(sound, central, 42, patched_offset(sound), last=True),
            "another name in its own header",
            "overlapping zip bomb",
        ),
        "size-over-the-end": (
            patched(sound, central, 20, struct.pack("<2I", 10**6, 10**6)),
            "overlaps another one",
            "",
        ),
        "many-claimed": (patched(sound, end, 8, b"\xff\xff\xff\xff"), "is damaged", ""),
        "directory-outside": (patched(sound, end, 16, b"\xff\xff\xff\x0f"), "outside of it", ""),
        "parts": (patched(sound, end, 4, b"\x01\x00"), "part of several", ""),
        "cut": (sound[:-30], "no end", ""),
        "bytes-behind": (sound + b"\0" * 9, "bytes follow the end", ""),
        "bytes-behind-the-pickle": (archive(GOOD + evil), "follow the end of its pickle", ""),
        "big-endian": (
            packed(good, numbers, ("archive/byteorder", b"big")),
            "big-endian",
            "",
        ),
        "script": (
            packed(
                good, numbers, ("archive/code/a.py", b"import os"), ("archive/constants.pkl", evil)
            ),
            "TorchScript",
            "programs in TorchScript archives",
        ),
        "short-storage": (
            packed(good, ("archive/data/0", bytes(8))),
            "claims 4 elements and has 2",
            "",
        ),
    }
    for way in ("../data.pkl", "/etc/data.pkl", "archive/../../x", "C:/x", "a\\..\\b"):
        rows["path-" + "".join(c if c.isalnum() else "-" for c in way)] = (
            packed(good, numbers, (way, b"x")),
            "leads out of it",
            "zip slip",
        )
    for name, (content, error, source) in rows.items():
        yield Attack.file(f"archive-{name}.pt", content, error, source=source)
    yield Attack.file(
        "archive-7z.pt", b"7z\xbc\xaf\x27\x1c\0\x04" + bytes(64), "7z", source="nullifAI"
    )
    listed = b'{"weight_map": {"a": "%s"}}'
    for name, part in (("up", "../outside.bin"), ("root", "/etc/passwd"), ("link", "link.bin")):
        files: dict[str, bytes | str] = {
            "model/pytorch_model.bin.index.json": listed % part.encode(),
            "outside.bin": sound,
        }
        if name == "link":
            files["model/link.bin"] = "../outside.bin"
        words = {"up": "leads out", "root": "no relative path", "link": "link that leads out"}
        yield Attack(f"index-{name}", files, words[name], "model", source="path traversal")


def patched_offset(sound: bytes) -> bytes:
    """Where the first local header lies, as the last entry of the directory would say it."""
    return struct.pack("<I", sound.find(b"PK\x03\x04"))
