"""Settings that came from another program's file, as the text of an `llmrr.yaml` of their own.

Pure. Knows: YAML as far as settings need it, and a comment with the line each came from. Does not
know: any other program, or what settings mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from .config_foreign import Foreign
from .config_yaml import Path as Where

_PLAIN = re.compile(r"[A-Za-z][\w./-]*")
_WORDS = frozenset("true false yes no on off null y n".split())


def written(foreign: Foreign, label: str) -> str:
    """The settings of `foreign` as YAML; each line says which line of `label` it came from.

    Variables that the settings name are said at the top; their values are in no line.
    """
    lines = [f"# From {label}, by `llmrr migrate`."]
    if foreign.environment:
        lines.append("# It wants these variables, whose values are left where they were:")
        lines += [f"#   {name}  ({said_at(foreign, name, label)})" for name in foreign.environment]
    for key, value in foreign.settings.items():
        if value not in ({}, (), []):
            lines += ["", *_entry(key, value, (key,), foreign, label, 0, 0)]
    return "\n".join(lines) + "\n"


def said_at(foreign: Foreign, variable: str, label: str) -> str:
    """Where the value of a variable stands."""
    for note in foreign.notes:
        if f"`{variable}`" in note.text and note.outcome == "became":
            return f"{label}:{note.line}"
    return label


def _entry(
    key: str, value: Any, at: Where, foreign: Foreign, label: str, depth: int, above: int
) -> Iterator[str]:
    """The lines of one setting; `above` is the line its section came from, said already."""
    line = foreign.lines.get(at, 0)
    comment = f"  # {label}:{line}" if line and line != above else ""
    head = f"{'  ' * depth}{_scalar(key)}:"
    inside = {foreign.lines.get((*at, inner), line) for inner in value} if _nests(value) else set()
    if not _nests(value) or (depth and inside <= {line} and _short(value)):
        yield f"{head} {_flow(value)}{comment}"
        return
    yield head + comment
    for inner, part in value.items():
        yield from _entry(inner, part, (*at, inner), foreign, label, depth + 1, line or above)


def _nests(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _short(value: dict[str, Any]) -> bool:
    """Whether a mapping is all scalars and fits into a line: a price, weights."""
    return len(_flow(value)) <= 60 and not any(isinstance(v, dict | list) for v in value.values())


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(k)}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(v) for v in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        # YAML reads `1e-05` as text; all digits mean the same to everyone.
        return f"{value:.12f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return json.dumps(text, ensure_ascii=False)
