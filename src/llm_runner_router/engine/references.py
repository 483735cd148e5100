"""JSON Schemas put into other schemas, by the gateway and by runners. Imports nothing of ours."""

from __future__ import annotations

from typing import Any


def moved(schema: Any, place: str) -> Any:
    """`schema` with its own references (`#…`) pointing to `place`, where it is put."""
    if isinstance(schema, list):
        return [moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: moved(value, place) for key, value in schema.items()}
    ref = found.get("$ref")
    if isinstance(ref, str) and ref.startswith("#"):
        found["$ref"] = place + ref[1:]
    return found
