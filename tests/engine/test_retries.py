"""Another try of a local target: with the form that the model has by then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from llm_runner_router.deltas import collect
from llm_runner_router.engine import mock
from llm_runner_router.engine.live import Endpoint
from llm_runner_router.engine.local import LocalTarget
from llm_runner_router.errors import ConnectFailed
from llm_runner_router.models.info import LocalModel, ModelInfo
from llm_runner_router.testing import FakeTarget, a_call, deltas_of
from llm_runner_router.types import (
    Call,
    Delta,
    Embeddings,
    EmbedRequest,
    Message,
    ModelCard,
    Request,
    Usage,
)

INFO = ModelInfo(format="gguf", architecture="llama")
FIRST = LocalModel(name="m", path=Path("first"), info=INFO, card=ModelCard("m", local=True))
BETTER = msgspec.structs.replace(FIRST, path=Path("better"))


class Lease:
    """A slot of a runner that lives."""

    keeps = False
    expected = None

    def __init__(self, model: LocalModel) -> None:
        self.model, self.engine = model, mock
        self.endpoint = Endpoint(f"http://{model.path}", "k", "m")

    async def died(self, within: float) -> None:
        return None

    def begun(self) -> None:
        pass

    def told(self, usage: Usage) -> None:
        pass

    def finished(self) -> None:
        pass


class Leases:
    """In the place of a residency: remembers what was leased."""

    def __init__(self) -> None:
        self.models: list[LocalModel] = []

    def engine(self, model: LocalModel, purpose: str = "chat") -> Any:
        return mock

    @asynccontextmanager
    async def lease(self, model: LocalModel, purpose: str, call: Call) -> AsyncIterator[Lease]:
        self.models.append(model)
        yield Lease(model)


class Flaky(FakeTarget):
    """Cannot be reached at its first address."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__("flaky", deltas_of("hello there"))
        self._first = endpoint.base_url == "http://first"

    def open(
        self, request: Request, call: Call
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        if self._first:
            raise ConnectFailed("nobody listens")
        return super().open(request, call)

    async def embed(self, request: EmbedRequest, call: Call) -> Embeddings:
        if self._first:
            raise ConnectFailed("nobody listens")
        return Embeddings(((1.0,),), Usage(1))


def target(leases: Any) -> LocalTarget:
    forms = iter((FIRST, BETTER))

    async def ready(model: LocalModel) -> LocalModel:
        return next(forms)

    return LocalTarget("m", FIRST, leases, Flaky, prepare=ready)  # type: ignore[arg-type]  # it does not rerank


async def test_another_try_takes_the_form_that_replaced_the_first() -> None:
    leases = Leases()
    request = Request(model="m", messages=(Message("user", "hello"),))
    async with target(leases).open(request, a_call()) as deltas:
        assert (await collect(deltas)).text == "hello there"
    assert leases.models == [FIRST, BETTER]


async def test_vectors_as_well() -> None:
    leases = Leases()
    found = await target(leases).embed(EmbedRequest("m", ("a",)), a_call())
    assert found.vectors == ((1.0,),)
    assert leases.models == [FIRST, BETTER]
