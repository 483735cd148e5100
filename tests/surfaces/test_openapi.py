"""The document says what the route tables say, in OpenAPI's words; the page needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema
import msgspec
import pytest
from msgspec import Raw, Struct

from llm_runner_router import __version__
from llm_runner_router.config import Server
from llm_runner_router.surfaces.http import HttpApp
from llm_runner_router.surfaces.openapi.document import document, encoded, load
from llm_runner_router.surfaces.openapi.page import page
from llm_runner_router.surfaces.openapi.schemas import Schemas
from llm_runner_router.surfaces.testing import FakeGateway

METHODS = {"get", "post", "delete", "head", "put", "patch", "options"}
_PREFIX = re.compile(r"^/v1(beta)?(?=/)")


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return document(load())


def operations(told: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            assert method in METHODS
            yield path, method, operation


def every(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from every(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from every(inner)


# ---------------------------------------------------------------- routes


def test_every_route_is_described_and_nothing_else(told: dict[str, Any]) -> None:
    app = HttpApp(FakeGateway(), Server(port=0))
    routed = {
        (path, method)
        for table in app.tables()
        for path, methods in table.items()
        for method in methods
    }
    described = {(_PREFIX.sub("", p), method.upper()) for p, method, _ in operations(told)}
    assert routed - described == set(), "routes without an `Operation` in `surfaces/openapi/apis/`"
    assert described - routed == set(), "an `Operation` whose route is not in a table"


def test_names_of_operations_differ(told: dict[str, Any]) -> None:
    ids = Counter(operation["operationId"] for _, _, operation in operations(told))
    assert [name for name, times in ids.items() if times > 1] == []


def test_parts_of_a_path_are_parameters(told: dict[str, Any]) -> None:
    for path, method, operation in operations(told):
        named = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path)), (path, method)


def test_only_these_routes_need_no_key(told: dict[str, Any]) -> None:
    public = {path for path, _, operation in operations(told) if operation["security"] == []}
    up = {"/healthz", "/health/liveliness", "/health/liveness", "/health/readiness"}
    assert public == {*up, "/docs"}


def test_links_lead_to_operations(told: dict[str, Any]) -> None:
    known = {operation["operationId"] for _, _, operation in operations(told)}
    named = {link["operationId"] for one in every(told) for link in one.get("links", {}).values()}
    assert named
    assert named <= known


# ---------------------------------------------------------------- schemas


def test_references_lead_somewhere(told: dict[str, Any]) -> None:
    for one in every(told):
        where = one.get("$ref")
        if isinstance(where, str):
            at: Any = told
            for name in where.removeprefix("#/").split("/"):
                at = at[name]


def test_schemas_are_json_schemas(told: dict[str, Any]) -> None:
    for schema in told["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for _, _, operation in operations(told):
        for holder in (operation.get("requestBody"), operation["responses"].get("200")):
            for content in (holder or {}).get("content", {}).values():
                jsonschema.Draft202012Validator.check_schema(content["schema"])


def test_examples_are_what_their_schemas_say(told: dict[str, Any]) -> None:
    found = 0
    for _, _, operation in operations(told):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            if "example" in content:
                whole = {**content["schema"], "components": told["components"]}
                jsonschema.validate(content["example"], whole, jsonschema.Draft202012Validator)
                found += 1
    assert found > 10


class _Inner(Struct, tag="inner", tag_field="kind"):
    """What is inside.

    And more of it.
    """

    values: list[int]


class _Outer(Struct, rename="camel"):
    need_it: _Inner | str
    count: int = 3
    raw: Raw = Raw(b"")
    maybe: float | None = None
    again: list[_Outer] = []
    pair: tuple[int, str] = (1, "a")
    named: dict[str, bool] = {}


def test_a_type_becomes_the_schema_of_what_is_decoded_into_it() -> None:
    schemas = Schemas()
    assert schemas.of(_Outer, {"count": {"minimum": 1}}) == {
        "$ref": "#/components/schemas/test_openapi.Outer"
    }
    outer = schemas.named["test_openapi.Outer"]
    assert outer["required"] == ["needIt"]
    assert outer["properties"] == {
        "needIt": {"anyOf": [{"$ref": "#/components/schemas/test_openapi.Inner"},
                             {"type": "string"}]},
        "count": {"type": "integer", "default": 3, "minimum": 1},
        "raw": {},
        "maybe": {"type": ["number", "null"]},
        "again": {"type": "array", "items": {"$ref": "#/components/schemas/test_openapi.Outer"}},
        "pair": {"type": "array", "minItems": 2, "maxItems": 2,
                 "prefixItems": [{"type": "integer"}, {"type": "string"}]},
        "named": {"type": "object", "additionalProperties": {"type": "boolean"}},
    }  # fmt: skip
    assert schemas.named["test_openapi.Inner"] == {
        "type": "object",
        "description": "What is inside.",
        "properties": {
            "kind": {"enum": ["inner"]},
            "values": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["kind", "values"],
    }


def test_it_has_the_version_of_the_product() -> None:
    assert msgspec.json.decode(encoded())["info"]["version"] == __version__


def test_nothing_of_it_is_loaded_at_the_start() -> None:
    code = (
        "import sys, llm_runner_router.server_listen\n"
        "sys.exit(any('surfaces.openapi' in name for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ}, timeout=60)
    assert done.returncode == 0


# ---------------------------------------------------------------- the page


def test_the_page_may_run_its_own_program_and_nothing_else() -> None:
    body, headers = page()
    policy = dict(headers)[b"content-security-policy"].decode()
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; connect-src 'self';")
    for kind in ("script", "style"):
        (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>".encode(), body, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
        assert body.count(f"<{kind}".encode()) == 1


def test_the_page_takes_nothing_from_elsewhere() -> None:
    text = page()[0].decode()
    assert not re.search(r"(src|href)=|url\(|@import|https?://|\son\w+=|innerHTML", text.replace(
        'href="#routes"', ""))  # fmt: skip


def test_what_the_page_asks_to_be_typed_has_a_label() -> None:
    text = page()[0].decode()
    markup = text[: text.index("<script>")]
    assert '<html lang="en">' in markup
    for field in re.findall(r"<input[^>]*>", markup):
        before = markup[: markup.index(field)]
        assert before.rfind("<label") > before.rfind("</label>"), field
