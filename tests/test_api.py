"""The library's promises that need no model: configuration, loops, and that closing closes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from llm_runner_router import LLMRouter, SyncLLMRouter
from llm_runner_router.config import Config, Engine, Provider
from llm_runner_router.errors import ConfigError, RunnerError, UnknownModel

BARE = Config(engine=Engine(spare=False))


def runners() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [p for p in found if "llm_runner_router.engine.child" in " ".join(p.cmdline())]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"models": "zoo:tiny-math"}, "`models` is 'zoo:tiny-math'"),
        ({"models": []}, r"`models` is \[\]"),
        ({"models": {}}, "`models` is {}"),
        ({"models": ["zoo:"]}, "names nothing"),
        ({"strategy": "best"}, "unknown strategy 'best'"),
        ({"strategy": "race"}, "needs `models`"),
    ],
)
def test_a_router_that_cannot_be(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LLMRouter(**arguments)  # type: ignore[arg-type]  # that is the point


async def test_it_reads_what_serve_would_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llmrr.yaml").write_text("models: {mine: zoo:tiny-text}\nengine: {spare: false}\n")
    monkeypatch.chdir(tmp_path)
    async with LLMRouter() as router:
        decision = await router.explain("Reverse the word lemon.")
    assert decision is not None
    assert decision.chosen == "mine"


async def test_a_name_that_means_nothing_is_not_suggested_to_itself() -> None:
    async with LLMRouter(models=["nowhere/x", "zoo:tiny-math"], config=BARE) as router:
        with pytest.raises(UnknownModel) as caught:
            await router.complete("hi", model="nowhere/x")
    assert "did you mean" not in caught.value.message, caught.value.message


async def test_the_librarys_own_entry_is_no_name_to_suggest() -> None:
    async with LLMRouter(models=["zoo:tiny-math"], config=BARE) as router:
        with pytest.raises(UnknownModel) as caught:
            await router.complete("hi", model="router")
    assert "<router>" not in caught.value.message


async def test_a_stream_that_cannot_be_opened_closes_its_router() -> None:
    before = asyncio.all_tasks()
    with pytest.raises(UnknownModel):
        async with await LLMRouter.advanced(prompt="x", model="nope", stream=True):
            raise AssertionError("it opened")
    assert asyncio.all_tasks() == before
    assert runners() == []


def test_a_router_belongs_to_one_loop() -> None:
    config = Config(
        engine=Engine(spare=False), providers={"up": Provider(base_url="http://127.0.0.1:9/v1")}
    )
    router = LLMRouter(models=["up/m"], config=config)
    with pytest.raises(RunnerError, match="cannot connect"):
        asyncio.run(router.complete("hi"))
    with pytest.raises(RunnerError, match="another event loop"):
        asyncio.run(router.complete("hi"))
    asyncio.run(router.close())


def test_without_async_closing_twice_is_fine_and_use_afterwards_is_told() -> None:
    router = SyncLLMRouter(models=["zoo:tiny-math"], config=BARE)
    stream = router.stream("hi")
    with router:
        router.close()
    router.close()
    stream.close()
    with pytest.raises(RunnerError, match="is closed"):
        router.complete("hi")
