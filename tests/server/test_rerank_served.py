"""Reranking from a client's bytes to a real model and back: the server, the library, the record."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from llm_runner_router import LLMRouter
from llm_runner_router.app import App
from llm_runner_router.config import Config, Engine, Node, Server
from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.home import find
from llm_runner_router.policy.auth import ensure_key
from llm_runner_router.server import serve
from llm_runner_router.sync import SyncLLMRouter

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240), pytest.mark.xdist_group("torch")]

QUERY = "the cat"
TEXTS = ["the cat sat on the mat", "rain", "a rainy cat"]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    from tests.convert import tiny_hf  # it needs torch and looks for it
    from tests.engine.test_onnx_vectors import with_tokenizer

    tiny_hf.encoder("bert-reranker", tmp_path / "ranker")
    with_tokenizer(tmp_path / "ranker")
    return Config(
        engine=Engine(spare=False),
        models={
            "ranker": Node(target=str(tmp_path / "ranker"), engine="torch"),
            "both": Node(fallback=("ranker", "zoo:tiny-math")),
        },
    )


class Client:
    """A plain HTTP client with the key."""

    def __init__(self, url: str) -> None:
        self._place = urlsplit(url).netloc
        key = ensure_key(find(os.environ)).secret.reveal()
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    async def post(
        self, path: str, body: object, **headers: str
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, body and headers of the answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await asyncio.to_thread(self._post, path, json.dumps(body), named)

    def _post(
        self, path: str, body: str, headers: dict[str, str]
    ) -> tuple[int, Any, Mapping[str, str]]:
        connection = HTTPConnection(self._place, timeout=120)
        try:
            connection.request("POST", path, body, {**self._headers, **headers})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read()), dict(answer.headers.items())
        finally:
            connection.close()


async def test_a_client_reranks(config: Config) -> None:
    app = App(config)
    await app.start()
    try:
        async with serve(app, Server(port=0)) as url:
            await check(Client(url))
    finally:
        await app.close()
    records = recorded()
    assert [(one["asked"], one["status"]) for one in records] == [
        ("ranker", 200),
        ("ranker", 200),
        ("zoo:tiny-math", Unsupported.status),
        ("ranker", 504),
    ]
    assert records[0]["usage"]["prompt_tokens"] == records[1]["usage"]["prompt_tokens"] > 0
    assert records[0]["target"] == "ranker"


async def check(client: Client) -> None:
    asked = {"model": "ranker", "query": QUERY, "documents": TEXTS}
    status, whole, headers = await client.post("/v1/rerank", asked)
    assert status == 200, whole
    scores = [one["relevance_score"] for one in whole["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(one["index"] for one in whole["results"]) == [0, 1, 2]
    assert whole["usage"]["prompt_tokens"] > 0
    assert headers["x-llmrr-target"] == "ranker"

    two = {**asked, "top_n": 2, "return_documents": True}
    _, best, _ = await client.post("/rerank", two)
    assert best["results"] == [
        {**one, "document": {"text": TEXTS[one["index"]]}} for one in whole["results"][:2]
    ]

    status, wrong, _ = await client.post("/v1/rerank", {**asked, "documents": ["a", ""]})
    assert (status, wrong["error"]["param"]) == (400, "documents[1]")
    status, several, _ = await client.post("/v1/rerank", {**asked, "model": "both"})
    assert status == Unsupported.status
    assert "it is a fallback" in several["error"]["message"]
    _, other, _ = await client.post("/v1/rerank", {**asked, "model": "zoo:tiny-math"})
    assert "does not rerank" in other["error"]["message"]
    status, _, _ = await client.post("/v1/rerank", asked, x_llmrr_timeout="0.000001")
    assert status == 504


def recorded() -> list[Any]:
    (path,) = Path(os.environ["LLMRR_HOME"], "records").iterdir()
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_the_library_reranks(config: Config) -> None:
    async with LLMRouter(config=config) as router:
        found = await router.rerank(QUERY, TEXTS, model="ranker")
        assert sorted(one.index for one in found) == [0, 1, 2]
        model = await router.model("ranker")
        assert await model.rerank(QUERY, TEXTS, top_n=1) == found[:1]
        assert await model.rerank(QUERY, []) == []
        with pytest.raises(BadRequest, match="one text"):
            await model.rerank(QUERY, "the cat")
        with pytest.raises(BadRequest, match="top_n"):
            await model.rerank(QUERY, TEXTS, top_n=0)


def test_the_library_without_async_reranks(config: Config) -> None:
    with SyncLLMRouter(config=config) as router:
        found = router.rerank(QUERY, TEXTS, model="ranker", top_n=2)
    assert len(found) == 2
    assert found[0].score >= found[1].score
