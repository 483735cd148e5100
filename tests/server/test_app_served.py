"""The real `App` behind the real server: the two protocols meet, and refusals are told well."""

from __future__ import annotations

import os
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from llm_runner_router.app import App
from llm_runner_router.config import Config, Engine, Provider, Server
from llm_runner_router.errors import Unauthenticated
from llm_runner_router.home import find
from llm_runner_router.policy.auth import ensure_key
from llm_runner_router.server import Service, bind, serve

EMPTY = Config(zoo=False, engine=Engine(spare=False))


def recorded() -> list[str]:
    (path,) = Path(os.environ["LLMRR_HOME"], "records").iterdir()
    return path.read_text().splitlines()


def as_service(app: App) -> Service:
    """The type checker's part of this test."""
    return app


async def test_an_app_is_a_service() -> None:
    app = as_service(App(EMPTY))
    with pytest.raises(Unauthenticated):
        app.authenticate({})
    key = ensure_key(find(os.environ)).secret.reveal()
    await app.start()
    try:
        async with (
            serve(app, Server(port=0)) as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as api,
        ):
            listed = [model.id async for model in api.models.list()]
            assert listed == [card.name for card in app.cards()]
            with pytest.raises(openai.NotFoundError) as caught:
                await api.completions.create(model="no-such-model", prompt="x")
            assert caught.value.code == "model_not_found"
    finally:
        await app.close()


async def test_a_dead_upstream_is_named_and_recorded() -> None:
    with bind(Server(port=0)) as taken:
        port = taken.getsockname()[1]
    config = Config(
        zoo=False,
        engine=Engine(spare=False),
        providers={"dead": Provider(base_url=f"http://127.0.0.1:{port}/v1", api_key="x")},
        models={"m": "dead/some-model"},
    )
    app = App(config)
    key = ensure_key(find(os.environ)).secret.reveal()
    await app.start()
    try:
        async with (
            serve(app, Server(port=0)) as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as api,
        ):
            with pytest.raises(openai.InternalServerError) as caught:
                await api.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "hi"}], stream=True
                )
            assert caught.value.status_code == 502
            assert caught.value.code == "connect_failed"
            assert caught.value.response.headers["x-llmrr-target"] == "m"
    finally:
        await app.close()
    (line,) = recorded()
    assert '"error":"ConnectFailed"' in line
    assert '"caller":"local"' in line
