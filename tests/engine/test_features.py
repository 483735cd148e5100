"""Every engine × every feature of a request: done, or refused by the name of the field.

One model in every engine that runs here, asked as the gateway asks it. `REFUSED` is the table of
what an engine cannot do; whatever is not in it must be done, and what is done is checked by what
the answer is, never by its status alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from msgspec import Raw
from tests.convert import adapters

from llm_runner_router.convert import hf_onnx
from llm_runner_router.convert.base import Options
from llm_runner_router.convert.peft import base_settings, from_peft
from llm_runner_router.deltas import Answer
from llm_runner_router.engine.select import load_engine
from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.models.info import Adapter, LocalModel
from llm_runner_router.models.resolve import resolve
from llm_runner_router.refs import parse
from llm_runner_router.types import Message, Request, ResponseFormat, Sampling, Tool

from .locally import CALL, HUB, Locally, model_at

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240), pytest.mark.xdist_group("features")]

FOLDER = HUB / "tiny-general"
ENGINES = ("llamacpp", "torch", "onnx", "onnx_genai", "mistralrs", "mock")
STORY = "Tell me a story."
WIDE: dict[str, Any] = {"temperature": 2.0, "top_p": 1.0}
"""Sampling with so much chance that a dozen tokens hardly come twice."""
LOOSE = {"min_p": 0.0, "top_k": 0}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = Tool("get_weather", "Tells the weather", Raw(msgspec.json.encode(SCHEMA)))
TIME = Tool("get_time", "Tells the time", Raw(msgspec.json.encode(SCHEMA)))


class Asked:
    """One engine with its model."""

    def __init__(
        self, local: Locally, model: LocalModel, adapted: LocalModel | None = None
    ) -> None:
        self._local = local
        self.model = model
        self.adapted = adapted
        """The same with two LoRA adapters, `sea` and `lake`."""
        self.engine = load_engine(model.engine or "llamacpp")

    def ask(self, request: Request) -> Answer:
        return self._local.ask(self.model, request)

    def chat(self, text: str = STORY, *, extra: Any = None, **sampling: Any) -> Answer:
        return self.ask(chat(text, extra=extra, **sampling))

    def pieces(self, request: Request) -> list[str]:
        async def read() -> list[str]:
            async with self._local.target(self.model).open(request, CALL) as deltas:
                return [delta.text async for delta in deltas if delta.text]

        return self._local.run(read())


def chat(text: str = STORY, *, extra: Any = None, **sampling: Any) -> Request:
    raw = {name: Raw(json.dumps(value).encode()) for name, value in (extra or {}).items()}
    settings = {"temperature": 0.0, "max_tokens": 12, **sampling}
    return Request(
        model="m", messages=(Message("user", text),), sampling=Sampling(**settings), extra=raw
    )


def with_(request: Request, **changes: Any) -> Request:
    return msgspec.structs.replace(request, **changes)


def tokens(answer: Answer) -> list[int]:
    """The ids of the drawn tokens of a greedy answer; the end is left out."""
    parts = [msgspec.json.decode(part) for part in answer.choices[0].logprobs]
    told = [one for part in parts for one in part["content"]]
    return [one["top_logprobs"][0]["id"] for one in told if one["token"]]


# ---------------------------------------------------------------- the features


def temperature(asked: Asked) -> None:
    plain = asked.chat().text
    assert asked.chat().text == plain, "without chance, twice the same"
    others = {asked.chat(**WIDE, extra=LOOSE).text for _ in range(6)}
    assert others - {plain}, "with much chance, never another"


def likeliest_only(name: str, value: Any) -> Callable[[Asked], None]:
    """With this setting, however hot, nothing but the likeliest token is left."""

    def check(asked: Asked) -> None:
        plain = asked.chat().text
        for _ in range(3):
            if name == "top_p":
                found = asked.chat(temperature=2.0, top_p=value, extra=LOOSE)
            else:
                found = asked.chat(**WIDE, extra={**LOOSE, name: value})
            assert found.text == plain

    return check


def presence_penalty(asked: Asked) -> None:
    no_token_twice(asked.chat(presence_penalty=100.0, logprobs=True, top_logprobs=1))


def frequency_penalty(asked: Asked) -> None:
    no_token_twice(asked.chat(frequency_penalty=100.0, logprobs=True, top_logprobs=1))


def no_token_twice(answer: Answer) -> None:
    parts = [msgspec.json.decode(part) for part in answer.choices[0].logprobs]
    drawn = [one["token"] for part in parts for one in part["content"] if one["token"]]
    assert len(drawn) > 3
    assert len(set(drawn)) == len(drawn), drawn


def repeat(name: str) -> Callable[[Asked], None]:
    def check(asked: Asked) -> None:
        plain = asked.chat(max_tokens=40).text
        assert asked.chat(max_tokens=40, extra={name: 1.0}).text == plain
        assert asked.chat(max_tokens=40, extra={name: 3.0}).text != plain

    return check


def seed(asked: Asked) -> None:
    texts = [asked.chat(**WIDE, extra=LOOSE, seed=s).text for s in (7, 7, 8, 9, 10)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def logit_bias(asked: Asked) -> None:
    first = tokens(asked.chat(logprobs=True, top_logprobs=1))[0]
    banned = asked.chat(extra={"logit_bias": {str(first): -100}}, logprobs=True, top_logprobs=2)
    parts = [msgspec.json.decode(part) for part in banned.choices[0].logprobs]
    likeliest, second = parts[0]["content"][0]["top_logprobs"]
    if likeliest["id"] == first:  # told as the model has them, or after the bias
        assert parts[0]["content"][0]["token"] == second["token"]


def stop_one(asked: Asked) -> None:
    whole = asked.chat(max_tokens=24).text
    assert len(whole) > 9
    for at in range(2, 8):  # wherever tokens begin and end
        stop = whole[at : at + 3]
        answer = asked.chat(max_tokens=24, stop=(stop,))
        assert answer.text == whole[: whole.index(stop)]
        assert answer.choices[0].finish == "stop"


def stop_several(asked: Asked) -> None:
    whole = asked.chat(max_tokens=24).text
    later, first = whole[7:10], whole[4:6]
    answer = asked.chat(max_tokens=24, stop=("never there", later, first))
    assert answer.text == whole[: min(whole.index(later), whole.index(first))]


def stop_unicode(asked: Asked) -> None:
    """The text is forced, so that there is something of several bytes to stop at."""
    extra = {"grammar": 'root ::= "un café — dé😀jà vu"'}
    assert asked.chat(max_tokens=60, extra=extra).text == "un café — dé😀jà vu"
    for stop in ("é —", "😀", "jà"):
        found = asked.chat(max_tokens=60, extra=extra, stop=(stop,)).text
        assert found == "un café — dé😀jà vu".partition(stop)[0]


def stop_bounds(asked: Asked) -> None:
    for stops, param in ((("a",) * 65, "stop"), (("a", "b" * 1025), "stop[1]")):
        with pytest.raises(BadRequest) as caught:
            asked.chat(stop=stops)
        assert caught.value.param == param


def logprobs(asked: Asked) -> None:
    answer = asked.chat(logprobs=True, top_logprobs=3)
    parts = [msgspec.json.decode(part) for part in answer.choices[0].logprobs]
    told = [one for part in parts for one in part["content"]]
    assert "".join(one["token"] for one in told) == answer.text
    for one in told:
        best = [other["logprob"] for other in one["top_logprobs"]]
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert one["logprob"] == pytest.approx(best[0], abs=1e-5)
        assert bytes(one["bytes"]).decode("utf-8", "replace") == one["token"]
    bare = asked.chat(logprobs=True)
    parts = [msgspec.json.decode(part) for part in bare.choices[0].logprobs]
    assert {len(one["top_logprobs"]) for part in parts for one in part["content"]} == {0}


def json_schema(asked: Asked) -> None:
    form = ResponseFormat("json_schema", Raw(msgspec.json.encode(SCHEMA)), "x")
    for _ in range(3):
        request = with_(chat(**WIDE | {"max_tokens": 40}), response_format=form)
        jsonschema.validate(msgspec.json.decode(asked.ask(request).text), SCHEMA)


def json_object(asked: Asked) -> None:
    # Not of every model a short one: what there is must be the beginning of an object.
    request = chat("Give me JSON.", max_tokens=40)
    answer = asked.ask(with_(request, response_format=ResponseFormat("json_object")))
    assert answer.text.startswith("{")


def grammar(asked: Asked) -> None:
    """Whatever the model would rather say, and however hot."""
    extra = {"grammar": 'root ::= ("yes" | "no") "!"', **LOOSE}
    for _ in range(3):
        answer = asked.chat(**WIDE | {"max_tokens": 40}, extra=extra)
        assert answer.text in ("yes!", "no!")
        assert answer.choices[0].finish == "stop"


def tools_required(asked: Asked) -> None:
    request = chat("What is the weather in Rome?", max_tokens=120)
    answer = asked.ask(with_(request, tools=(WEATHER, TIME), tool_choice="required"))
    (call,) = answer.choices[0].tool_calls
    assert call.name in ("get_weather", "get_time")
    jsonschema.validate(msgspec.json.decode(call.arguments), SCHEMA)
    assert answer.choices[0].finish == "tool_calls"


def tools_named(asked: Asked) -> None:
    request = chat("What is the weather in Rome?", max_tokens=120)
    answer = asked.ask(with_(request, tools=(WEATHER, TIME), tool_choice="function:get_time"))
    (call,) = answer.choices[0].tool_calls
    assert call.name == "get_time"


def tools_auto(asked: Asked) -> None:
    """The model was trained to call this one; the mock says what it was told to."""
    request = chat("What is the weather in Rome?", max_tokens=120)
    if asked.engine.NAME == "mock":
        says = '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
        model = msgspec.structs.replace(asked.model, name="caller", options={"text": says})
        asked = Asked(asked._local, model)
    answer = asked.ask(with_(request, tools=(WEATHER,)))
    (call,) = answer.choices[0].tool_calls
    assert call.name == "get_weather"
    assert msgspec.json.decode(call.arguments) == {"city": "Rome"}
    assert answer.choices[0].finish == "tool_calls"


def one_call_at_a_time(asked: Asked) -> None:
    """The mock calls twice where it may."""
    if asked.engine.NAME != "mock":
        tools_auto(asked)
        return
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
    model = msgspec.structs.replace(asked.model, name="caller twice", options={"text": call * 2})
    request = with_(chat(max_tokens=400), tools=(WEATHER,))
    twice = Asked(asked._local, model)
    assert len(twice.ask(request).choices[0].tool_calls) == 2
    answer = twice.ask(with_(request, parallel_tool_calls=False))
    assert len(answer.choices[0].tool_calls) == 1
    assert answer.choices[0].finish == "tool_calls"


def tools_none(asked: Asked) -> None:
    answer = asked.ask(with_(chat(), tools=(WEATHER,), tool_choice="none"))
    assert not answer.choices[0].tool_calls
    assert answer.text


def choices(asked: Asked) -> None:
    answer = asked.ask(chat(n=3, max_tokens=4))
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) == 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def max_tokens(asked: Asked) -> None:
    answer = asked.chat(max_tokens=3)
    assert answer.choices[0].finish == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def stream(asked: Asked) -> None:
    pieces = asked.pieces(chat())
    assert len(pieces) > 2
    assert "".join(pieces) == asked.chat().text


def echo(asked: Asked) -> None:
    request = Request(
        model="m", prompt="The year has", sampling=Sampling(temperature=0.0, max_tokens=4)
    )
    answer = asked.ask(request).text
    assert asked.ask(with_(request, echo=True)).text == "The year has" + answer


def lora(asked: Asked) -> None:
    """Two adapters to choose from: each changes the answer, and the next has none again."""
    plain = asked.chat().text
    with_them = Asked(asked._local, asked.adapted or asked.model)
    texts = {with_them.chat(extra={"lora": [{"name": name}]}).text for name in ("sea", "lake")}
    assert len(texts - {plain}) == 2
    assert with_them.chat().text == plain
    with pytest.raises(BadRequest, match=r"there are: `?sea`?, `?lake") as caught:
        with_them.chat(extra={"lora": [{"name": "river"}]})
    assert (caught.value.param or "").startswith("lora")


def lora_scaled(asked: Asked) -> None:
    """Half of one and a little of another are something of their own."""
    with_them = Asked(asked._local, asked.adapted or asked.model)
    wanted = [{"name": "sea", "scale": 0.5}, {"name": "lake", "scale": 0.25}]
    answer = with_them.chat(extra={"lora": wanted}).text
    for other in (wanted[:1], wanted[1:], [{"name": "sea"}], []):
        assert with_them.chat(extra={"lora": other}).text != answer


def refused(param: str, request: Request) -> Callable[[Asked], None]:
    def check(asked: Asked) -> None:
        with pytest.raises(Unsupported) as caught:
            asked.ask(request)
        assert caught.value.param == param

    return check


def wrong(param: str, request: Request) -> Callable[[Asked], None]:
    def check(asked: Asked) -> None:
        with pytest.raises(BadRequest) as caught:
            asked.ask(request)
        assert caught.value.param == param

    return check


def leaving(asked: Asked) -> None:
    """The slots are free as soon as their readers are gone, long before the answers' ends."""
    endless = chat(max_tokens=900, extra={"ignore_eos": True})

    async def leave() -> None:
        async with asked._local.target(asked.model).open(endless, CALL) as deltas:
            await anext(deltas)

    for _ in range(6):  # more than there are slots
        asked._local.run(leave())
        rows = asked._local.residency.status()
        assert [row.active for row in rows if row.name == asked.model.name] == [0]
    assert asked.chat(max_tokens=2).text


CHECKS: dict[str, Callable[[Asked], None]] = {
    "temperature": temperature,
    "top_p": likeliest_only("top_p", 1e-6),
    "top_k": likeliest_only("top_k", 1),
    "min_p": likeliest_only("min_p", 1.0),
    "repeat_penalty": repeat("repeat_penalty"),
    "repetition_penalty": repeat("repetition_penalty"),
    "presence_penalty": presence_penalty,
    "frequency_penalty": frequency_penalty,
    "logit_bias": logit_bias,
    "seed": seed,
    "stop": stop_one,
    "several stops": stop_several,
    "stops of several bytes": stop_unicode,
    "too many stops": stop_bounds,
    "logprobs": logprobs,
    "json_schema": json_schema,
    "json_object": json_object,
    "grammar": grammar,
    "tool_choice: required": tools_required,
    "tool_choice: named": tools_named,
    "tools": tools_auto,
    "parallel_tool_calls": one_call_at_a_time,
    "tool_choice: none": tools_none,
    "n": choices,
    "max_tokens": max_tokens,
    "stream": stream,
    "leaving": leaving,
    "echo": echo,
    "echo with logprobs": refused(
        "echo", Request(model="m", prompt="a", echo=True, sampling=Sampling(logprobs=True))
    ),
    "best_of": refused("best_of", chat(extra={"best_of": 3})),
    "lora": lora,
    "lora with scales": lora_scaled,
    "suffix": refused("suffix", Request(model="m", prompt="a", suffix="b")),
}
NOBODY = ("echo with logprobs", "best_of", "suffix")
"""Of `CHECKS` those that see every engine refuse."""
KNOWN_TO_LLAMACPP: dict[str, Request] = {
    "typical_p": chat(temperature=1.0, extra={"typical_p": 0.5}),
    "top_n_sigma": chat(temperature=1.0, extra={"top_n_sigma": 1.0}),
    "xtc_probability": chat(temperature=1.0, extra={"xtc_probability": 0.5}),
    "mirostat": chat(temperature=1.0, extra={"mirostat": 2}),
    "dry_multiplier": chat(extra={"dry_multiplier": 0.8}),
    "dynatemp_range": chat(temperature=1.0, extra={"dynatemp_range": 0.5}),
}
"""Fields that only llama.cpp has, and that are refused elsewhere instead of being left out."""
REFUSED: dict[tuple[str, str], str] = {
    ("mistralrs", "seed"): "seed",
    ("mistralrs", "lora with scales"): "lora",
    **{
        (engine, feature): "lora"
        for engine in ("torch", "onnx", "onnx_genai", "mock")
        for feature in ("lora", "lora with scales")
    },
}
"""What an engine cannot do, and the field that its refusal names."""


# ---------------------------------------------------------------- the engines


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a graph, for both engines that read one."""
    target = tmp_path_factory.mktemp("graph") / "tiny-general"
    hf_onnx.decoder(FOLDER, target, Options("f32"), lambda *_: None)
    return target


@pytest.fixture(scope="module")
def peft(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoRA adapters for the model, as PEFT writes them."""
    folder, only = tmp_path_factory.mktemp("peft"), ("q_proj", "v_proj")
    return {
        name: adapters.make(
            FOLDER, folder / name, seed=seed, size=1.0, only=only, target_modules=only
        )
        for seed, name in enumerate(("sea", "lake"))
    }


def with_adapters(model: LocalModel, peft: dict[str, Path]) -> LocalModel | None:
    """The model with both, as its engine takes them; None where it takes none."""
    if model.engine == "mistralrs":
        options = {"adapters": {name: str(folder) for name, folder in peft.items()}}
        return msgspec.structs.replace(model, name="adapted mistralrs", options=options)
    if model.engine != "llamacpp":
        return None
    each = []
    for name, folder in peft.items():
        target = folder.with_suffix(".gguf")
        from_peft(folder, target, Options("f16", base=base_settings(FOLDER)), lambda *_: None)
        each.append(Adapter(name, target, target.stat().st_size))
    return msgspec.structs.replace(model, name="adapted", adapters=tuple(each))


@pytest.fixture(scope="module", params=ENGINES)
def asked(local: Locally, request: pytest.FixtureRequest) -> Asked:
    name: str = request.param
    engine = load_engine(name)
    for needed in (*engine.NEEDS, *(("onnx",) if name.startswith("onnx") else ())):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    if name in ("llamacpp", "mock"):
        model = msgspec.structs.replace(resolve(parse("zoo:tiny-general")), engine=name)
        if name == "mock":
            says = "once there was a wide sea, and a boat; nobody knew whose it could be"
            model = msgspec.structs.replace(model, name="mock", options={"text": says})
    elif name.startswith("onnx"):
        path: Path = request.getfixturevalue("graph")
        model = model_at(path, engine=name, name=name)
    else:
        model = model_at(FOLDER, engine=name, name=name)
    return Asked(local, model, with_adapters(model, request.getfixturevalue("peft")))


@pytest.mark.parametrize("feature", CHECKS)
def test_it_is_done_or_refused(asked: Asked, feature: str) -> None:
    check = CHECKS[feature]
    param = REFUSED.get((asked.engine.NAME, feature))
    if param is None:
        check(asked)
        return
    with pytest.raises(Unsupported) as caught:
        check(asked)
    assert caught.value.param == param
    assert caught.value.hint, "and it says what to do instead"


@pytest.mark.parametrize("field", KNOWN_TO_LLAMACPP)
def test_what_only_llama_cpp_does_is_refused_elsewhere(asked: Asked, field: str) -> None:
    request = KNOWN_TO_LLAMACPP[field]
    if asked.engine.NAME == "llamacpp":
        assert asked.ask(request).text
        return
    with pytest.raises(Unsupported) as caught:
        asked.ask(request)
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("field", "value"), [("min_p", 1.5), ("repeat_penalty", 0.0), ("repeat_last_n", -2)]
)
def test_what_means_nothing_is_refused(asked: Asked, field: str, value: Any) -> None:
    if asked.engine.NAME == "llamacpp":
        pytest.skip("llama.cpp takes it in a way of its own")
    with pytest.raises(BadRequest) as caught:
        asked.chat(extra={field: value})
    assert caught.value.param == field
