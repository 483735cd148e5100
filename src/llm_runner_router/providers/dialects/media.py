"""Pictures and documents inside a request: what a `data:` URL holds. Pure.

Knows: RFC 2397. Does not know: dialects, which kinds a model takes. Nothing is ever fetched.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from llm_runner_router.errors import BadRequest

_HEAD = re.compile(
    r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<params>(?:;[\w.+-]+=[^;,]*)*)(?P<b64>;base64)?,"
)


class Media(Struct, frozen=True):
    """Bytes with their type."""

    media_type: str
    base64: str

    def text(self, path: str) -> str:
        """The bytes as UTF-8.

        Raises:
            BadRequest: they are not; names `path`.
        """
        try:
            return base64.b64decode(self.base64).decode()
        except UnicodeDecodeError as exc:
            raise BadRequest(f"{path!r} is not UTF-8: {exc.reason}", param=path) from exc

    @property
    def data(self) -> bytes:
        """The bytes."""
        return base64.b64decode(self.base64)


def data_url(url: str, path: str) -> Media:
    """What `url` holds; base64 is checked and not decoded into a second copy.

    Raises:
        BadRequest: it is no `data:` URL, or its base64 is broken; names `path`.
    """
    head = _HEAD.match(url)
    if head is None:
        raise BadRequest(
            f"{path!r} is no `data:` URL", param=path, hint="for example data:image/png;base64,…"
        )
    kind, payload = head["type"] or "text/plain", url[head.end() :]
    if not head["b64"]:
        return Media(kind, base64.b64encode(unquote_to_bytes(payload)).decode())
    try:
        binascii.a2b_base64(payload, strict_mode=True)
    except (binascii.Error, ValueError) as exc:
        raise BadRequest(f"{path!r} holds broken base64: {exc}", param=path) from exc
    return Media(kind, payload)
