"""What can be set, told three ways: a list of settings, a JSON Schema, a commented example.

Knows: how to read the types, defaults and docstrings of `config.py`, which are the only source.
Does not know: how settings are read. Imported by the command line and the generator only.
"""

from __future__ import annotations

import ast
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Struct

from . import units
from .config import Config

SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"
_PATTERNS = {"bytes": units.SIZE_PATTERN, "seconds": units.DURATION_PATTERN}


class Setting(Struct, frozen=True):
    """One key of the configuration."""

    path: str
    """`engine.threads`; `<name>` stands for a name of the user's choice."""
    type: str
    default: str
    """As it would stand in the file; `required` if there is none."""
    meaning: str
    kind: str
    """Name of the Struct the key belongs to."""


def settings(root: type[Struct] = Config) -> tuple[Setting, ...]:
    """Every key below `root`, sections before their keys; each Struct is gone through once."""
    return tuple(_settings(root, "", set()))


def meaning(kind: type[Struct]) -> tuple[str, dict[str, str]]:
    """The docstring of a Struct, and the docstring below each of its fields.

    A field without a docstring is missing from the mapping.
    """
    file = sys.modules[kind.__module__].__file__
    tree = ast.parse(Path(file).read_text("utf-8")) if file else ast.Module([], [])
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
            return ast.get_docstring(node) or "", dict(_field_docs(node))
    return "", {}


def _field_docs(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            yield field.target.id, " ".join(below.value.value.split())


def _settings(kind: type[Struct], prefix: str, seen: set[type]) -> Iterator[Setting]:
    seen.add(kind)
    _, docs = meaning(kind)
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        path = prefix + field.name
        hint = hints[field.name]
        yield Setting(
            path=path,
            type=type_name(hint),
            default=_default(field),
            meaning=docs.get(field.name, ""),
            kind=kind.__name__,
        )
        below = _below(hint)
        if below is not None and below[0] not in seen:
            yield from _settings(below[0], f"{path}{below[1]}.", seen)


def _below(hint: Any) -> tuple[type[Struct], str] | None:
    """The Struct whose keys stand below a setting, and what comes between."""
    for option in _options(hint):
        if isinstance(option, type) and issubclass(option, Struct):
            return option, ""
        if get_origin(option) is dict:
            inner = _below(get_args(option)[1])
            return (inner[0], ".<name>" + inner[1]) if inner else None
    return None


def type_name(hint: Any) -> str:
    """A type in words for people: `seconds`, `list of text`, `name: number`."""
    names = []
    for option in _options(hint):
        if option is type(None):
            continue
        names.append(_one_type(option))
    return " or ".join(dict.fromkeys(names))


def _one_type(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Annotated:
        unit = _unit(hint)
        bounds = [
            f"{sign} {bound:g}"
            for meta in hint.__metadata__
            for sign, bound in (("≥", meta.ge), ("≤", meta.le))
            if bound is not None
        ]
        name = unit or _one_type(get_args(hint)[0])
        return name + (f" {' '.join(bounds)}" if bounds and bounds != ["≥ 0"] else "")
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if origin is tuple:
        return f"list of {type_name(get_args(hint)[0])}"
    if origin is dict:
        return f"mapping of name to {type_name(get_args(hint)[1])}"
    simple = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if hint in simple:
        return simple[hint]
    return {"Node": "entry"}.get(hint.__name__, "settings")


def _default(field: Any) -> str:
    value = field.default
    if field.default_factory is not NODEFAULT:
        value = field.default_factory()
    if value is NODEFAULT:
        return "required"
    return yaml_value(value)


def yaml_value(value: Any) -> str:
    """A default as YAML; Structs are shown by their keys, so here they are empty mappings."""
    match value:
        case None:
            return "unset"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}"
        case str():
            return value
        case tuple():
            return "[]"
        case dict() | Struct():
            return "{}"
        case _:
            return str(value)


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _unit(hint: Any) -> str | None:
    for meta in getattr(hint, "__metadata__", ()):
        extra = getattr(meta, "extra_json_schema", None) or {}
        if "x-unit" in extra:
            return str(extra["x-unit"])
    return None


# ---------------------------------------------------------------- JSON Schema


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `llmrr.yaml`, with a description for every key."""
    raw = msgspec.json.schema(Config)
    for kind in _kinds(Config, []):
        part = raw["$defs"][kind.__name__]
        doc, docs = meaning(kind)
        part["description"] = doc
        for name, value in part["properties"].items():
            part["properties"][name] = _described(value, docs.get(name, ""))
        part.pop("required", None)
    done: dict[str, Any] = {
        "$schema": SCHEMA_ID,
        "title": "llmrr.yaml",
        **_units_as_text(raw),
    }
    return done


def _kinds(kind: type[Struct], seen: list[type[Struct]]) -> list[type[Struct]]:
    if kind not in seen:
        seen.append(kind)
        for hint in typing.get_type_hints(kind, include_extras=True).values():
            below = _below(hint)
            if below is not None:
                _kinds(below[0], seen)
    return seen


def _described(value: dict[str, Any], text: str) -> dict[str, Any]:
    if "$ref" in value:  # a section with nothing in it means its defaults
        return {"description": text, "anyOf": [{"$ref": value["$ref"]}, {"type": "null"}]}
    if value.get("type") == "object":
        value = {**value, "type": ["object", "null"]}
    return {"description": text, **value}


def _units_as_text(value: Any) -> Any:
    """Numbers with a unit may also be text; an empty key means its default."""
    if isinstance(value, list):
        return [_units_as_text(v) for v in value]
    if not isinstance(value, dict):
        return value
    done = {key: _units_as_text(v) for key, v in value.items()}
    unit = done.pop("x-unit", None)
    if unit is None:
        return done
    bounds = ("type", "minimum", "maximum")
    number = {key: done.pop(key) for key in bounds if key in done}
    text = {"type": "string", "pattern": _PATTERNS[unit]}
    return {**done, "anyOf": [number, text]}


# ---------------------------------------------------------------- the example


_SAMPLES = {
    "providers": """\
#   openai:
#     api_key: ${OPENAI_API_KEY}
#   my-vllm:
#     base_url: http://127.0.0.1:8000/v1
""",
    "models": """\
#   tiny: zoo:tiny-chat
#   mini: openai/gpt-4o-mini
#   smart:
#     fallback: [mini, {race: [tiny, zoo:tiny-text]}]
#   split:
#     weighted: {mini: 9, tiny: 1}
#     sticky: session
#   choose:
#     auto: {objective: cost, models: [mini, tiny]}
#   exact: {target: /models/smollm2-135m, engine: torch}
#   adapted: {target: zoo:tiny-text, adapters: {sea: ./adapters/sea}}
#   big:
#     adopt: {command: [vllm, serve, Qwen/Qwen3-8B, --port, "{port}"], memory: 20GiB}
""",
    "aliases": """\
#   gpt-4o: smart
""",
}
_HEAD = """\
# llmrr.yaml: the configuration of LLM-Runner-Router.
#
# Every key is optional; what stands here, commented out, is the default. No file at all means:
# serve the built-in models and `auto`. Looked for in this order: `--config FILE`, LLMRR_CONFIG,
# ./llmrr.yaml, llmrr.yaml in the data folder. Environment variables (LLMRR_ENGINE_THREADS, …) win
# over the file, and flags over both. `llmrr config check` tells what a file would serve.
#
# Seconds may be written `90s`, `5m`, `1h30m`; bytes `512MiB`, `4GiB`.
"""


def example() -> str:
    """A commented `llmrr.yaml` with every key; loading it changes nothing."""
    hints = typing.get_type_hints(Config, include_extras=True)
    _, docs = meaning(Config)
    parts = [_HEAD]
    for field in msgspec.structs.fields(Config):
        below = _below(hints[field.name])
        text = docs.get(field.name, "")
        if below is None and field.name not in _SAMPLES:
            parts.append(_comment(f"{text} (optional, default {_default(field)})"))
            parts.append(f"# {field.name}: {_default(field)}\n")
            continue
        parts.append(_comment(f"{text} (optional)"))
        parts.append(f"{field.name}:\n")
        if field.name in _SAMPLES:
            parts.append("# For example:\n" + _SAMPLES[field.name])
        if below is not None:
            parts += _example_keys(below[0], field.name, named=below[1] == ".<name>")
    return "\n".join(part.rstrip("\n") if part != _HEAD else part for part in parts) + "\n"


def _example_keys(kind: type[Struct], section: str, *, named: bool) -> Iterator[str]:
    if named:
        yield f"#\n# The keys of an entry of `{section}`:"
    indent = "  "
    for setting in settings(kind):
        key = setting.path
        if "." in key:
            continue  # shown by its own line in the reference; here it would not be valid YAML
        yield _comment(f"{setting.meaning} (optional, default {setting.default})", indent)
        yield f"{indent}# {key}:" + ("" if setting.default == "unset" else f" {setting.default}")


def _comment(text: str, indent: str = "") -> str:
    import textwrap

    lines = textwrap.wrap(text, 98 - len(indent) - 2)
    lead = "\n" if not indent else ""
    return lead + "\n".join(f"{indent}# {line}" for line in lines)
