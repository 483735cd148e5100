"""A model file at a web address: `https://host/path/model.gguf`, with `#sha256=…` to pin it.

Knows: what a server's head says of a file. Does not know: hubs. A model in several numbered parts
is brought whole, from the address of any of them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from email.message import Message
from urllib.parse import unquote, urlsplit

from llm_runner_router.errors import BadRequest
from llm_runner_router.models.manifest import Digest, Manifest, RemoteFile, check
from llm_runner_router.models.pick import split_names
from llm_runner_router.refs import Ref

from ._http import Http, body, check_status, number, offline, shown, validator

_PIN = re.compile(r"sha256[=:-]([0-9a-fA-F]{64})")


def connect(environ: Mapping[str, str]) -> UrlSource:
    """The web."""
    return UrlSource(environ)


class UrlSource:
    """See `Source`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._http = Http(environ)

    async def manifest(self, ref: Ref) -> Manifest:
        """The file, with the size and version its server tells."""
        offline(self._environ)
        url, _, fragment = ref.name.partition("#")
        if "@" in urlsplit(url).netloc:
            raise BadRequest(
                f"{shown(url)}: a user and a password in an address are not sent",
                hint="use an address that is signed, or fetch the file and name its path",
            )
        pin = _PIN.fullmatch(fragment)
        if fragment and pin is None:
            raise BadRequest(f"not a digest: {fragment[:80]!r}", hint="write `#sha256=<64 hex>`")
        name = unquote(urlsplit(url).path).rpartition("/")[2] or "model"
        names = split_names(name)
        if len(names) > 1 and pin is not None:
            raise BadRequest("one digest cannot pin a model in parts", hint="leave it out")
        files = []
        for part in names:
            at = url if part == name else _sibling(url, part)
            head = await self._head(at, part)
            files.append(
                RemoteFile(
                    part,
                    number(head.get("content-length")),
                    Digest("sha256", pin[1].lower()) if pin else None,
                    at,
                    validator(head),
                )
            )
        notes = () if pin else (f"{shown(url)} gives no digest; it is trusted as it comes",)
        return check(Manifest(str(ref), "url", tuple(files), main=names[0], notes=notes))

    async def _head(self, url: str, name: str) -> Message:
        """The head of the answer; addresses that are signed for GET alone refuse to HEAD."""
        for method in ("HEAD", "GET"):
            async with self._http.get(url, method=method) as answer:
                if method == "HEAD" and answer.status in (403, 405, 501):
                    continue
                check_status(answer, f"file {name!r}", key="")
                return answer.headers
        raise AssertionError("a GET ends in an answer or an error")

    def open(
        self, file: RemoteFile, from_byte: int = 0, to_byte: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[memoryview]]:
        """See `Source.open`."""
        offline(self._environ)
        return body(self._http, file, {}, from_byte, to_byte)

    async def close(self) -> None:
        """See `Source.close`."""
        self._http.close()


def _sibling(url: str, name: str) -> str:
    parts = urlsplit(url)
    folder = parts.path.rpartition("/")[0]
    return parts._replace(path=f"{folder}/{name}").geturl()
