"""Local models asked as the gateway asks them: residency, private endpoint, `LocalTarget`.

`Locally` for tests that ask one thing after another, `engines()` for those in an event loop of
their own; what both ask, and what transformers says as the reference.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llm_runner_router.config import Engine, Secret
from llm_runner_router.deltas import Answer, collect
from llm_runner_router.engine.devices import Machine
from llm_runner_router.engine.live import Endpoint
from llm_runner_router.engine.local import LocalTarget
from llm_runner_router.engine.residency import Residency
from llm_runner_router.engine.status import RunnerStatus
from llm_runner_router.models import detect
from llm_runner_router.models.info import LocalModel
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.types import (
    Call,
    Embeddings,
    EmbedRequest,
    Message,
    ModelCard,
    Request,
    Sampling,
)

T = TypeVar("T")

CALL = Call(id="test", started=0.0)
HUB = Path(__file__).resolve().parent.parent.parent / "zoo" / "models"
"""The zoo's models as Hugging Face folders."""
MACHINE = Machine(physical=2, allowed=2, quota=None, memory=1 << 34, available=1 << 34)
PROMPTS = [
    "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nTell me about the sea.<|im_end|>\n<|im_start|>assistant\n",
    "The year has",
]


@cache
def said_by_transformers(folder: Path) -> list[dict[str, Any]]:
    """What transformers answers to `PROMPTS`; see `reference.py`."""
    output = subprocess.run(
        [sys.executable, "-m", "tests.engine.reference", str(folder)],
        input=json.dumps(PROMPTS),
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    ).stdout
    found: list[dict[str, Any]] = json.loads(output)
    return found


def written(prompt: str, **sampling: Any) -> Request:
    """A text to go on with, without chance."""
    settings = {"temperature": 0.0, "max_tokens": 24, **sampling}
    return Request(model="m", prompt=prompt, sampling=Sampling(**settings))


def chat(text: str = "What is 12 + 30?", **sampling: Any) -> Request:
    """A question, to be answered without chance."""
    settings = {"temperature": 0.0, "max_tokens": 24, **sampling}
    return Request(model="m", messages=(Message("user", text),), sampling=Sampling(**settings))


def told(answer: Answer) -> list[dict[str, Any]]:
    """The records of its tokens."""
    parts = [msgspec.json.decode(part) for part in answer.choices[0].logprobs]
    return [one for part in parts for one in part["content"]]


def model_at(path: Path, **changes: object) -> LocalModel:
    """A model by its file or folder; `changes` are fields of `LocalModel`."""
    info = detect.describe(path)
    name = f"file:{path}"
    model = LocalModel(name=name, path=path, info=info, card=ModelCard(name=name, local=True))
    return msgspec.structs.replace(model, **changes)


def check_memory(row: RunnerStatus) -> None:
    """What a runner takes is about what was expected of it; wide, so that it shows gross errors.

    `python -m bench --only memory` is the close look.
    """
    expected = row.expected
    slack = max(30 << 20, row.predicted // 4)
    assert row.memory is not None
    most = row.predicted + row.predicted_prompts
    assert expected.loaded - slack <= row.memory <= most + slack, row
    if row.peak is not None:
        assert row.memory <= row.peak <= max(most, row.predicted_peak) + slack, row


class Locally:
    """One loop, one residency and as many targets as are asked for."""

    def __init__(self, **settings: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = HttpClient()
        self.residency = Residency(Engine(**{"spare": False, **settings}))
        self._runner.run(self.residency.__aenter__())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop."""
        return self._runner.run(work)

    def target(self, model: LocalModel) -> LocalTarget:
        """A target for `model`."""
        return target_of(model, self.residency, self._client)

    def ask(self, model: LocalModel, request: Request) -> Answer:
        """The whole answer."""

        async def answer() -> Answer:
            async with self.target(model).open(request, CALL) as deltas:
                return await collect(deltas)

        return self.run(answer())

    def embed(self, model: LocalModel, *inputs: str) -> Embeddings:
        """A vector per input."""
        request = EmbedRequest(model="m", inputs=inputs)
        return self.run(self.target(model).embed(request, CALL))

    def close(self) -> None:
        """End every process."""
        self.run(self.residency.close())
        self.run(self._client.close())
        self._runner.close()


def target_of(model: LocalModel, residency: Residency, client: HttpClient) -> LocalTarget:
    """A target for `model`, as `app.py` makes it."""

    def connect(endpoint: Endpoint) -> RemoteTarget:
        return RemoteTarget(
            name=model.name,
            base_url=endpoint.base_url,
            api_key=Secret(endpoint.api_key),
            model=endpoint.model,
            client=client,
            local=True,
        )

    return LocalTarget(model.name, model, residency, connect)


class Engines:
    """A residency and targets on it, in the loop of the test."""

    def __init__(self, residency: Residency, client: HttpClient) -> None:
        self.residency = residency
        self._client = client

    def target(self, model: LocalModel) -> LocalTarget:
        return target_of(model, self.residency, self._client)

    async def gone(self, pid: int) -> None:
        """Until the process is no longer among the runners."""
        await until(lambda: pid not in [row.pid for row in self.residency.status()])

    async def answer(self, model: LocalModel, request: Request, call: Call = CALL) -> Answer:
        async with self.target(model).open(request, call) as deltas:
            return await collect(deltas)

    def pid(self, model: LocalModel) -> int:
        (found,) = [row.pid for row in self.residency.status() if row.name == model.name]
        assert found is not None
        return found


async def until(what: Callable[[], object]) -> None:
    """Wait for something that other processes do; the test's own deadline bounds it."""
    while True:
        if what():
            return
        await asyncio.sleep(0.005)


@asynccontextmanager
async def engines(**settings: Any) -> AsyncIterator[Engines]:
    """A residency that is closed at the end."""
    async with (
        HttpClient() as client,
        Residency(Engine(**{"spare": False, **settings})) as residency,
    ):
        yield Engines(residency, client)
