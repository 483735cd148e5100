"""Local models asked as the gateway asks them: residency, private endpoint, `LocalTarget`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llm_runner_router.config import Engine, Secret
from llm_runner_router.deltas import Answer, collect
from llm_runner_router.engine.live import Endpoint
from llm_runner_router.engine.local import LocalTarget
from llm_runner_router.engine.residency import Residency
from llm_runner_router.models import detect
from llm_runner_router.models.info import LocalModel
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.types import Call, Embeddings, EmbedRequest, ModelCard, Request

T = TypeVar("T")

CALL = Call(id="test", started=0.0)
HUB = Path(__file__).resolve().parent.parent.parent / "zoo" / "models"
"""The zoo's models as Hugging Face folders."""


def model_at(path: Path, **changes: object) -> LocalModel:
    """A model by its file or folder; `changes` are fields of `LocalModel`."""
    info = detect.describe(path)
    name = f"file:{path}"
    model = LocalModel(name=name, path=path, info=info, card=ModelCard(name=name, local=True))
    return msgspec.structs.replace(model, **changes)


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

        def connect(endpoint: Endpoint) -> RemoteTarget:
            return RemoteTarget(
                name=model.name,
                base_url=endpoint.base_url,
                api_key=Secret(endpoint.api_key),
                model=endpoint.model,
                client=self._client,
                local=True,
            )

        return LocalTarget(model.name, model, self.residency, connect)

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
