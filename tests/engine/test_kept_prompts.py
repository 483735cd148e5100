"""What is promised of kept prompts, against the real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from llm_runner_router.config import Engine
from llm_runner_router.deltas import collect
from llm_runner_router.engine import fit
from llm_runner_router.engine.appending import beginnings, judged
from llm_runner_router.engine.kept import Seen
from llm_runner_router.engine.prefixes import BLOCK
from llm_runner_router.engine.residency import Residency
from llm_runner_router.engine.status import RunnerStatus
from llm_runner_router.models.info import LocalModel
from llm_runner_router.models.resolve import resolve
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.refs import parse
from llm_runner_router.types import Message, Origin, Request, Sampling, Tool, Usage

from .locally import CALL, Engines, until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

SYSTEM = Message("system", "You count apples, pears and plums of everybody in the village. " * 4)
TOOL = Tool("look", "Look it up.")


@asynccontextmanager
async def running(folder: Path | None = None, **settings: object) -> AsyncIterator[Engines]:
    chosen = Engine(**{"spare": False, **settings})  # type: ignore[arg-type]  # names
    async with HttpClient() as client, Residency(chosen, prompts=folder) as residency:
        yield Engines(residency, client)


async def ready(e: Engines, model: LocalModel) -> None:
    """Loaded, and its template was looked at."""
    await e.residency.load(model)
    live = next(one for one in e.residency._live.values() if one.known.model.name == model.name)
    await until(lambda: live.known.seen)


@pytest.fixture
def math() -> LocalModel:
    return resolve(parse("zoo:tiny-math"))


def question(rng: Random, words: int) -> Message:
    names = ("Ann", "Bob", "Cleo", "Dan")
    text = " ".join(f"{rng.choice(names)} has {rng.randrange(1000)} plums." for _ in range(words))
    return Message("user", text)


async def asked(
    e: Engines, model: LocalModel, messages: tuple[Message, ...], **changes: object
) -> tuple[int | None, Usage, str]:
    """What was promised, what was so, what was said."""
    request = Request(
        "m",
        messages=messages,
        sampling=Sampling(max_tokens=12, temperature=0.0),
        **changes,  # type: ignore[arg-type]  # fields
    )
    origin: Origin | None = None
    async with e.target(model).open(request, CALL) as deltas:

        async def noted() -> AsyncIterator[object]:
            nonlocal origin
            async for delta in deltas:
                origin = delta.origin or origin
                yield delta

        answer = await collect(noted())  # type: ignore[arg-type]  # deltas
    assert origin is not None
    assert answer.usage is not None
    return origin.expected, answer.usage, answer.text


def row(e: Engines) -> RunnerStatus:
    (found,) = e.residency.status()
    return found


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("room", [0, 8 << 20])
async def test_no_more_is_promised_than_the_engine_has(
    math: LocalModel, slots: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "prompt_cache", lambda *_: room)
    rng = Random(slots + room)
    talks: list[tuple[Message, ...]] = []
    promised = had = 0
    async with running(slots=slots) as e:
        await ready(e, math)

        async def turn() -> None:
            nonlocal promised, had
            talk: tuple[Message, ...] = (SYSTEM,) if rng.random() < 0.7 else ()
            if talks and rng.random() < 0.7:
                talk = talks.pop(rng.randrange(len(talks)))
            talk = (*talk, question(rng, rng.choice((1, 4, 12))))
            tools = {"tools": (TOOL,)} if rng.random() < 0.1 else {}
            expected, usage, text = await asked(e, math, talk, **tools)
            assert expected is not None
            assert expected <= usage.cached_tokens + BLOCK
            promised, had = promised + expected, had + usage.cached_tokens
            if usage.prompt_tokens < 600:
                talks.append((*talk, Message("assistant", text)))
            del talks[:-6]

        for _ in range(25):
            await asyncio.gather(*(turn() for _ in range(rng.randint(1, slots))))
        status = row(e)
    assert promised > 0.25 * had
    assert status.cached_tokens == had
    assert status.tokens_kept is not None
    assert status.tokens_kept > 0


async def test_who_leaves_in_the_middle_takes_nothing_from_others(math: LocalModel) -> None:
    rng = Random(5)
    async with running(slots=2) as e:
        await ready(e, math)
        talk = (SYSTEM, question(rng, 12))
        _, usage, _ = await asked(e, math, talk)
        request = Request("m", messages=(question(rng, 20),))
        for _ in range(3):
            async with e.target(math).open(request, CALL) as deltas:
                await anext(deltas)
        expected, again, _ = await asked(e, math, talk)
        assert again.cached_tokens == usage.prompt_tokens - 1
        assert expected is not None
        assert again.cached_tokens - 64 <= expected <= again.cached_tokens + BLOCK


async def test_two_conversations_that_take_turns_in_one_slot_are_both_kept(
    math: LocalModel,
) -> None:
    rng = Random(7)
    talks: list[tuple[Message, ...]] = [(question(rng, 20),), (question(rng, 20),)]
    async with running(slots=1) as e:
        await ready(e, math)
        for number in range(6):
            talk = talks.pop(0)
            expected, usage, text = await asked(e, math, talk)
            if number > 1:
                assert expected is not None
                assert usage.cached_tokens - BLOCK - 64 <= expected <= usage.cached_tokens + BLOCK
                assert expected > 150
            talks.append((*talk, Message("assistant", text), question(rng, 3)))


async def test_promises_outlive_the_runner_with_its_prompts(
    math: LocalModel, tmp_path: Path
) -> None:
    rng = Random(8)
    other = resolve(parse("zoo:tiny-text"))
    room = fit.place(math.info, fit.Wanted(slots=2, budget=1 << 34)).bytes * 5 // 4
    talk: tuple[Message, ...] = (SYSTEM, question(rng, 12))
    async with running(tmp_path, slots=2, memory=room) as e:
        await ready(e, math)
        _, first, text = await asked(e, math, talk)
        await e.residency.load(other)
        talk = (*talk, Message("assistant", text), question(rng, 3))
        expected, usage, _ = await asked(e, math, talk)
        assert usage.cached_tokens >= first.prompt_tokens
        assert expected is not None
        assert first.prompt_tokens - 64 <= expected <= usage.cached_tokens + BLOCK
        await e.residency.stop(math.name)
        assert (await asked(e, math, talk))[0] == 0, "it was told to forget"


async def test_adapters_and_tools_do_not_share_and_texts_do(math: LocalModel) -> None:
    rng = Random(9)
    talk = (question(rng, 12),)
    async with running(slots=1) as e:
        await ready(e, math)
        await asked(e, math, talk)
        assert (await asked(e, math, talk, tools=(TOOL,)))[0] == 0
        assert ((await asked(e, math, talk, tools=(TOOL,)))[0] or 0) > 90


# ---------------------------------------------------------------- templates

CONVERSATION = (
    {"role": "system", "content": "You are from Faro."},
    {"role": "user", "content": "Where is Aveiro?"},
    {"role": "assistant", "content": "South of Braga."},
    {"role": "user", "content": "And Coimbra?"},
)


def chatml(turns: tuple[dict[str, str], ...]) -> str:
    return "".join(f"<|{t['role']}|>{t['content']}\n" for t in turns) + "<|assistant|>"


def system_last(turns: tuple[dict[str, str], ...]) -> str:
    """As Mistral's: the system message goes before the last question."""
    system, *rest = turns
    rest[-1] = {**rest[-1], "content": f"{system['content']}\n{rest[-1]['content']}"}
    return chatml(tuple(rest))


def counting(turns: tuple[dict[str, str], ...]) -> str:
    return f"{len(turns)} turns\n" + chatml(turns)


def wordy(turns: tuple[dict[str, str], ...]) -> str:
    return chatml(turns).replace("\n", "-" * 100)


def silent(turns: tuple[dict[str, str], ...]) -> str:
    """Leaves out what was answered before."""
    return chatml(tuple(t for t in turns if t["role"] != "assistant"))


def test_a_template_that_appends_is_told_from_others() -> None:
    def seen(template: object) -> Seen:
        return judged([(turns, template(turns)) for turns in beginnings(CONVERSATION)])  # type: ignore[operator]  # a function

    assert seen(chatml) == Seen(True, len("\n<|assistant|>"), len("<|system|>"))
    for template in (system_last, counting, wordy, silent):
        assert not seen(template).appends, template
