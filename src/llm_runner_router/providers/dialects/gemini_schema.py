"""JSON Schemas as Google's own. Pure.

Knows: the `Schema` of Gemini's API, which is a part of OpenAPI 3.0's, and which keywords of JSON
Schema that API looks at. Does not know: requests.

Keywords from ai.google.dev/gemini-api/docs/structured-output and the SDK's `Schema`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from llm_runner_router.fidelity import Receipt

SEEN = frozenset(
    "$id $defs $ref $anchor $schema type format title description enum items prefixItems minItems"
    " maxItems minimum maximum anyOf oneOf properties additionalProperties required default"
    " propertyOrdering const definitions".split()
)
"""Keywords of JSON Schema that are looked at, or mean nothing anyway."""
_MAPS = ("properties", "$defs", "definitions", "patternProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_KEPT = frozenset(
    "title description minimum maximum minItems maxItems minLength maxLength minProperties"
    " maxProperties pattern default required propertyOrdering".split()
)
_FORMATS = frozenset(("int32", "int64", "float", "double", "date-time", "enum"))
MAX_DEPTH = 64
"""How deep a schema may be written out; names inside of it may stand for each other."""
MAX_PARTS = 10_000
"""Schemas in a schema that is written out: two names that stand for themselves make many."""


def overlooked(schema: Any) -> set[str]:
    """The keywords in `schema` that Google's API does not look at."""
    found: set[str] = set()
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict):
            continue
        for key, value in one.items():
            if key not in SEEN and not key.startswith("x-"):
                found.add(key)
            elif key in _MAPS and isinstance(value, dict):
                waiting += value.values()
            elif key in _LISTS and isinstance(value, list):
                waiting += value
            elif key in ("items", "additionalProperties"):
                waiting.append(value)
    return found


def to_google(schema: Raw, path: str, receipt: Receipt) -> dict[str, Any]:
    """A JSON Schema as a `Schema`; what that cannot say is noted under `path`."""
    value = msgspec.json.decode(schema)
    writer = _ToGoogle(value)
    found = writer.schema(value, 0)
    if writer.lost:
        words = ", ".join(sorted(writer.lost)[:20])
        receipt.translated(path, f"Google's schemas do not have: {words}")
    return found


class _ToGoogle:
    """Writes one schema; notes what is lost."""

    def __init__(self, root: Any) -> None:
        self.lost: set[str] = set()
        self._root = root
        self._left = MAX_PARTS

    def schema(self, one: Any, depth: int) -> dict[str, Any]:
        if not isinstance(one, dict):
            return {}
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            self.lost.add("$ref that leads to itself")
            return {}
        if "$ref" in one:
            named = self._named(one["$ref"])
            one = {**named, **{k: v for k, v in one.items() if k != "$ref"}}
            if "$ref" in one:
                return self.schema(one, depth + 1)
        found: dict[str, Any] = {}
        for key, value in one.items():
            self._keyword(key, value, found, depth)
        return found

    def _named(self, ref: Any) -> dict[str, Any]:
        value = self._root
        for name in str(ref).removeprefix("#").split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, dict):
            self.lost.add("$ref")
            return {}
        return value

    def _keyword(self, key: str, value: Any, found: dict[str, Any], depth: int) -> None:
        if key == "type":
            self._type(value, found)
        elif key in _KEPT:
            found[key] = value
        elif key == "properties" and isinstance(value, dict):
            found[key] = {name: self.schema(v, depth + 1) for name, v in value.items()}
        elif key == "items":
            found[key] = self.schema(value, depth + 1)
        elif key in ("anyOf", "oneOf") and isinstance(value, list):
            self._choices(value, found, depth)
        elif key in ("enum", "const"):
            self._values(value if key == "enum" else [value], found, key)
        elif key == "format":
            if value in _FORMATS:
                found[key] = value
            else:
                self.lost.add(f"format {value}"[:60])
        elif key not in ("$defs", "definitions", "$schema", "$id"):
            self.lost.add(key)

    def _type(self, value: Any, found: dict[str, Any]) -> None:
        names = value if isinstance(value, list) else [value]
        if "null" in names and len(names) > 1:
            found["nullable"] = True
            names = [name for name in names if name != "null"]
        if len(names) == 1:
            found["type"] = str(names[0]).upper()
        else:
            found["anyOf"] = [{"type": str(name).upper()} for name in names]

    def _choices(self, value: list[Any], found: dict[str, Any], depth: int) -> None:
        choices = [one for one in value if one != {"type": "null"}]
        if len(choices) < len(value):
            found["nullable"] = True
        if len(choices) == 1:
            found.update(self.schema(choices[0], depth + 1))
        else:
            found["anyOf"] = [self.schema(one, depth + 1) for one in choices]

    def _values(self, values: Any, found: dict[str, Any], key: str) -> None:
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            found["enum"] = values
            found.setdefault("type", "STRING")
        else:
            self.lost.add(key)
