"""The library's verbs with real models, with and without `async`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.convert import adapters

from llm_runner_router import LLMRouter, SyncLLMRouter
from llm_runner_router.api_reply import Reply
from llm_runner_router.errors import (
    BadRequest,
    ConfigError,
    ModelFileError,
    UnknownModel,
    Unsupported,
)

pytestmark = [pytest.mark.engine]


def runners() -> list[psutil.Process]:
    return [
        p
        for p in psutil.Process().children(recursive=True)
        if any("llm_runner_router.engine" in part for part in p.cmdline())
    ]


async def test_quick_answers_and_leaves_nothing() -> None:
    reply = await LLMRouter.quick("What is 12 + 30?", temperature=0)
    assert "42" in str(reply)
    assert reply.model.startswith("zoo:tiny-")
    assert reply.reason
    assert reply.cost == 0.0
    assert runners() == []


async def test_advanced_streams_with_fallbacks() -> None:
    stream = await LLMRouter.advanced(
        prompt="What is 7 + 5?",
        model="zoo:tiny-math",
        temperature=0,
        max_tokens=32,
        stream=True,
        cache=True,
        fallbacks=["zoo:tiny-general"],
    )
    text = "".join([token async for token in stream])
    assert "12" in text
    assert stream.reply.text == text
    assert runners() == []


async def test_advanced_gives_an_equal_answer_again_when_it_may() -> None:
    asked = {"prompt": "Tell me a short story about a dog.", "model": "zoo:tiny-chat"}
    drawn = {"temperature": 1.5, "seed": 3, "cache": True}
    first = await LLMRouter.advanced(**asked, **drawn)  # type: ignore[call-overload]  # dicts of options
    again = await LLMRouter.advanced(**asked, **drawn)  # type: ignore[call-overload]  # as above
    other = await LLMRouter.advanced(**asked, **{**drawn, "cache": False})  # type: ignore[call-overload]  # as above
    assert first.answer.timings is not None, "the engine was asked"
    assert again.text == first.text
    assert again.answer.timings is None, "nobody was asked"
    assert other.answer.timings is not None


async def test_a_stream_that_is_left_early_leaves_nothing() -> None:
    stream = await LLMRouter.advanced(
        prompt="Tell me a short story about a cat.", model="zoo:tiny-chat", stream=True
    )
    async with stream:
        async for _ in stream:
            break
    assert runners() == []


async def test_load_stream_unload() -> None:
    model = await LLMRouter.load("zoo:tiny-math")
    tokens = [token async for token in model.stream("What is 12 + 30?", temperature=0)]
    assert len(tokens) > 1
    assert "42" in "".join(tokens)
    assert len(runners()) >= 1
    await model.unload()
    assert runners() == []


async def test_a_router_of_some_models() -> None:
    async with LLMRouter(models=["zoo:tiny-math", "zoo:tiny-text"], strategy="balanced") as router:
        decision = await router.explain("What is 12 + 30?")
        assert decision is not None
        assert decision.chosen == "zoo:tiny-math"
        first, second = await asyncio.gather(
            router.complete("What is 12 + 30?", temperature=0),
            router.complete("Reverse the word lemon.", temperature=0),
        )
        assert (first.model, second.model) == ("zoo:tiny-math", "zoo:tiny-text")
        kept = await router.complete("What is 9 + 9?", cache=True, temperature=0)
        again = await router.complete("What is 9 + 9?", cache=True, temperature=0)
        assert kept.text == again.text
        chat = await router.chat(
            [
                {"role": "user", "content": "Reverse the word lemon."},
                {"role": "assistant", "content": first.text},
                {"role": "user", "content": "What is 3 + 4?"},
            ],
            temperature=0,
        )
        assert chat.text
    assert runners() == []


async def test_embeddings() -> None:
    async with LLMRouter() as router:
        one, two = await router.embed(["a cat", "a dog"], model="zoo:tiny-chat")
    assert len(one) == len(two) > 0
    assert one != two


def test_the_same_without_async() -> None:
    assert "42" in SyncLLMRouter.quick("What is 12 + 30?", temperature=0).text
    with SyncLLMRouter(["zoo:tiny-math"]) as router:
        with router.stream("What is 7 + 5?", temperature=0) as stream:
            text = "".join(stream)
        assert "12" in text
        assert router.complete("2 + 2", temperature=0).usage is not None
    with SyncLLMRouter.load("zoo:tiny-math") as model:
        assert "12" in "".join(model.stream("7 + 5", temperature=0))
    assert runners() == []


async def test_what_goes_wrong_says_what_to_do() -> None:
    with pytest.raises(UnknownModel, match="tiny-math"):
        await LLMRouter.load("zoo:tiny-maths")
    with pytest.raises(ModelFileError, match="missing"):
        await LLMRouter.load("./missing.gguf")
    with pytest.raises(ConfigError, match="unknown strategy"):
        LLMRouter(strategy="best")
    with pytest.raises(BadRequest, match="unknown option"):
        await LLMRouter.quick("hi", temprature=0)  # type: ignore[call-arg]  # that is the point
    assert runners() == []


def test_a_stream_without_async_is_left_twice_without_harm() -> None:
    advanced = SyncLLMRouter.advanced(prompt="7 + 5", model="zoo:tiny-math", stream=True)
    assert not isinstance(advanced, Reply)
    with advanced as stream:
        assert "".join(stream)
    stream.close()
    assert runners() == []


async def test_closing_a_router_closes_the_streams_that_were_left_open() -> None:
    async with LLMRouter(models=["zoo:tiny-chat"]) as router:
        stream = router.stream("Tell me a short story about a cat.")
        async for _ in stream:
            break
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert runners() == []


async def test_deltas_feed_the_reply() -> None:
    async with LLMRouter(models=["zoo:tiny-math"]) as router:
        stream = router.stream("7 + 5", temperature=0)
        texts = [delta.text async for delta in stream.deltas]
    assert stream.reply.text == "".join(texts)
    assert stream.reply.usage is not None


FOLDER = Path(__file__).parents[2] / "zoo" / "models" / "tiny-math"


@pytest.mark.parametrize(
    "wanted", [{"engine": "mistralrs"}, {"quantization": "q8_0", "engine": "llamacpp"}]
)
async def test_a_folder_is_loaded_as_it_is_asked_for(
    wanted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMRR_HOME", str(tmp_path))
    async with await LLMRouter.load(str(FOLDER), **wanted) as model:  # type: ignore[arg-type]  # by name
        text = (await model.complete("What is 12 + 30?", temperature=0)).text
        assert "42" in text
    assert runners() == []


async def test_what_cannot_be_loaded_so_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMRR_HOME", str(tmp_path))
    with pytest.raises(Unsupported, match="quantisation called 'q99'"):
        await LLMRouter.load(str(FOLDER), quantization="q99", engine="llamacpp")
    with pytest.raises(ModelFileError, match="GGUF"):
        await LLMRouter.load(str(FOLDER / "model.safetensors"), format="gguf")
    with pytest.raises(ConfigError, match="nonsense"):
        await LLMRouter.load(str(FOLDER), format="nonsense")
    assert runners() == []


def test_adapters_are_loaded_with_a_model_and_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMRR_HOME", str(tmp_path / "home"))
    sea = adapters.make(FOLDER, tmp_path / "sea", seed=1, size=0.5)
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
    with SyncLLMRouter.load("zoo:tiny-math") as model:
        plain = model.complete("What is 12 + 30?", **asked).text
    with SyncLLMRouter.load("zoo:tiny-math", adapters={"sea": str(sea)}) as model:
        assert model.complete("What is 12 + 30?", **asked).text == plain
        other = model.complete("What is 12 + 30?", **asked, lora=[{"name": "sea"}]).text
        assert other != plain
        assert "".join(model.stream("What is 12 + 30?", **asked, lora=[{"id": 0}])) == other
        with pytest.raises(BadRequest, match="there are: `sea`"):
            model.complete("What is 12 + 30?", lora=[{"name": "lake"}])
        with pytest.raises(BadRequest, match="lora"):
            model.complete("What is 12 + 30?", lora="sea")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ModelFileError, match="the adapter `sea`"):
        SyncLLMRouter.load("zoo:tiny-math", adapters={"sea": str(FOLDER)})
    with pytest.raises(ConfigError, match="`llamacpp`, not on `mock`"):
        SyncLLMRouter.load("zoo:tiny-math", adapters={"sea": str(sea)}, engine="mock")
    with pytest.raises(ModelFileError, match="the adapter `sea`"):
        SyncLLMRouter.load("zoo:tiny-math", adapters={"sea": str(tmp_path / "gone")})
    assert runners() == []
