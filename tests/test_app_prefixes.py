"""The router knows which local model has read a prompt's beginning: real runners, whole app."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from llm_runner_router.app import App
from llm_runner_router.config import Auto, Config, Engine, Node
from llm_runner_router.deltas import Answer, collect
from llm_runner_router.types import Candidate, Message, Request, Sampling

from .engine.locally import until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

SEA = "The sea is blue and 17 ships sail on it, as Ann has seen from her 3 windows. " * 6
TOWN = "Of 40 houses in the town some 12 are red, and Bob has painted 9 of them himself. " * 6


@pytest.fixture
def app(tmp_path: Path) -> App:
    """The same weights under two names, each with a runner of its own."""
    config = Config(
        models={
            "one": Node(target="zoo:tiny-math", engine="llamacpp"),
            "two": Node(target="zoo:tiny-math", engine="llamacpp"),
            "fast": Node(auto=Auto(models=("one", "two"), objective="speed")),
            "least": Node(auto=Auto(models=("one", "two"), objective="least-loaded")),
        },
        engine=Engine(spare=False, slots=1),
    )
    return App(config, environ={"LLMRR_HOME": str(tmp_path)})


def question(model: str, *texts: str) -> Request:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(texts))  # type: ignore[arg-type]  # a role
    return Request(model, messages, sampling=Sampling(max_tokens=1, temperature=0.0))


async def ask(app: App, request: Request) -> Answer:
    async with app.target(request.model).open(request, app.start_call()) as deltas:
        return await collect(deltas)


def candidates(app: App, request: Request) -> dict[str, Candidate]:
    decision = app.explain(request)
    assert decision is not None
    return {"chosen": decision.candidates[0], **{c.name: c for c in decision.candidates}}


async def ready(app: App, name: str) -> None:
    """Loaded, and its template was looked at, which is when something is known of chats."""
    await app.load(name)
    asked = question("fast", SEA)
    await until(lambda: candidates(app, asked)[name].cached_tokens is not None)


async def test_a_question_goes_where_its_beginning_was_read(app: App) -> None:
    try:
        await app.start()
        before = candidates(app, question("fast", SEA))
        assert before["one"].cached_tokens is None, "nothing is loaded"
        for name, text in (("one", SEA), ("two", TOWN)):
            await ready(app, name)
            await ask(app, question(name, text, "Yes.", "1 + 2?"))
        for text, there, other in ((SEA, "one", "two"), (TOWN, "two", "one")):
            asked = question("least", text, "Yes.", "1 + 2?", "3", "1 + 3?")
            found = candidates(app, asked)
            chosen = found["chosen"]
            assert chosen.name == there
            assert chosen.cached_tokens is not None
            assert chosen.prompt_tokens is not None
            assert 150 < chosen.cached_tokens < chosen.prompt_tokens
            assert found[other].cached_tokens == 0
            fast = candidates(app, msgspec.structs.replace(asked, model="fast"))
            assert fast[there].cached_tokens == chosen.cached_tokens
            answer = await ask(app, asked)
            record = app.records(1)[0]
            assert record.target == there
            assert record.expected_cached == chosen.cached_tokens
            assert answer.usage is not None
            assert record.usage == answer.usage
            assert answer.usage.cached_tokens + 64 >= chosen.cached_tokens
            assert "it has" in (record.reason or "")
        rows = {row.name: row for row in app.ps()}
        assert all((row.tokens_kept or 0) > 150 for row in rows.values())
        assert all(row.cached_tokens > 150 for row in rows.values())
    finally:
        await app.close()
