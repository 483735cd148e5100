"""JSON Schemas of the values that requests and answers are decoded from and encoded to. Pure.

Knows: the types that `msgspec` knows. Does not know: routes, documents.

`msgspec.json.schema_components` names two `_Body`s by their whole modules only, and refuses a
default that is `Raw`, as our optional untouched fields have. So this walks `msgspec.inspect`
itself; the types say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import NODEFAULT, UNSET, Raw, inspect

Schema = dict[str, Any]

_SIMPLE: dict[type[inspect.Type], str] = {
    inspect.NoneType: "null",
    inspect.BoolType: "boolean",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.StrType: "string",
}


class Schemas:
    """Collects the schemas of types under names.

    Attributes:
        named: what goes below `components/schemas`, by name.
    """

    def __init__(self) -> None:
        self.named: dict[str, Schema] = {}

    def of(self, given: Any, fields: Mapping[str, Schema] | None = None) -> Schema:
        """The schema of a type; a schema is returned as it is.

        Args:
            given: a type that `msgspec` knows, or a JSON Schema.
            fields: what more there is to say of the fields of a struct, by their wire names.
        """
        if isinstance(given, dict):
            return given
        schema = self._of(inspect.type_info(given))
        if fields:
            own = self.named[schema["$ref"].rpartition("/")[2]]["properties"]
            for name, more in fields.items():
                own[name] = {**own[name], **more} if _extends(own[name], more) else more
        return schema

    def _of(self, info: inspect.Type) -> Schema:
        simple = _SIMPLE.get(type(info))
        if simple is not None:
            return {"type": simple}
        if isinstance(info, inspect.LiteralType):
            return {"enum": list(info.values)}
        if isinstance(info, inspect.UnionType):
            return self._union(info)
        if isinstance(info, inspect.CollectionType | inspect.VarTupleType):
            return {"type": "array", "items": self._of(info.item_type)}
        if isinstance(info, inspect.TupleType):
            size = len(info.item_types)
            schema: Schema = {"type": "array", "minItems": size, "maxItems": size}
            return {**schema, "prefixItems": [self._of(one) for one in info.item_types]}
        if isinstance(info, inspect.DictType):
            values = self._of(info.value_type)
            return {"type": "object", **({"additionalProperties": values} if values else {})}
        if isinstance(info, inspect.StructType):
            return self._struct(info)
        if isinstance(info, inspect.AnyType | inspect.RawType):
            return {}
        raise TypeError(f"no JSON Schema for {info!r}")

    def _union(self, info: inspect.UnionType) -> Schema:
        found = [self._of(one) for one in info.types]
        if {} in found:
            return {}
        plain = [one["type"] for one in found if one.keys() == {"type"}]
        rest = [one for one in found if one.keys() != {"type"}]
        if not rest:
            return {"type": plain}
        return {"anyOf": [*rest, *({"type": one} for one in plain)]}

    def _struct(self, info: inspect.StructType) -> Schema:
        name = f"{info.cls.__module__.rpartition('.')[2]}.{info.cls.__name__.lstrip('_')}"
        if name not in self.named:
            schema: Schema = {"type": "object"}
            self.named[name] = schema  # before its fields, which may hold it again
            words = (info.cls.__doc__ or "").strip()
            if words:
                schema["description"] = words.partition("\n\n")[0]
            properties = {field.encode_name: self._field(field) for field in info.fields}
            if info.tag_field is not None:
                properties = {info.tag_field: {"enum": [info.tag]}, **properties}
            schema["properties"] = properties
            needed = [field.encode_name for field in info.fields if field.required]
            needed = needed if info.tag_field is None else [info.tag_field, *needed]
            if needed:
                schema["required"] = needed
        return {"$ref": f"#/components/schemas/{name}"}

    def _field(self, field: inspect.Field) -> Schema:
        schema = self._of(field.type)
        told = field.default not in (NODEFAULT, UNSET, None) and not isinstance(field.default, Raw)
        if told and isinstance(field.default, bool | int | float | str) and "$ref" not in schema:
            schema = {**schema, "default": field.default}
        return schema


def _extends(known: Schema, more: Schema) -> bool:
    """Whether `more` only narrows what is `known`, rather than to say it anew."""
    return bool(known) and not ({"type", "anyOf", "$ref"} & more.keys())


def shape(optional: Mapping[str, Schema] | None = None, /, **required: Schema) -> Schema:
    """The schema of an object that has at least the fields `required`."""
    schema: Schema = {"type": "object", "properties": {**required, **(optional or {})}}
    if required:
        schema["required"] = list(required)
    return schema


def listed(items: Schema) -> Schema:
    """The schema of a list."""
    return {"type": "array", "items": items}


def nullable(kind: str) -> Schema:
    """The schema of a value of that type that may be null."""
    return {"type": [kind, "null"]}


TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
TRUTH: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
ANYTHING: Schema = {}
