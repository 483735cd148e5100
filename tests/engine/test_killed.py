"""A runner that is killed while it loads, reads a prompt or writes, of every engine that runs here.

Whoever asked gets the answer of a fresh one, or an error that says what happened: never silence,
and never an answer that merely stops.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from msgspec import Raw

from llm_runner_router.config import Adopt, Secret
from llm_runner_router.convert import hf_onnx
from llm_runner_router.convert.base import Options
from llm_runner_router.deltas import collect
from llm_runner_router.engine import adopted
from llm_runner_router.engine.select import load_engine
from llm_runner_router.errors import LoadFailed, RunnerCrashed
from llm_runner_router.models.info import LocalModel
from llm_runner_router.models.resolve import resolve
from llm_runner_router.refs import parse
from llm_runner_router.types import ModelCard, Request

from .locally import CALL, HUB, Engines, chat, engines, model_at, until
from .test_conformance import OUTSIDER

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240), pytest.mark.xdist_group("killed")]

FOLDER = HUB / "tiny-general"
ENGINES = ("llamacpp", "torch", "onnx", "onnx_genai", "mistralrs", "mock", "adopted")
SECONDS = 90.0
"""Longer than anything here takes; a hang is told by it."""


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("graph") / "tiny-general"
    hf_onnx.decoder(FOLDER, target, Options("f32"), lambda *_: None)
    return target


@pytest.fixture(params=ENGINES)
def model(request: pytest.FixtureRequest) -> LocalModel:
    name: str = request.param
    needs = load_engine(name).NEEDS
    for needed in (*needs, *(("onnx",) if name.startswith("onnx") else ())):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    zoo = resolve(parse("zoo:tiny-general"))
    if name == "llamacpp":
        return zoo
    if name == "mock":
        options = {"text": "x" * 3000, "delay": 0.005, "load_delay": 0.3}
        return msgspec.structs.replace(zoo, name="mock", engine="mock", options=options)
    if name == "adopted":
        settings = Adopt(command=OUTSIDER, env={"OUTSIDER_SAYS": "x" * 3000})
        return adopted.model("theirs", settings, Secret("k"), ModelCard("theirs"))
    if name.startswith("onnx"):
        path: Path = request.getfixturevalue("graph")
        return model_at(path, engine=name, name=name)
    return model_at(FOLDER, engine=name, name=name)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Neither processes nor descriptors."""
    me = psutil.Process()
    before = {child.pid for child in me.children(recursive=True)}
    yield
    left = [c for c in me.children(recursive=True) if c.pid not in before and c.is_running()]
    assert not left, left


def long() -> Request:
    request = chat("Tell me a story.", max_tokens=900)
    return msgspec.structs.replace(request, extra={"ignore_eos": Raw(b"true")})


async def started(e: Engines, model: LocalModel) -> int:
    """The process of a model that is being loaded."""
    found: list[int] = []

    def seen() -> bool:
        found[:] = [r.pid for r in e.residency.status() if r.name == model.name and r.pid]
        return bool(found)

    await until(seen)
    return found[0]


async def test_while_it_loads(model: LocalModel) -> None:
    """The load failed, and the next one goes well: nothing of the first is in its way."""
    async with asyncio.timeout(SECONDS), engines(slots=1) as e:
        asking = asyncio.create_task(e.answer(model, chat(max_tokens=3)))
        os.kill(await started(e, model), signal.SIGKILL)
        with pytest.raises((LoadFailed, RunnerCrashed)) as caught:
            await asking
        assert "signal 9" in caught.value.message
        assert caught.value.hint
        assert caught.value.target == model.name
        assert (await e.answer(model, chat(max_tokens=3))).text


async def test_before_anything_was_written(model: LocalModel) -> None:
    """It has the request and never answers; another one does, and nobody notices."""
    async with asyncio.timeout(SECONDS), engines(slots=1) as e:
        expected = (await e.answer(model, chat(max_tokens=3))).text
        old = e.pid(model)
        stopped = worker_of(old, model)
        os.kill(stopped, signal.SIGSTOP)
        asking = asyncio.create_task(e.answer(model, chat(max_tokens=3)))
        await until(lambda: any(row.active for row in e.residency.status()))
        await asyncio.sleep(0.05)  # the request is on its way to it
        os.kill(stopped, signal.SIGKILL)
        assert (await asking).text == expected
        assert e.pid(model) != old


async def test_in_the_middle_of_an_answer(model: LocalModel) -> None:
    async with asyncio.timeout(SECONDS), engines(slots=1) as e:
        async with e.target(model).open(long(), CALL) as deltas:
            await anext(deltas)
            old = e.pid(model)
            os.kill(worker_of(old, model), signal.SIGKILL)
            with pytest.raises(RunnerCrashed) as caught:
                await collect(deltas)
        assert caught.value.retryable
        assert caught.value.target == model.name
        assert (await e.answer(model, chat(max_tokens=3))).text
        assert e.pid(model) != old


def worker_of(pid: int, model: LocalModel) -> int:
    """The process that computes: of an adopted server, the server."""
    if model.engine != "adopted":
        return pid
    (server,) = psutil.Process(pid).children()
    found: Any = server.pid
    return int(found)


async def test_by_closing_everything(model: LocalModel) -> None:
    """The gateway goes while one is answered and another waits: both are told."""
    async with asyncio.timeout(SECONDS), engines(slots=1) as e:
        async with e.target(model).open(long(), CALL) as deltas:
            await anext(deltas)
            waiting = asyncio.create_task(e.answer(model, chat()))
            await until(lambda: any(row.queued for row in e.residency.status()))
            await e.residency.close()
            with pytest.raises(RunnerCrashed):
                await collect(deltas)
            (told,) = await asyncio.gather(waiting, return_exceptions=True)
            assert "shutting down" in str(told)
        assert e.residency.status() == ()
