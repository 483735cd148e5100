"""What clients of OpenAI's API may ask for, answered by the real engine through `LocalTarget`.

The model's wits are not judged here; what must hold whatever it says is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import pytest
from msgspec import Raw

from llm_runner_router.config import Engine, Secret
from llm_runner_router.deltas import Answer, collect
from llm_runner_router.engine.live import Endpoint
from llm_runner_router.engine.local import LocalTarget
from llm_runner_router.engine.residency import Residency
from llm_runner_router.errors import BadRequest, ContextTooLong, Unsupported
from llm_runner_router.models.resolve import resolve
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.refs import parse
from llm_runner_router.types import (
    Call,
    Embeddings,
    EmbedRequest,
    Message,
    Request,
    ResponseFormat,
    Sampling,
    Tool,
    ToolCall,
)

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("answers")]

CALL = Call(id="test", started=0.0)
SUM = (Message("user", "What is 12 + 30?"),)
TOOLS = (
    Tool(
        "calculator",
        "Evaluates an expression",
        Raw(b'{"type":"object","properties":{"expression":{"type":"string","maxLength":12}},'
            b'"required":["expression"],"additionalProperties":false}'),
    ),
    Tool(
        "get_weather",
        "Tells the weather of a city",
        Raw(b'{"type":"object","properties":{"city":{"enum":["Paris","Rome"]}},'
            b'"required":["city"],"additionalProperties":false}'),
    ),
)  # fmt: skip


class Local:
    """One loop, one residency and one target for all tests of this module."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._client = HttpClient()
        self._residency = Residency(Engine(spare=False))
        self._runner.run(self._residency.__aenter__())
        model = resolve(parse("zoo:tiny-general"))
        self.target = LocalTarget(model.name, model, self._residency, self._connect)

    def _connect(self, endpoint: Endpoint) -> RemoteTarget:
        return RemoteTarget(
            name=self.target.name,
            base_url=endpoint.base_url,
            api_key=Secret(endpoint.api_key),
            model=endpoint.model,
            client=self._client,
            local=True,
        )

    def close(self) -> None:
        self._runner.run(self._residency.close())
        self._runner.run(self._client.close())
        self._runner.close()

    def ask(self, request: Request) -> Answer:
        async def answer() -> Answer:
            async with self.target.open(request, CALL) as deltas:
                return await collect(deltas)

        return self._runner.run(answer())

    def embed(self, *inputs: str, dimensions: int | None = None) -> Embeddings:
        request = EmbedRequest(model="m", inputs=inputs, dimensions=dimensions)
        return self._runner.run(self.target.embed(request, CALL))


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    local = Local()
    yield local
    local.close()


def chat(messages: tuple[Message, ...] = SUM, **sampling: object) -> Request:
    settings = {"temperature": 0.0, "max_tokens": 32, **sampling}
    return Request(
        model="m",
        messages=messages,
        sampling=Sampling(**settings),  # type: ignore[arg-type]  # fields by name
    )


TALE = (Message("user", "Tell me something about rivers, kings and the sea."),)
"""Nothing the model was trained on, so that no token is certain and a draw can differ."""


def hot(request: Request, seed: int) -> Request:
    """Drawn nearly at random, so that what holds does not hold by the model's habit."""
    sampling = Sampling(temperature=5.0, top_p=1.0, max_tokens=200, seed=seed)
    return msgspec.structs.replace(request, sampling=sampling)


def test_usage_and_origin(local: Local) -> None:
    answer = local.ask(chat())
    again = local.ask(chat())
    assert answer.usage is not None
    assert again.usage is not None
    assert again.usage.prompt_tokens == answer.usage.prompt_tokens > 0
    assert again.usage.cached_tokens > 0, "the second time the prompt is in the cache"
    assert again.text == answer.text
    assert answer.timings is not None
    assert answer.origin is not None
    assert answer.origin.target == "zoo:tiny-general"


def test_a_limit_ends_with_length(local: Local) -> None:
    answer = local.ask(chat(max_tokens=2))
    assert answer.choices[0].finish == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_no_limit_ends_with_the_context(local: Local) -> None:
    request = chat(max_tokens=None)
    endless = msgspec.structs.replace(request, extra={"ignore_eos": Raw(b"true")})
    answer = local.ask(endless)
    assert answer.choices[0].finish == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens <= 1024


def test_stop_words_do_not_appear(local: Local) -> None:
    whole = local.ask(chat()).text
    stop = whole[3:6]
    answer = local.ask(chat(stop=(stop,)))
    assert answer.text == whole[: whole.index(stop)]
    assert answer.choices[0].finish == "stop"


def test_a_seed_repeats_and_another_does_not(local: Local) -> None:
    first, again, other = (
        local.ask(chat(TALE, temperature=3.0, top_p=1.0, seed=seed)).text for seed in (7, 7, 8)
    )
    assert first == again != other


@pytest.mark.parametrize("count", [2, 6])
def test_several_choices_also_more_than_slots(local: Local, count: int) -> None:
    answer = local.ask(chat(TALE, n=count, temperature=3.0, top_p=1.0, seed=5))
    assert [choice.index for choice in answer.choices] == list(range(count))
    assert len({choice.text for choice in answer.choices}) > 1
    single = local.ask(chat(TALE, temperature=3.0, top_p=1.0, seed=6))
    assert answer.choices[1].text == single.text, "choice 1 draws with the next seed"
    assert answer.usage is not None
    assert single.usage is not None
    assert answer.usage.completion_tokens > single.usage.completion_tokens
    assert answer.usage.prompt_tokens == single.usage.prompt_tokens


@pytest.mark.parametrize(("top", "alternatives"), [(None, 0), (0, 0), (3, 3)])
def test_logprobs(local: Local, top: int | None, alternatives: int) -> None:
    answer = local.ask(chat(max_tokens=3, logprobs=True, top_logprobs=top))
    tokens = [
        token
        for piece in answer.choices[0].logprobs
        for token in msgspec.json.decode(piece)["content"]
    ]
    assert "".join(token["token"] for token in tokens) == answer.text
    for token in tokens:
        assert token["logprob"] <= 0
        assert len(token["top_logprobs"]) == alternatives


@pytest.mark.parametrize("seed", range(3))
def test_a_schema_holds_whatever_is_drawn(local: Local, seed: int) -> None:
    schema = Raw(
        b'{"type":"object","properties":{"a":{"type":"integer","minimum":0,"maximum":9},'
        b'"b":{"enum":["x","y"]},"c":{"$ref":"#/$defs/t"}},"required":["a","b","c"],'
        b'"additionalProperties":false,"$defs":{"t":{"type":"boolean"}}}'
    )
    request = msgspec.structs.replace(
        chat(), response_format=ResponseFormat("json_schema", schema, "x", True)
    )
    answer = local.ask(hot(request, seed))
    found = msgspec.json.decode(answer.text)
    assert set(found) == {"a", "b", "c"}
    assert 0 <= found["a"] <= 9
    assert found["b"] in ("x", "y")
    assert isinstance(found["c"], bool)
    assert answer.choices[0].finish == "stop"


def test_a_json_object(local: Local) -> None:
    request = msgspec.structs.replace(chat(), response_format=ResponseFormat("json_object"))
    assert local.ask(request).text.startswith("{")


def test_a_schema_that_cannot_be_held_is_an_error_not_a_free_answer(local: Local) -> None:
    schema = Raw(b'{"type":"object","properties":{"a":{"type":"string","pattern":"("}},'
                 b'"required":["a"]}')  # fmt: skip
    request = msgspec.structs.replace(
        chat(), response_format=ResponseFormat("json_schema", schema, "x")
    )
    with pytest.raises((Unsupported, BadRequest)):
        local.ask(request)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("choice", ["required", "function:get_weather"])
def test_a_forced_call_is_a_call_whatever_is_drawn(local: Local, choice: str, seed: int) -> None:
    request = msgspec.structs.replace(
        hot(chat((Message("user", "Hello!"),)), seed), tools=TOOLS, tool_choice=choice
    )
    answer = local.ask(request)
    (call,) = answer.choices[0].tool_calls
    assert answer.choices[0].finish == "tool_calls"
    assert answer.text == ""
    assert call.id
    allowed = {"get_weather"} if choice != "required" else {"get_weather", "calculator"}
    assert call.name in allowed
    arguments = msgspec.json.decode(call.arguments)
    if call.name == "get_weather":
        assert arguments["city"] in ("Paris", "Rome")
    else:
        assert len(arguments["expression"]) <= 12


def test_no_call_when_none_is_allowed(local: Local) -> None:
    messages = (Message("user", "What is the weather in Paris?"),)
    request = msgspec.structs.replace(chat(messages), tools=TOOLS, tool_choice="none")
    assert local.ask(request).choices[0].tool_calls == ()


def test_a_turn_after_a_tools_result(local: Local) -> None:
    messages = (
        Message("user", "What is the weather in Paris?"),
        Message("assistant", tool_calls=(ToolCall("1", "get_weather", '{"city": "Paris"}'),)),
        Message("tool", '{"temperature": 21, "sky": "clear"}', tool_call_id="1"),
    )
    answer = local.ask(msgspec.structs.replace(chat(messages), tools=TOOLS))
    assert answer.text or answer.choices[0].tool_calls


def test_a_prompt_that_is_too_long_is_refused_whole(local: Local) -> None:
    with pytest.raises(ContextTooLong) as caught:
        local.ask(chat((Message("user", "word " * 3000),)))
    assert "1024" in caught.value.message
    assert caught.value.target == "zoo:tiny-general"


def test_a_completion_can_be_echoed(local: Local) -> None:
    request = Request(
        model="m", prompt="Once", echo=True, sampling=Sampling(max_tokens=4, temperature=0.0)
    )
    plain = local.ask(msgspec.structs.replace(request, echo=False))
    assert local.ask(request).text == "Once" + plain.text


def test_embeddings(local: Local) -> None:
    found = local.embed("a cat", "a cat", "twelve plus thirty")
    assert len(found.vectors) == 3
    assert len({len(vector) for vector in found.vectors}) == 1
    assert found.vectors[0] == pytest.approx(found.vectors[1], abs=1e-4)
    assert found.vectors[0] != pytest.approx(found.vectors[2], abs=1e-2)
    assert sum(x * x for x in found.vectors[0]) == pytest.approx(1.0, abs=1e-3)
    assert found.usage.prompt_tokens > 0
    assert found.origin is not None
    assert found.origin.target == "zoo:tiny-general"


def test_an_embedding_as_long_as_the_context(local: Local) -> None:
    assert len(local.embed("word " * 450).vectors) == 1
    with pytest.raises(ContextTooLong):
        local.embed("word " * 3000)


def test_dimensions_are_what_the_model_has(local: Local) -> None:
    size = len(local.embed("a").vectors[0])
    assert len(local.embed("a", dimensions=size).vectors[0]) == size
    with pytest.raises(Unsupported, match=str(size)):
        local.embed("a", dimensions=size + 1)
