"""Models that lie on this machine already: `file:…`, paths, folders.

Knows: which files of a folder belong to a model. Does not know: formats. Used to bring a file into
the store (`llmrr cp ./a.gguf name`), not to run it: a path is run where it is.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from llm_runner_router.errors import NotFound, StreamBroken
from llm_runner_router.models.manifest import Manifest, RemoteFile, check
from llm_runner_router.models.pick import Listed, choose
from llm_runner_router.refs import Ref

CHUNK = 1 << 20
DEPTH = 4
"""Folders below the model's own that are looked into."""


def connect(environ: Mapping[str, str]) -> PathSource:
    """The disk."""
    return PathSource()


class PathSource:
    """See `Source`."""

    async def manifest(self, ref: Ref) -> Manifest:
        """The file, or the files of the folder that belong to the model in it."""
        return await asyncio.to_thread(self._manifest, ref)

    @staticmethod
    def _manifest(ref: Ref) -> Manifest:
        path = Path(ref.name).expanduser().absolute()
        name = f"file:{path}"
        if path.is_file():
            file = RemoteFile(path.name, path.stat().st_size, url=str(path))
            return check(Manifest(name, "path", (file,), main=file.path))
        if not path.is_dir():
            raise NotFound(f"there is no `{path}`", hint="check the path", param="model")
        chosen = choose(listed(path), ref)
        files = tuple(RemoteFile(at.path, at.size, url=str(path / at.path)) for at in chosen.files)
        return check(Manifest(name, "path", files, main=chosen.main, notes=chosen.notes))

    @asynccontextmanager
    async def open(
        self, file: RemoteFile, from_byte: int = 0, to_byte: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `Source.open`."""
        try:
            handle = os.open(file.url, os.O_RDONLY)
        except OSError as exc:
            raise NotFound(f"cannot read `{file.url}`: {exc.strerror}", hint="check it") from exc
        try:
            end = os.fstat(handle).st_size if to_byte is None else to_byte
            yield _pieces(handle, file, from_byte, end)
        finally:
            os.close(handle)

    async def close(self) -> None:
        """Nothing is kept open."""


async def _pieces(handle: int, file: RemoteFile, at: int, end: int) -> AsyncIterator[bytes]:
    os.lseek(handle, at, os.SEEK_SET)  # nobody else has this descriptor; Windows has no `pread`
    while at < end:
        data = os.read(handle, min(CHUNK, end - at))
        if not data:
            raise StreamBroken(f"`{file.url}` ended at {at} of {end} bytes", hint="it was changed")
        at += len(data)
        yield data


def listed(folder: Path) -> list[Listed]:
    """The files in a folder, as a hub would list them; hidden ones are left out."""
    found = []
    for above, folders, files in os.walk(folder):
        here = Path(above)
        depth = len(here.relative_to(folder).parts)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if depth < DEPTH else []
        for name in sorted(files):
            path = here / name
            if name.startswith(".") or not path.is_file():
                continue
            found.append(Listed(path.relative_to(folder).as_posix(), path.stat().st_size))
    return found
