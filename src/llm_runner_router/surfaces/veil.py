"""What a client must not learn from our words: where files lie on this machine.

Knows: how paths look in messages. Does not know: who is asking. Messages are written for whoever
keeps the server, and name the file with its folder; a client elsewhere is told the last part
alone, which says as much to it. The full words are in the log.
"""

from __future__ import annotations

import re
from typing import TypeVar

from llm_runner_router.errors import RunnerError

E = TypeVar("E", bound=RunnerError)

_ROUTES = r"(?!(?:v\d\w*|llmrr|api)(?:/|\b))"
"""Addresses on servers look like paths; the first part tells them."""
_START = rf"(?:file:)?(?:~?/(?![/\s]){_ROUTES}|[A-Za-z]:[\\/]|\\\\)"
_QUOTED = re.compile(rf"(?<=`){_START}[^`\n]*(?=`)|(?<='){_START}[^'\n]*(?=')")
_REST = r"[^\s`'\"<>|*?;,()\[\]{}]+"
_BARE = re.compile(rf"(?:(?<![\w/.~<>:\\-])|(?<=\w:)){_START}{_REST}")
_PARTS = re.compile(r"[\\/]+")


def text(words: str) -> str:
    """`words` with each absolute path cut to its last part."""
    if "/" not in words and "\\" not in words:
        return words
    return _BARE.sub(_last, _QUOTED.sub(_last, words))


def veiled(exc: E) -> E:
    """`exc` as a client may read it: itself where no path is in it, else a copy."""
    message = text(exc.message)
    hint = text(exc.hint) if exc.hint else exc.hint
    target = text(exc.target) if exc.target else exc.target
    if (message, hint, target) == (exc.message, exc.hint, exc.target):
        return exc
    # Not its constructor: that of a class may ask for more.
    told: E = type(exc).__new__(type(exc), message)
    told.__dict__.update(exc.__dict__)
    told.message, told.hint, told.target = message, hint, target
    return told


def _last(found: re.Match[str]) -> str:
    path = found[0].rstrip("\\/")
    tail = ""
    while path.endswith((".", ":")):
        path, tail = path[:-1], path[-1] + tail
    return _PARTS.split(path.removeprefix("file:"))[-1] + tail
