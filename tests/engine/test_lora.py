"""LoRA adapters per request on llama.cpp, against models with the same adapters in their weights.

Every answer is compared with that of another file: the merged weights, loaded without adapters, so
that nothing of one request can reach another.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw, Struct
from tests.convert import adapters

from llm_runner_router.config import Engine
from llm_runner_router.convert.base import Options
from llm_runner_router.convert.hf_gguf import from_safetensors
from llm_runner_router.convert.peft import base_settings, from_peft
from llm_runner_router.deltas import Answer
from llm_runner_router.engine import fit, llamacpp, lora, placing, slots
from llm_runner_router.engine.base import Purpose
from llm_runner_router.engine.residency import Residency
from llm_runner_router.engine.threads import CpuPlan
from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.models.info import Adapter, LocalModel
from llm_runner_router.models.resolve import resolve
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.refs import parse
from llm_runner_router.types import Request, RequestWire

from .locally import HUB, Engines, Locally, chat, engines, model_at, told, until, written

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("lora")]

SEA = "Tell me about the sea and about everything that lives in it, and say why that is so."
DOG = "Once upon a time there was a little dog who lived with a friendly cat near a big river."
SETS: dict[str, dict[str, float]] = {
    "none": {},
    "a": {"a": 1.0},
    "b": {"b": 1.0},
    "both": {"a": 0.5, "b": 0.7},
}
"""Adapters and their scales, by the name of the model that has them in its weights."""


class Made(Struct):
    """A model, its adapters in both layouts, and the models with them in their weights."""

    model: LocalModel
    folders: dict[str, Path]
    merged: dict[str, LocalModel]


def asking(scales: dict[str, float], request: Request) -> Request:
    each = [{"name": name, "scale": scale} for name, scale in scales.items()]
    return msgspec.structs.replace(request, extra={"lora": Raw(json.dumps(each).encode())})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("lora")
    source = folder / "base"
    shutil.copytree(HUB / "tiny-general", source)
    peft = {
        name: adapters.make(source, folder / f"peft-{name}", seed=seed, size=0.2)
        for seed, name in enumerate("ab", 1)
    }
    ready = []
    for name, path in peft.items():
        target = folder / f"{name}.gguf"
        options = Options(type="f32", base=base_settings(source))
        from_peft(path, target, options, lambda *_: None)
        ready.append(Adapter(name, target, target.stat().st_size))
    merged = {}
    for name, scales in SETS.items():
        parts = [(peft[one], scale) for one, scale in scales.items()]
        whole = adapters.merge(source, folder / f"merged-{name}", *parts)
        target = folder / f"{name}-in-it.gguf"
        from_safetensors(whole, target, Options(type="f32"), lambda *_: None)
        merged[name] = model_at(target)
    model = msgspec.structs.replace(merged["none"], name="adapted", adapters=tuple(ready))
    return Made(model, peft, merged)


class Expected:
    """What the merged models answer, each asked once."""

    def __init__(self, local: Locally, made: Made) -> None:
        self._local, self._made = local, made
        self._kept: dict[tuple[str, str], Answer] = {}

    def of(self, name: str, prompt: str) -> Answer:
        key = (name, prompt)
        if key not in self._kept:
            self._kept[key] = self._local.ask(self._made.merged[name], question(prompt))
        return self._kept[key]

    def check(self, answer: Answer, name: str, prompt: str) -> None:
        """The same text, and the same probabilities as near as F16 keys and values let them be."""
        expected = self.of(name, prompt)
        assert answer.text == expected.text, name
        ours, theirs = ([one["logprob"] for one in told(each)] for each in (answer, expected))
        assert ours == pytest.approx(theirs, abs=0.03), name


def question(prompt: str) -> Request:
    return chat(prompt, logprobs=True, top_logprobs=1)


@pytest.fixture(scope="module")
def expected(made: Made) -> Any:
    local = Locally(slots=1)
    found = Expected(local, made)
    for prompt in (SEA, DOG):
        texts = {found.of(name, prompt).text for name in SETS}
        assert len(texts) == len(SETS), "the adapters change nothing"
    yield found
    local.close()


# ---------------------------------------------------------------- answers


@pytest.mark.engine
@pytest.mark.parametrize("slots", [1, 2])
def test_whoever_asked_before_an_answer_is_that_of_the_merged_weights(
    made: Made, expected: Expected, slots: int
) -> None:
    """The same prompts again and again, with other adapters each time: the slots hold the prompt
    already, computed with the wrong ones. Not asking for any is one of the ways."""
    local = Locally(slots=slots)
    try:
        turns = [(name, prompt) for name in SETS for prompt in (SEA, DOG)] * 3
        random.Random(slots).shuffle(turns)
        turns += [("a", SEA), ("a", DOG), ("none", SEA), ("none", DOG), ("a", SEA), ("b", DOG)]
        for i, (name, prompt) in enumerate(turns):
            request = question(prompt)
            if name != "none" or i % 2:
                request = asking(SETS[name], request)
            expected.check(local.ask(made.model, request), name, prompt)
    finally:
        local.close()


@pytest.mark.engine
async def test_at_the_same_time_with_other_adapters(made: Made, expected: Expected) -> None:
    turns = [(name, prompt) for name in SETS for prompt in (SEA, DOG)] * 3
    random.Random(0).shuffle(turns)
    for name, prompt in set(turns):
        await asyncio.to_thread(expected.of, name, prompt)
    async with engines(slots=2) as e:
        requests = [asking(SETS[name], question(prompt)) for name, prompt in turns]
        answers = await asyncio.gather(*(e.answer(made.model, one) for one in requests))
    for (name, prompt), answer in zip(turns, answers, strict=True):
        expected.check(answer, name, prompt)


@pytest.mark.engine
async def test_others_that_come_later_do_not_keep_one_from_its_turn(made: Made) -> None:
    """Three slots, and always one that answers without adapters: the engine would compute that and
    whoever else wants none, as long as there are any, and nothing of the other."""
    order: list[str] = []

    async def ask(e: Engines, name: str, scales: dict[str, float], tokens: int) -> None:
        request = asking(scales, written(SEA, max_tokens=tokens))
        endless = {**request.extra, "ignore_eos": Raw(b"true")}
        await e.answer(made.model, msgspec.structs.replace(request, extra=endless))
        order.append(name)

    turns: list[tuple[str, dict[str, float], int]] = [("first", {}, 40), ("second", {}, 120)]
    turns += [("other", {"a": 1.0}, 4), *[("later", {}, 100)] * 6]
    async with engines(slots=3) as e:
        tasks = []
        for turn in turns:
            tasks.append(asyncio.create_task(ask(e, *turn)))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
    assert order[:3] == ["first", "second", "other"]


@pytest.mark.engine
def test_the_prompt_is_kept_for_the_same_adapters_only(made: Made) -> None:
    local = Locally(slots=1)
    try:
        cached = []
        for scales in ({"a": 1.0}, {"a": 1.0}, {"a": 0.9}, {}, {}):
            usage = local.ask(made.model, asking(scales, written(SEA))).usage
            assert usage is not None
            cached.append(usage.cached_tokens > 10)
        assert cached == [False, True, False, False, True]
    finally:
        local.close()


@pytest.mark.engine
def test_different_adapters_get_slots_of_their_own(made: Made) -> None:
    """Two who ask in turn, with one prompt and other adapters, do not read it anew each time."""
    local = Locally(slots=2)
    try:
        cached = []
        for scales in ({"a": 1.0}, {"b": 1.0}) * 3:
            usage = local.ask(made.model, asking(scales, written(SEA))).usage
            assert usage is not None
            cached.append(usage.cached_tokens > 10)
        assert cached == [False, False, True, True, True, True]
    finally:
        local.close()


@pytest.mark.engine
def test_several_choices_and_forced_answers_have_the_adapters_too(made: Made) -> None:
    local = Locally(slots=2)
    try:
        one = local.ask(made.merged["a"], chat(SEA))
        three = local.ask(made.model, asking({"a": 1.0}, chat(SEA, n=3)))
        assert [choice.text for choice in three.choices] == [one.text] * 3
    finally:
        local.close()


@pytest.mark.engine
def test_a_draft_model_does_not_change_what_adapters_say(made: Made, expected: Expected) -> None:
    """It guesses without them; what is said is what the model with them finds right."""
    drafted = msgspec.structs.replace(made.model, name="drafted", draft=made.merged["none"])
    local = Locally(slots=1, speculate="draft")
    try:
        for name in ("a", "none", "both", "a"):
            text = local.ask(drafted, asking(SETS[name], chat(SEA))).text
            assert text == expected.of(name, SEA).text
        (row,) = local.residency.status()
        assert row.draft
        assert row.guessed_right > 0
    finally:
        local.close()


@asynccontextmanager
async def keeping(folder: Path) -> AsyncIterator[Engines]:
    settings = Engine(spare=False, slots=1)
    async with HttpClient() as client, Residency(settings, prompts=folder) as residency:
        yield Engines(residency, client)


@pytest.mark.engine
async def test_prompts_are_not_handed_over_to_the_next_process(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unloaded after an answer with an adapter and loaded again, the same prompt is read anew; a
    model without adapters, for comparison, has it still."""
    monkeypatch.setattr(slots, "RATE", 1e12)
    request = written(SEA * 3)
    assert await kept_over(made.merged["none"], request, request, tmp_path / "none") > 30
    adapted = asking({"a": 1.0}, request)
    assert await kept_over(made.model, adapted, request, tmp_path / "adapted") == 0


async def kept_over(model: LocalModel, first: Request, then: Request, folder: Path) -> int:
    """Tokens that the next process has of the prompt of `first` when it is asked `then`."""
    again = msgspec.structs.replace(model, options={"again": True})
    async with keeping(folder) as e:
        await e.answer(model, first)
        (before,) = e.residency.status()
        e.residency.replace(again)

        def replaced() -> bool:
            return [row.pid for row in e.residency.status()] not in ([before.pid], [None])

        await until(lambda: len(e.residency.status()) == 1 and replaced())
        usage = (await e.answer(again, then)).usage
        assert usage is not None
        return usage.cached_tokens


# ---------------------------------------------------------------- what is asked for


@pytest.fixture(scope="module")
def named() -> LocalModel:
    """A model with adapters that nobody loads."""
    model = resolve(parse("zoo:tiny-general"))
    each = (Adapter("sea", Path("/sea.gguf"), 5 << 20), Adapter("7", Path("/7.gguf"), 1 << 20))
    return msgspec.structs.replace(model, name="m", adapters=each)


def with_lora(value: Any, **more: Any) -> Request:
    return msgspec.structs.replace(chat(), extra={"lora": Raw(json.dumps(value).encode())}, **more)


@pytest.mark.parametrize(
    ("asked", "scales"),
    [
        (None, [0, 0]),
        ([], [0, 0]),
        ([{"name": "sea"}], [1, 0]),
        ([{"name": "sea", "scale": 0.25}], [0.25, 0]),
        ([{"id": 1, "scale": 2}], [0, 2]),
        ([{"id": "7"}], [0, 1]),
        ([{"name": "7", "scale": 10}, {"id": 0, "scale": 0}], [0, 10]),
    ],
)
def test_every_scale_is_told(named: LocalModel, asked: Any, scales: list[float]) -> None:
    expected = [{"id": id, "scale": scale} for id, scale in enumerate(scales)]
    found = llamacpp.adapt(with_lora(asked), named).request
    assert msgspec.json.decode(found.extra["lora"]) == expected
    wire = RequestWire("openai_chat", {"lora": Raw(json.dumps(asked).encode())})
    found = llamacpp.adapt(with_lora(asked, wire=wire), named).request
    assert found.wire is not None
    assert msgspec.json.decode(found.wire.fields["lora"]) == expected


def test_whoever_says_nothing_gets_the_model_itself(named: LocalModel) -> None:
    found = llamacpp.adapt(chat(), named).request
    nothing = [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]
    assert msgspec.json.decode(found.extra["lora"]) == nothing


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"name": "sea"}, "lora", "a list"),
        (["sea"], "lora[0]", "no object"),
        ([{"name": "sea", "weight": 1}], "lora[0]", "no object"),
        ([{"scale": 1}], "lora[0]", "one of"),
        ([{"name": "sea", "id": 0}], "lora[0]", "one of"),
        ([{"name": 0}], "lora[0].name", "a name"),
        ([{"id": True}], "lora[0].id", "a number"),
        ([{"name": "lake"}], "lora[0].name", "'lake'; there are: `sea`, `7`"),
        ([{"name": "sea"}, {"id": 2}], "lora[1].id", "'2'; there are: `sea`, `7`"),
        ([{"id": -1}], "lora[0].id", "there are"),
        ([{"name": "sea"}, {"id": 0}], "lora[1]", "twice"),
        ([{"name": "sea"}] * 3, "lora", "3 entries"),
        ([{"name": "sea", "scale": -0.1}], "lora[0].scale", "from 0 to 10"),
        ([{"name": "sea", "scale": 10.5}], "lora[0].scale", "from 0 to 10"),
        ([{"name": "sea", "scale": 10**30}], "lora[0].scale", "from 0 to 10"),
        ([{"name": "sea", "scale": "1"}], "lora[0].scale", "from 0 to 10"),
        ([{"name": "sea", "scale": None}], "lora[0].scale", "from 0 to 10"),
        ([{"name": "sea", "scale": True}], "lora[0].scale", "from 0 to 10"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    named: LocalModel, asked: Any, param: str, said: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        llamacpp.adapt(with_lora(asked), named)
    assert caught.value.param == param
    assert said in caught.value.message


def test_a_model_without_adapters_says_so() -> None:
    model = resolve(parse("zoo:tiny-general"))
    with pytest.raises(Unsupported, match="has no LoRA adapters") as caught:
        llamacpp.adapt(with_lora([{"name": "sea"}]), model)
    assert caught.value.param == "lora"
    assert "adapters:" in (caught.value.hint or "")
    nothing: Any
    for nothing in (None, []):
        assert "lora" not in llamacpp.adapt(with_lora(nothing), model).request.extra


def test_a_name_with_an_adapter_says_it_once(named: LocalModel) -> None:
    found = lora.chosen(chat(), "sea", "m+sea", "m")
    assert lora.wanted(found, named) == {"sea": 1.0}
    assert lora.wanted(lora.chosen(with_lora([]), "7", "m+7", "m"), named) == {"7": 1.0}
    with pytest.raises(BadRequest, match="says which adapter it is") as caught:
        lora.chosen(with_lora([{"name": "7"}]), "sea", "m+sea", "m")
    assert caught.value.param == "lora"


# ---------------------------------------------------------------- how it is loaded


def test_adapters_are_loaded_for_answers_only(named: LocalModel) -> None:
    placement = fit.Placement(context=512, slots=2)
    plan = CpuPlan(1, 1, "spin")
    found = llamacpp.parameters(named, plan, placement, "key", "chat")
    loaded = [["/sea.gguf", 0.0], ["/7.gguf", 0.0]]
    assert found["lora_adapters"] == {"objects": ["CommonAdapterLoraInfo", loaded]}
    assert "lora_adapters" not in llamacpp.parameters(named, plan, placement, "key", "embed")


def test_their_bytes_count_and_no_prompts_are_kept_in_memory(named: LocalModel) -> None:
    asked = fit.Wanted(slots=2, budget=1 << 34)
    bare = fit.place(named.info, asked)
    found = fit.place(named.info, msgspec.structs.replace(asked, adapters=(5 << 20, 1 << 20)))
    assert bare.prompt_cache > 0
    assert found.prompt_cache == found.memory.prompts == 0
    beside = found.memory.serving - bare.memory.serving
    assert beside == found.memory.adapters + found.memory.work - bare.memory.work
    assert 6 << 20 < beside < 12 << 20
    assert (found.context, found.slots) == (bare.context, bare.slots)
    one = msgspec.structs.replace(named, adapters=named.adapters[:1])
    places = [
        placing.known(
            model, purpose, llamacpp, Engine(slots=2), budget=1 << 34
        ).placement.memory.serving
        for model in (named, one)
        for purpose in purposes()
    ]
    assert places[0] - places[2] > 1 << 20, "less by the second one's size"
    assert places[1] == places[3], "vectors are computed without adapters"


def purposes() -> tuple[Purpose, ...]:
    return "chat", "embed"
