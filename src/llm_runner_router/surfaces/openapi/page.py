"""The page at `/docs`: one file, its headers, and nothing from elsewhere.

Knows: `page.html`. Does not know: the document, which the page asks for itself.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from functools import cache
from pathlib import Path

_PART = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def page() -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    """The page and its headers.

    Its own program and style are the only ones a browser may use with it, by their digests.
    """
    body = Path(__file__).with_name("page.html").read_bytes()
    digests = {kind: _digest(text) for kind, text in _PART.findall(body)}
    policy = (
        b"default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'; script-src %b; style-src %b"
    )
    return body, (
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", policy % (digests[b"script"], digests[b"style"])),
        (b"cache-control", b"no-cache"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    )


def _digest(text: bytes) -> bytes:
    return b"'sha256-%b'" % b64encode(hashlib.sha256(text).digest())
