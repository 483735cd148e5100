"""LoRA adapters behind the real server, as a client meets them: names, the field `lora`, errors."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from tests.convert import adapters

from llm_runner_router.app import App
from llm_runner_router.config import Auto, Config, Engine, Node, Server
from llm_runner_router.home import find
from llm_runner_router.policy.auth import ensure_key
from llm_runner_router.server import serve

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180), pytest.mark.xdist_group("lora")]

HUB = Path(__file__).resolve().parents[2] / "zoo" / "models"
SEA = "Tell me about the sea."


@pytest.fixture(scope="module")
def peft(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two adapters for `tiny-general`, and one for a model of other sizes."""
    folder = tmp_path_factory.mktemp("peft")
    made = {
        name: str(adapters.make(HUB / "tiny-general", folder / name, seed=seed, size=0.3))
        for seed, name in enumerate(("sea", "lake"))
    }
    others = adapters.make(HUB / "tiny-chat", folder / "other", only=("q_proj",))
    return made | {"other": str(others)}


@asynccontextmanager
async def served(models: dict[str, str | Node], **more: Any) -> AsyncIterator[AsyncOpenAI]:
    config = Config(models=models, zoo=False, engine=Engine(spare=False, slots=2), **more)
    app = App(config)
    key = ensure_key(find(os.environ)).secret.reveal()
    await app.start()
    try:
        async with (
            serve(app, Server(port=0)) as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as api,
        ):
            yield api
    finally:
        await app.close()


async def say(api: AsyncOpenAI, model: str, **extra: Any) -> str:
    answer = await api.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": SEA}],
        temperature=0,
        max_tokens=24,
        extra_body=extra,
    )
    return answer.choices[0].message.content or ""


def general(peft: dict[str, str], **more: Any) -> Node:
    both = {name: peft[name] for name in ("sea", "lake")}
    return Node(target="zoo:tiny-general", adapters=both, **more)


async def test_by_name_and_by_field(peft: dict[str, str]) -> None:
    models: dict[str, str | Node] = {
        "m": general(peft, aliases=("em",)),
        "plain": "zoo:tiny-general",
        "first": Node(fallback=("m+sea", "m")),
        "free": Node(auto=Auto(models=("m+lake",))),
    }
    async with served(models, aliases={"wave": "m+sea"}) as api:
        listed = [model.id async for model in api.models.list()]
        assert listed[:3] == ["m", "m+sea", "m+lake"]
        plain, sea, lake = [await say(api, name) for name in ("plain", "m+sea", "m+lake")]
        assert len({plain, sea, lake}) == 3
        assert await say(api, "m") == plain
        assert await say(api, "m", lora=[{"name": "sea"}]) == sea
        assert await say(api, "m", lora=[{"id": 1, "scale": 1.0}]) == lake
        assert await say(api, "m", lora=[{"name": "sea", "scale": 0}]) == plain
        both = await say(api, "m", lora=[{"name": "sea"}, {"name": "lake", "scale": 0.5}])
        assert both not in (plain, sea, lake)
        for name, text in (("em+sea", sea), ("wave", sea), ("first", sea), ("free", lake)):
            assert await say(api, name) == text, name
        mixed = ["m", "m+sea", "m+lake", "m+sea", "m", "m+lake", "m+lake", "m"] * 2
        texts = await asyncio.gather(*(say(api, name) for name in mixed))
        assert texts == [{"m": plain, "m+sea": sea, "m+lake": lake}[name] for name in mixed]
        pieces = []
        async with await api.completions.create(
            model="m+sea", prompt=SEA, stream=True, temperature=0, max_tokens=12
        ) as stream:
            async for event in stream:
                pieces += [choice.text for choice in event.choices]
        whole = await api.completions.create(
            model="m", prompt=SEA, temperature=0, max_tokens=12,
            extra_body={"lora": [{"name": "sea"}]},
        )  # fmt: skip
        assert "".join(pieces) == whole.choices[0].text


async def test_a_client_that_can_only_name_a_model(peft: dict[str, str]) -> None:
    async with served({"m": general(peft)}) as api:
        expected = {name: await say(api, name) for name in ("m", "m+sea")}
        url = str(api.base_url).removesuffix("/v1/")
        async with AsyncAnthropic(base_url=url, api_key=api.api_key, max_retries=0) as other:
            for name, text in expected.items():
                answer = await other.messages.create(
                    model=name,
                    messages=[{"role": "user", "content": SEA}],
                    max_tokens=24,
                    extra_body={"temperature": 0},
                )
                assert [part.text for part in answer.content if part.type == "text"] == [text]


async def test_one_process_for_all_and_who_answered_is_told(peft: dict[str, str]) -> None:
    async with served({"m": general(peft)}) as api:
        raw = await api.chat.completions.with_raw_response.create(
            model="m+sea", messages=[{"role": "user", "content": SEA}], max_tokens=4
        )
        assert raw.headers["x-llmrr-target"] == "m+sea"
        await say(api, "m")
        await say(api, "m+lake")
        rows = await api.get(f"{str(api.base_url).removesuffix('/v1/')}/llmrr/ps", cast_to=object)
        assert isinstance(rows, list)
        (row,) = rows
        assert (row["name"], row["adapters"], row["served"]) == ("m", ["sea", "lake"], 3)


@pytest.mark.parametrize(
    ("model", "lora", "param", "said"),
    [
        ("m", [{"name": "river"}], "lora[0].name", "there are: `sea`, `lake`"),
        ("m", [{"id": 2}], "lora[0].id", "there are: `sea`, `lake`"),
        ("m", [{"name": "sea", "scale": 99}], "lora[0].scale", "from 0 to 10"),
        ("m", "sea", "lora", "is a list"),
        ("m+sea", [{"name": "lake"}], "lora", "says which adapter it is"),
        ("plain", [{"name": "sea"}], "lora", "has no LoRA adapters"),
    ],
)
async def test_what_is_wrong_is_a_400(
    peft: dict[str, str], model: str, lora: Any, param: str, said: str
) -> None:
    async with served({"m": general(peft), "plain": "zoo:tiny-general"}) as api:
        with pytest.raises(openai.BadRequestError) as caught:
            await say(api, model, lora=lora)
        assert caught.value.param == param
        assert said in caught.value.message


async def test_names_that_are_not_there(peft: dict[str, str]) -> None:
    async with served({"m": general(peft)}) as api:
        with pytest.raises(openai.NotFoundError, match=r"did you mean `m\+sea`"):
            await say(api, "m+see")
        with pytest.raises(openai.BadRequestError, match="cannot embed: it is a model with an"):
            await api.embeddings.create(model="m+sea", input="a")
        vectors = await api.embeddings.create(model="m", input="a")
        assert len(vectors.data[0].embedding) > 8


async def test_an_adapter_of_another_model_is_refused_and_named(peft: dict[str, str]) -> None:
    node = Node(target="zoo:tiny-general", adapters={"other": peft["other"]})
    async with served({"m": node, "plain": "zoo:tiny-general"}) as api:
        for name in ("m", "m+other"):
            with pytest.raises(openai.InternalServerError) as caught:
                await say(api, name)
            assert "the adapter `other` of `m`" in caught.value.message
            assert caught.value.code == "load_failed"
        assert await say(api, "plain")
        rows = await api.get(f"{str(api.base_url).removesuffix('/v1/')}/llmrr/ps", cast_to=object)
        assert isinstance(rows, list)
        assert [row["name"] for row in rows] == ["zoo:tiny-general"], "no engine was started"


async def test_a_model_that_is_no_adapter_is_refused_as_one(peft: dict[str, str]) -> None:
    path = str(HUB / "tiny-math")
    node = Node(target="zoo:tiny-general", adapters={"math": path})
    async with served({"m": node}) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            await say(api, "m")
        assert "the adapter `math` of `m`" in caught.value.message
        assert "is a whole model, not a LoRA adapter" in caught.value.message
