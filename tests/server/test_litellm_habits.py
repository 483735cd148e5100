"""What clients of a LiteLLM proxy look for: its headers and its routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from llm_runner_router.app import App
from llm_runner_router.config import Config, Node, Provider, Server
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeEmbedder, FakeTarget, deltas_of
from llm_runner_router.types import Attempt, Call, Delta, Price, Request, Usage

CHAT: Mapping[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def answered(request: Request, call: Call) -> Sequence[Delta]:
    for number, target in enumerate(("a", "a", "b")):
        call.trace.attempts.append(Attempt(target, number, number + 1, "Unavailable"))
    return deltas_of("yes", usage=Usage(1000, 100))


@asynccontextmanager
async def client(**settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, FakeGateway]]:
    target = FakeTarget("<eu>", answered, price=Price(1.0, 2.0))
    served = FakeGateway({"m": target}, {"e": FakeEmbedder("e")})
    async with (
        serve(served, Server(port=0, drain=0, **settings)) as url,
        httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {KEY}"}) as http,
    ):
        yield http, served


def theirs(headers: httpx.Headers) -> dict[str, str]:
    return {k.removeprefix("x-litellm-"): v for k, v in headers.items() if "x-litellm-" in k}


async def test_headers_are_for_those_who_look_for_them() -> None:
    async with client() as (http, _):
        plain = await http.post("/v1/chat/completions", json=CHAT)
        assert theirs(plain.headers) == {}
        asking = {"x-litellm-num-retries": "3", "x-litellm-session-id": "s"}
        found = theirs((await http.post("/v1/chat/completions", json=CHAT, headers=asking)).headers)
        assert found["model-group"] == "m"
    async with client(litellm_headers=True) as (http, _):
        assert theirs((await http.post("/v1/chat/completions", json=CHAT)).headers)


async def test_headers_say_what_is_true() -> None:
    async with client(litellm_headers=True) as (http, _):
        asking = {"x-request-id": "mine"}
        answer = await http.post("/v1/chat/completions", json=CHAT, headers=asking)
        found = theirs(answer.headers)
        assert float(found.pop("response-duration-ms")) > 0
        assert found == {
            "call-id": "mine",
            "model-group": "m",
            "model-id": "eu",
            # `a` was asked twice and `b` once before this one answered
            "attempted-retries": "1",
            "attempted-fallbacks": "2",
            "response-cost": "0.0012",
        }
        assert answer.headers["x-llmrr-cost"] == "0.0012"
        async with http.stream(
            "POST", "/v1/chat/completions", json={**CHAT, "stream": True}
        ) as stream:
            found = theirs(stream.headers)
            await stream.aread()
        # Its cost and its length are not known when the head goes out.
        assert "response-cost" not in found
        assert "response-duration-ms" not in found
        assert found["model-id"] == "eu"
        vectors = await http.post("/v1/embeddings", json={"model": "e", "input": "a"})
        assert theirs(vectors.headers)["model-group"] == "e"


async def test_what_a_client_says_in_its_headers() -> None:
    async with client() as (http, served):
        asking = {
            "x-litellm-timeout": "7.5",
            "x-litellm-session-id": "s-1",
            "x-litellm-num-retries": "3",
            "x-litellm-tags": "a,b",
        }
        answer = await http.post("/v1/chat/completions", json=CHAT, headers=asking)
        call = served.calls[-1]
        assert call.session == "s-1"
        assert call.deadline is not None
        assert call.deadline - call.started == 7.5
        assert answer.headers["x-llmrr-ignored"] == "x-litellm-num-retries, x-litellm-tags"
        both = {**asking, "x-llmrr-timeout": "2", "x-session-id": "ours"}
        await http.post("/v1/chat/completions", json=CHAT, headers=both)
        call = served.calls[-1]
        assert call.session == "ours"
        assert call.deadline is not None
        assert call.deadline - call.started == 2.0
        wrong = await http.post(
            "/v1/chat/completions", json=CHAT, headers={"x-litellm-timeout": "soon"}
        )
        assert wrong.status_code == 400
        assert wrong.json()["error"]["param"] == "x-litellm-timeout"


@pytest.mark.parametrize("value", [KEY, f"Bearer {KEY}"])
async def test_the_key_in_their_header(value: str) -> None:
    async with client() as (http, _):
        del http.headers["authorization"]
        assert (await http.get("/v1/models")).status_code == 401
        shown = {"x-litellm-api-key": value}
        assert (await http.get("/v1/models", headers=shown)).status_code == 200


async def test_whether_the_server_is_up_needs_no_key() -> None:
    async with client() as (http, _):
        del http.headers["authorization"]
        for word in ("liveliness", "liveness"):
            assert (await http.get(f"/health/{word}")).json() == "I'm alive!"
        ready = await http.get("/health/readiness")
        assert ready.json() == {"status": "healthy", "db": "Not connected"}
        assert (await http.post("/health/readiness")).status_code == 405
        for path in ("/health", "/model/info", "/v1/model/info", "/key/info"):
            assert (await http.get(path)).status_code == 401, path


async def test_keys_are_refused_with_what_there_is() -> None:
    async with client() as (http, _):
        for answer in (await http.post("/key/generate", json={}), await http.get("/key/info")):
            assert answer.status_code == 400
            assert "there is one key" in answer.json()["error"]["message"]


CONFIG = Config(
    server=Server(port=0, drain=0),
    zoo=False,
    providers={
        "eu": Provider(base_url="http://127.0.0.1:9/v1"),
        "ca": Provider(base_url="http://127.0.0.1:9/v1"),
    },
    models={
        "<az-eu>": Node(target="eu/gpt", price=Price(2.5, 10.0), context=4096),
        "<gpt 2>": "ca/gpt",
        "<gpt>": Node(fallback=(Node(weighted={"<az-eu>": 1.0, "<gpt 2>": 1.0}), "<az-eu>")),
        "gpt": Node(fallback=("<gpt>", "spare")),
        "spare": "ca/small",
        "chosen": Node(race=("gpt", "spare")),
    },
    aliases={"gpt-4": "gpt"},
)


async def test_the_deployments_behind_each_name(tmp_path: Path) -> None:
    environ = {"LLMRR_HOME": str(tmp_path), "LLMRR_API_KEY": KEY}
    app = App(CONFIG, environ=environ, rng=Random(1))
    await app.start()
    try:
        async with (
            serve(app, CONFIG.server) as url,
            httpx.AsyncClient(base_url=url, headers={"x-api-key": KEY}) as http,
        ):
            rows = (await http.get("/v1/model/info")).json()["data"]
            assert [(r["model_name"], r["model_info"]["id"]) for r in rows] == [
                ("gpt", "az-eu"),
                ("gpt", "gpt 2"),
                ("spare", "spare"),
                ("chosen", "az-eu"),
                ("chosen", "gpt 2"),
                ("chosen", "spare"),
            ]
            assert rows[0]["litellm_params"] == {"model": "eu/gpt"}
            info = rows[0]["model_info"]
            assert info["input_cost_per_token"] == 2.5e-06
            assert info["max_input_tokens"] == 4096
            assert info["mode"] == "chat"
            one = (await http.get("/model/info?litellm_model_id=az-eu")).json()["data"]
            assert [row["model_name"] for row in one] == ["gpt", "chosen"]
            health = (await http.get("/health")).json()
            assert (health["healthy_count"], health["unhealthy_count"]) == (3, 0)
            for _ in range(3):
                asked = {**CHAT, "model": "spare"}
                assert (await http.post("/v1/chat/completions", json=asked)).status_code == 502
            health = (await http.get("/health")).json()
            assert health["healthy_endpoints"] == [
                {"model": "eu/gpt", "model_id": "az-eu"},
                {"model": "ca/gpt", "model_id": "gpt 2"},
            ]
            assert health["unhealthy_endpoints"] == [
                {
                    "model": "ca/small",
                    "model_id": "spare",
                    "error": "failed several times in a row and rests",
                }
            ]
    finally:
        await app.close()
