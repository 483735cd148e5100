"""Google's own schemas as JSON Schemas. Pure.

Knows: the `Schema` of Gemini's API, which is a part of OpenAPI 3.0's. Does not know: requests.
"""

from __future__ import annotations

from typing import Any

_INTEGERS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_SNAKE = {
    "any_of": "anyOf",
    "min_items": "minItems",
    "max_items": "maxItems",
    "min_length": "minLength",
    "max_length": "maxLength",
    "min_properties": "minProperties",
    "max_properties": "maxProperties",
    "property_ordering": "propertyOrdering",
    "defs": "$defs",
    "ref": "$ref",
    "additional_properties": "additionalProperties",
}
"""Google's own names of keywords, which its servers take in either spelling."""


def from_google(schema: Any) -> Any:
    """A `Schema` as a JSON Schema that means the same."""
    if isinstance(schema, list):
        return [from_google(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for given, value in schema.items():
        key: str = _SNAKE.get(given) or given
        if key == "type" and isinstance(value, str):
            if value != "TYPE_UNSPECIFIED":
                found[key] = value.lower()
        elif key in ("properties", "$defs", "defs") and isinstance(value, dict):
            found[key] = {name: from_google(one) for name, one in value.items()}
        elif key in ("items", "anyOf", "additionalProperties") and isinstance(value, dict | list):
            found[key] = from_google(value)
        elif key == "example":
            found["examples"] = [value]
        elif key in _INTEGERS and isinstance(value, str) and value.isdigit():
            found[key] = int(value)  # integers of 64 bits are texts in Google's JSON
        elif key not in ("nullable", "propertyOrdering") and (key, value) != ("format", "enum"):
            found[key] = value
    return _nullable(found) if schema.get("nullable") is True else found


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if isinstance(schema.get("anyOf"), list):
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "type" not in schema:
        return schema
    found = {**schema, "type": [schema["type"], "null"]}
    if isinstance(schema.get("enum"), list):
        found["enum"] = [*schema["enum"], None]
    return found
