"""The server keeps to its own document: schemathesis asks every route what it allows, and what not.

It asks over a real socket. Two of its checks are left out. `positive_data_acceptance`: limits
across fields (one of `input` and `messages`, a tool that must be named, images that must be images)
are no part of a JSON Schema, so that what fits the schema may still be refused with 400.
`ignored_auth`: it takes the key that a test sends for one that it generated itself;
`test_without_a_key_…` asks the same of every route.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from msgspec import Raw
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi import checks

from llm_runner_router import config
from llm_runner_router.app import App
from llm_runner_router.config import Config, Engine, Server
from llm_runner_router.home import find
from llm_runner_router.models.locks import FileLock
from llm_runner_router.policy.auth import ensure_key
from llm_runner_router.policy.batches import Batches
from llm_runner_router.server import Service, bind, url_of
from llm_runner_router.server_listen import Listener
from llm_runner_router.surfaces.batch_run import BatchRunner
from llm_runner_router.surfaces.openapi.document import document, load
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeEmbedder, FakeReranker, FakeTarget, deltas_of
from llm_runner_router.types import (
    Call,
    Delta,
    Embedder,
    Request,
    Reranker,
    Target,
    ToolCallDelta,
    Usage,
)

pytestmark = pytest.mark.xdist_group("openapi")

TOLD = document(load())
CONFIG = schemathesis.Config.from_dict({"generation": {"with-security-parameters": False}})
SCHEMA = schemathesis.openapi.from_dict(TOLD, config=CONFIG)
ROUTES = [(path, method) for path, methods in TOLD["paths"].items() for method in methods]
SHOWN = [f"{method.upper()} {path}" for path, method in ROUTES]
SECONDS = 20
"""How long one answer may take."""

load_all_checks()
LEFT_OUT = [checks.positive_data_acceptance, checks.ignored_auth]


# ---------------------------------------------------------------- two servers


class Served:
    """A server that runs in a thread of its own, and how to ask it."""

    def __init__(self, url: str, key: str, names: Mapping[str, str]) -> None:
        self.url = url
        self.key = {"authorization": f"Bearer {key}"}
        self.names = names
        self.session = requests.Session()

    def name(self, path: str) -> str:
        """A model that does what the route is for."""
        kinds = ((word, name) for word, name in self.names.items() if word in path)
        return next(kinds, ("", self.names[""]))[1]

    def ask(self, case: Any, *, key: bool = True) -> Any:
        """Send a case, and hold the answer against the document."""
        return case.call_and_validate(
            base_url=self.url,
            session=self.session,
            headers=self.key if key else {},
            excluded_checks=LEFT_OUT,
            timeout=SECONDS,
        )


@contextmanager
def serving(service: Service, key: str, names: Mapping[str, str]) -> Iterator[Served]:
    ready = threading.Event()
    made: list[Any] = []

    async def main() -> None:
        stop = asyncio.Event()
        limits = Server(port=0)
        await service.start()
        with bind(limits) as listening:
            listener = Listener(service, limits, listening, shutdown=lambda: None)
            await listener.start()
            made.extend((asyncio.get_running_loop(), stop, url_of(listening)))
            ready.set()
            await stop.wait()
            await listener.close(0)
        await service.close()
        await service.responses.aclose()
        made.append(listener.app.busy)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert ready.wait(SECONDS)
        served = Served(made[2], key, names)
        with served.session:
            yield served
    finally:
        made[0].call_soon_threadsafe(made[1].set)
        thread.join(SECONDS)
    assert made[3] == 0, "a request is still in work"


LOGPROBS = Raw(
    b'{"content":[{"token":"a","logprob":-0.5,"bytes":[97],'
    b'"top_logprobs":[{"token":"a","logprob":-0.5,"bytes":[97]}]}]}'
)
EVERYTHING = (
    Delta(role="assistant", redacted="c2VhbGVk"),
    Delta(reasoning="well", signature="signed"),
    Delta(text="a", logprobs=LOGPROBS),
    Delta(refusal="no"),
    Delta(tool_calls=(ToolCallDelta(0, "call_1", "add", '{"a":'),)),
    Delta(tool_calls=(ToolCallDelta(0, arguments="1}"), ToolCallDelta(1, name="none"))),
    Delta(
        finish="tool_calls",
        usage=Usage(9, 8, cached_tokens=3, reasoning_tokens=2, cache_write_tokens=1),
        timings=Raw(b'{"prompt_ms":1.5,"predicted_ms":2.5}'),
    ),
)


def said(request: Request, call: Call) -> Sequence[Delta]:
    """All that an answer can have, for questions of one message; else a few words."""
    return EVERYTHING if len(request.messages) == 1 else deltas_of("a b")


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway whose models are all fakes."""
    gateway = FakeGateway(
        {"m": FakeTarget("m", said)},
        {"e": FakeEmbedder("e")},
        rerankers={"r": FakeReranker("r")},
        responses=tmp_path_factory.mktemp("kept") / "responses.sqlite",
    )
    gateway.shelf.names.add("stored")
    folder = tmp_path_factory.mktemp("batches")
    store = Batches(folder / "batches", FileLock(folder / "lock"))
    gateway.batches = BatchRunner(gateway, store, config.Batches(), longest=60)
    with serving(gateway, KEY, {"mbed": "e", "rerank": "r", "": "m"}) as served:
        yield served


# ---------------------------------------------------------------- what is asked


def examine(served: Served, path: str, method: str, mode: GenerationMode, times: int) -> None:
    """Ask one operation `times` times, with what the document allows or does not allow."""
    operation = SCHEMA[path][method.upper()]

    @settings(
        max_examples=times,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            # Names that nobody serves would only ever find that out.
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = served.name(path)
            if "model" in (case.path_parameters or {}):
                case.path_parameters["model"] = served.name(path)
        served.ask(case)

    ask()


def refusable(path: str, method: str) -> bool:
    """Whether the document says anything that a request could be at odds with."""
    told = TOLD["paths"][path][method]
    content = told.get("requestBody", {}).get("content", {}).get("application/json", {})
    typed = (p for p in told.get("parameters", ()) if p["in"] == "query" and p["schema"].keys())
    return bool(content.get("schema")) or any(p["schema"] != {"type": "string"} for p in typed)


@pytest.mark.parametrize(("path", "method"), ROUTES, ids=SHOWN)
def test_what_the_document_allows_is_answered_as_it_says(
    fake: Served, path: str, method: str
) -> None:
    examine(fake, path, method, GenerationMode.POSITIVE, 3)


@pytest.mark.parametrize(
    ("path", "method"), [one for one in ROUTES if refusable(*one)], ids=lambda one: str(one)
)
def test_what_the_document_does_not_allow_is_refused(fake: Served, path: str, method: str) -> None:
    examine(fake, path, method, GenerationMode.NEGATIVE, 2)


EXAMPLES = [
    (path, method, content["example"])
    for path, method in ROUTES
    for content in TOLD["paths"][path][method].get("requestBody", {}).get("content", {}).values()
    # A batch names a file that was put there before: `test_batches_client.py`.
    if "example" in content and path != "/v1/batches"
]


@pytest.mark.parametrize(("path", "method", "example"), EXAMPLES, ids=lambda one: str(one)[:40])
def test_examples_are_answered(
    fake: Served, path: str, method: str, example: dict[str, Any]
) -> None:
    bodies = [example]
    if len(TOLD["paths"][path][method]["responses"]["200"]["content"]) > 1:
        bodies += [{**example, "stream": True}, {**example, "stream": False}]
    for body in bodies:
        answer = fake.ask(case_of(fake, path, method, body))
        assert answer.status_code == 200, answer.text
        assert answer.content


def case_of(served: Served, path: str, method: str, body: Any = None, **parts: str) -> Any:
    """A case without anything generated."""
    values: dict[str, Any] = {}
    if body is not None:
        values["body"] = {**body, "model": served.name(path)} if "model" in body else body
    if "{model}" in path:
        parts = {**parts, "model": served.name(path)}
    operation = SCHEMA[path][method.upper()]
    return operation.Case(path_parameters=parts, media_type="application/json", **values)


def test_a_response_is_made_come_back_to_and_forgotten(fake: Served) -> None:
    made = fake.ask(case_of(fake, "/v1/responses", "post", {"model": "m", "input": "hi"}))
    id = made.json()["id"]
    links = (
        made.json()["object"],
        TOLD["paths"]["/v1/responses"]["post"]["responses"]["200"]["links"],
    )
    assert links[0] == "response"
    one, items = "/v1/responses/{response_id}", "/v1/responses/{response_id}/input_items"
    shown = fake.ask(case_of(fake, one, "get", response_id=id))
    assert shown.json() == made.json()
    (item,) = fake.ask(case_of(fake, items, "get", response_id=id)).json()["data"]
    assert item["content"] == [{"type": "input_text", "text": "hi"}]
    gone = fake.ask(case_of(fake, one, "delete", response_id=id))
    assert gone.json() == {"id": id, "object": "response", "deleted": True}
    for path, method in ((one, "get"), (one, "delete"), (items, "get")):
        assert fake.ask(case_of(fake, path, method, response_id=id)).status_code == 404


def test_links_between_responses_are_followed(fake: Served) -> None:
    """Make, show, list and forget in any order; what was forgotten must stay so."""
    reached = set()

    class Following(SCHEMA.include(path_regex="^/v1/responses").as_state_machine()):  # type: ignore[misc]  # made at run time
        def before_call(self, case: Any) -> None:
            if isinstance(case.body, dict) and "model" in case.body:
                case.body = {"model": "m", "input": "hi"}

        def call(self, case: Any, **_: Any) -> Any:
            answer = case.call(
                base_url=fake.url, session=fake.session, headers=fake.key, timeout=SECONDS
            )
            reached.add((case.operation.label, answer.status_code))
            return answer

        def validate_response(self, response: Any, case: Any, **_: Any) -> None:
            how = {"base_url": fake.url, "headers": fake.key}
            # `before_call` mends what was wrong on purpose.
            left_out = [*LEFT_OUT, checks.negative_data_rejection]
            case.validate_response(
                response, excluded_checks=left_out, headers=fake.key, transport_kwargs=how
            )

    Following.run(
        settings=settings(
            max_examples=10,
            stateful_step_count=6,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
    )
    one = "/v1/responses/{response_id}"
    assert {("POST /v1/responses", 200), (f"GET {one}", 200), (f"DELETE {one}", 200)} <= reached


def test_nothing_to_embed_is_an_empty_vector(fake: Served) -> None:
    answer = fake.ask(case_of(fake, "/api/embeddings", "post", {"model": "e", "input": []}))
    assert answer.json() == {"embedding": []}


def test_a_stored_model_is_copied_and_forgotten(fake: Served) -> None:
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("/api/copy", "post", {"source": "stored", "destination": "another"}),
        ("/api/create", "post", {"model": "ignored", "from": "another", "stream": False}),
        ("/api/delete", "delete", {"name": "another"}),
    ]
    for path, method, body in asked:
        answer = fake.ask(case_of(fake, path, method, body))
        assert answer.status_code == 200, path
        if path != "/api/create":
            assert (answer.content, "content-type" in answer.headers) == (b"", False), path


@pytest.mark.parametrize("path", TOLD["paths"])
def test_other_methods_are_refused_with_those_there_are(fake: Served, path: str) -> None:
    known = {method.upper() for method in TOLD["paths"][path]}
    where = fake.url + path.replace("{", "").replace("}", "")
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"):
        if method not in known:
            answer = fake.session.request(method, where, headers=fake.key, timeout=SECONDS)
            assert answer.status_code == 405, method
            assert set(answer.headers["allow"].split(", ")) == known


@pytest.mark.parametrize(("path", "method"), ROUTES, ids=SHOWN)
def test_without_a_key_there_is_nothing_but_a_refusal_in_the_words_of_the_api(
    fake: Served, path: str, method: str
) -> None:
    told = TOLD["paths"][path][method]
    body: dict[str, Any] | None = {} if "requestBody" in told else None
    parts = {p["name"]: "x" for p in told.get("parameters", ()) if p["in"] == "path"}
    answer = fake.ask(case_of(fake, path, method, body, **parts), key=False)
    assert answer.status_code == (200 if told["security"] == [] else 401)


# ---------------------------------------------------------------- the real gateway


class Pretending(App):
    """An `App` in which everything is real but the models' work."""

    def target(self, model: str) -> Target:
        super().target(model)  # raises for what is not served
        return FakeTarget(model, said)

    def embedder(self, model: str) -> Embedder:
        super().embedder(model)
        return FakeEmbedder(model)

    def reranker(self, model: str) -> Reranker:
        super().reranker(model)
        return FakeReranker(model)

    async def load(self, name: str, *, pin: bool = False) -> Any:
        self.local(name)
        return None


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The zoo's models in a real `App`."""
    home = tmp_path_factory.mktemp("home")
    environ = {**os.environ, "LLMRR_HOME": str(home)}
    app = Pretending(Config(engine=Engine(spare=False)), environ=environ)
    key = ensure_key(find(environ), environ).secret.reveal()
    with serving(app, key, {"": "zoo:tiny-math"}) as served:
        yield served


REAL = [one for one in ROUTES if one[0] != "/api/pull"]
"""A pull of a name that was made up would ask hubs for it."""


@pytest.mark.parametrize(("path", "method"), REAL, ids=[f"{m} {p}" for p, m in REAL])
def test_the_real_gateway_keeps_to_it_as_well(real: Served, path: str, method: str) -> None:
    examine(real, path, method, GenerationMode.POSITIVE, 2)


# ---------------------------------------------------------------- at length


MANY = 60
"""Cases of each operation."""


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_fakes_at_length(fake: Served, mode: GenerationMode) -> None:
    for path, method in ROUTES:
        if mode is GenerationMode.POSITIVE or refusable(path, method):
            examine(fake, path, method, mode, MANY)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_real_gateway_at_length(real: Served) -> None:
    for path, method in REAL:
        examine(real, path, method, GenerationMode.POSITIVE, MANY)
