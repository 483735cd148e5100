"""Converted models that are kept: the same source, kind and options are converted once.

Knows: how a source is told apart by its content, where results lie in the data folder. Does not
know: how anything is converted; the work is handed in.

    <data folder>/converted/<key>/model.gguf        or `model/` for kinds that are folders
    key = SHA-256 over version, kind, options and the digests of the source's files
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from llm_runner_router.errors import ModelFileError, RunnerError
from llm_runner_router.home import Home

from .base import Options
from .plan import FILES

VERSION: Final = 1
"""Raised when a converter writes something else from the same source."""
_BLOB = re.compile(r"[0-9a-f]{64}\Z")
_OTHERS: Final = frozenset({".md", ".png", ".jpg", ".txt~", ".lock", ".part"})
"""Endings of files that no converter reads."""


def digest(source: Path) -> str:
    """SHA-256 of a model's content: of names and digests of its files.

    A file of the Hub's cache is a link to a blob that is named after its SHA-256; its content
    needs not be read.

    Raises:
        ModelFileError: a file cannot be read.
    """
    files = [source]
    if source.is_dir():
        files = sorted(p for p in source.rglob("*") if p.is_file() and _counts(p, source))
    total = hashlib.sha256()
    for path in files:
        name = path.relative_to(source).as_posix() if path != source else ""
        total.update(f"{name}\0{_digest(path)}\n".encode())
    return total.hexdigest()


def key(source: Path, want: str, options: Options) -> str:
    """The name under which the result is kept.

    Raises:
        ModelFileError: as `digest`.
    """
    facts = [VERSION, want, options, digest(source)]
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:32]


def place(home: Home, source: Path, want: str, options: Options) -> Path:
    """Where the result lies, or will lie.

    Raises:
        ModelFileError: as `digest`.
    """
    name = "model.gguf" if want in FILES else "model"
    return home.path / "converted" / key(source, want, options) / name


def cached(
    home: Home, source: Path, want: str, options: Options, work: Callable[[Path], object]
) -> Path:
    """The converted model, made by `work(target)` if it is not there yet.

    Two that ask at once both work; the first whole result stays, and the other is thrown away.

    Raises:
        ModelFileError: as `digest`; and whatever `work` raises.
    """
    target = place(home, source, want, options)
    if not target.exists():
        try:
            work(target)
        except RunnerError:
            if not target.exists():  # nobody else was quicker: it really failed
                raise
    return target


def _counts(path: Path, source: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
    return not hidden and path.suffix.lower() not in _OTHERS


def _digest(path: Path) -> str:
    real = path.resolve()
    if path.is_symlink() and real.parent.name == "blobs" and _BLOB.match(real.name):
        return real.name
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise ModelFileError(f"cannot read `{path}`: {exc.strerror}") from exc
