"""By what a model is told apart: the files that make it, their content, and how they stand on disk.

Knows: which files beside a single one belong to it. Does not know: formats, what becomes of the
model. `digest` reads everything once and says what the model is; `stamp` reads nothing and says
whether anything may have changed since.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.pick import split_names

from .companions import NAMES

_BLOB = re.compile(r"[0-9a-f]{64}\Z")
_OTHERS: Final = frozenset({".md", ".png", ".jpg", ".txt~", ".lock", ".part"})
"""Endings of files that no converter reads."""
_BESIDE: Final = (*NAMES, "*.json", "*.jinja", "*.model", "*.tiktoken")
"""What converters read beside a single file. Not other weights: in a folder of downloads they
belong to other models."""


def files_of(source: Path) -> list[Path]:
    """The files whose content decides what becomes of a model, sorted.

    Of a folder all that are not hidden. Of a GGUF file its parts; of any other file also
    configuration and vocabulary beside it, and the shards beside a `.json`.
    """
    if source.is_dir():
        return sorted(p for p in source.rglob("*") if p.is_file() and _counts(p, source))
    return sorted({source, *_beside(source)})


def digest(source: Path) -> str:
    """SHA-256 of a model's content: of names and digests of its files.

    A file of the Hub's cache is a link to a blob that is named after its SHA-256; its content
    needs not be read.

    Raises:
        ModelFileError: a file cannot be read.
    """
    total = hashlib.sha256()
    for path in files_of(source):
        total.update(f"{_name(path, source)}\0{_digest(path)}\n".encode())
    return total.hexdigest()


def stamp(source: Path) -> str:
    """What the disk tells about a model's files without reading them: another one after a change.

    The time of the last change of the file's own entry (`ctime`) counts, too: nobody can set it
    back, as copying tools do with the time of writing.

    Raises:
        ModelFileError: a file is gone.
    """
    total = hashlib.sha256()
    files = files_of(source)
    for path in files:
        try:
            at = path.stat()
        except OSError as exc:
            raise _unreadable(path, exc) from exc
        facts = (at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino)
        total.update(f"{_name(path, source)}\0{facts}\n".encode())
    if not files:
        raise ModelFileError(f"the folder `{source}` has no files", hint="see `llmrr ls --all`")
    return total.hexdigest()


def _beside(source: Path) -> Iterator[Path]:
    suffix, folder = source.suffix.lower(), source.parent
    yield from (p for n in split_names(source.name) if (p := folder / n).is_file())
    if suffix == ".gguf":
        return
    patterns = (*_BESIDE, "*.bin") if suffix == ".json" else _BESIDE
    for pattern in patterns:
        yield from (p for p in folder.glob(pattern) if p.is_file() and _counts(p, folder))


def _name(path: Path, source: Path) -> str:
    """The name in the digest; a single file's own is left out, so that it may be renamed."""
    if path == source:
        return ""
    return path.relative_to(source if source.is_dir() else source.parent).as_posix()


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
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, exc: OSError) -> ModelFileError:
    return ModelFileError(f"cannot read `{path}`: {exc.strerror}", hint="see `llmrr ls --all`")
