"""Models on several engines behind one server, asked with the `openai` package."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from openai import OpenAI

from .served import Served, served, wait_until_gone

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240), pytest.mark.xdist_group("torch")]

HUB = Path(__file__).resolve().parent.parent.parent / "zoo" / "models" / "tiny-math"
MODELS: dict[str, Any] = {
    "folder": {"target": f"file:{HUB}", "engine": "torch"},
    "pretend": {"target": "zoo:tiny-math", "engine": "mock", "options": {"text": "hello"}},
    "broken": {"target": "zoo:tiny-math", "engine": "mock", "options": {"crash_at": 8}},
    "theirs": {
        "adopt": {
            "command": [sys.executable, "-m", "tests.engine.outsider", "{port}", "n", "k"],
            "api_key": "${THEIR_KEY}",
            "memory": "64MiB",
        }
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("engines")
    config = folder / "llmrr.yaml"
    config.write_text(yaml.safe_dump({"models": MODELS, "zoo": False}))
    with served(folder / "home", ("--config", str(config)), THEIR_KEY="k") as running:
        yield running
        children = running.children()
        assert children
        running.stop()
        wait_until_gone(children)


@pytest.fixture
def client(server: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as made:
        yield made


def answer(client: OpenAI, model: str, **more: Any) -> str:
    """The text of a stream, added up."""
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is 12 + 30?"}],
        temperature=0,
        stream=True,
        **more,
    )
    return "".join(c.delta.content or "" for chunk in stream for c in chunk.choices)


def test_every_engine_answers_behind_one_address(client: OpenAI, server: Served) -> None:
    assert "42" in answer(client, "folder")
    assert answer(client, "pretend") == "mock: hello"
    assert answer(client, "theirs") == "mock: outside"
    headers = {"authorization": f"Bearer {server.key}"}
    rows = httpx2.get(f"{server.url}/llmrr/ps", headers=headers).json()
    engines = {row["name"]: row["engine"] for row in rows}
    assert engines["folder"] == "torch"
    assert engines["pretend"] == "mock"
    assert engines["theirs"] == "adopted"


def test_a_folder_embeds_in_the_same_process(client: OpenAI) -> None:
    found = client.embeddings.create(model="folder", input=["one", "two"], encoding_format="float")
    width = json.loads((HUB / "config.json").read_text())["hidden_size"]
    assert [len(row.embedding) for row in found.data] == [width, width]


def test_a_runner_that_ends_in_the_middle_says_so(client: OpenAI) -> None:
    with pytest.raises(Exception, match="ended with exit code 3"):
        answer(client, "broken")
