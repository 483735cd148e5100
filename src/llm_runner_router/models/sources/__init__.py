"""Where models come from, one module per source. The contract of a module is

    connect(environ: Mapping[str, str]) -> Source     a `Source` below; connects to nothing yet

and its file name is the key: `path`, `url`, `huggingface`, `ollama`, `s3`, or the name of an entry
point in the group `llm_runner_router.models.sources`. Modules whose names begin with `_` help them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from llm_runner_router import plugins
from llm_runner_router.errors import Unsupported
from llm_runner_router.models.manifest import Manifest, RemoteFile
from llm_runner_router.refs import Kind, Ref

KINDS: dict[Kind, str] = {
    "file": "path",
    "hf": "huggingface",
    "ollama": "ollama",
    "s3": "s3",
    "url": "url",
}
"""Which source brings which kind of reference."""


Piece = bytes | memoryview
"""Some bytes of a file."""


class Source(Protocol):
    """Something that has models. `llm_runner_router.testing.check_source` checks one."""

    async def manifest(self, ref: Ref) -> Manifest:
        """Which files `ref` means.

        Raises:
            NotFound: there is no such model or file; says what there is.
            UpstreamError: the source does not answer, refuses, or answers nonsense.
            Unavailable: offline.
        """
        ...

    def open(
        self, file: RemoteFile, from_byte: int = 0, to_byte: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Piece]]:
        """The content from `from_byte` up to but without `to_byte` (None: to its end).

        A piece is valid until the next one is asked for; none is empty.

        Raises:
            NoRanges: it can only give the whole file.
            Changed: it has another content now than when the manifest was made.
            UpstreamError: it does not answer, or stops before the end.
        """
        ...

    async def close(self) -> None:
        """Give back connections; safe to repeat."""
        ...


def source_for(ref: Ref, environ: Mapping[str, str]) -> Source:
    """The source of a reference.

    Raises:
        Unsupported: a reference of this kind is nothing that can be brought here.
        ConfigError: its module needs a package that is not installed.
    """
    name = KINDS.get(ref.kind)
    if ref.kind == "zoo":
        raise Unsupported(
            f"`{ref}` is part of the package and is here already",
            hint=f"`llmrr run {ref}`",
            param="model",
        )
    if name is None:
        raise Unsupported(
            f"`{ref}` is nothing that can be downloaded",
            hint="for example `hf:org/repo`, `ollama:name:tag`, `https://host/model.gguf`",
            param="model",
        )
    source: Source = plugins.load("models.sources", name).connect(environ)
    return source
