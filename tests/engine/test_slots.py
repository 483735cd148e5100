"""Prompts outlive the unloading of their model: real engine, real files."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llm_runner_router.config import Engine
from llm_runner_router.deltas import Answer
from llm_runner_router.engine import slots as slots_module
from llm_runner_router.engine.fit import Wanted, place
from llm_runner_router.engine.residency import Residency
from llm_runner_router.engine.slots import tokens_of
from llm_runner_router.engine.status import RunnerStatus
from llm_runner_router.models.info import LocalModel
from llm_runner_router.models.resolve import resolve
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.refs import parse

from .locally import Engines, chat, until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

LONG = "Alice has 12 apples and Bob has 30 pears. " * 12


@asynccontextmanager
async def keeping(folder: Path, **settings: object) -> AsyncIterator[Engines]:
    chosen = Engine(**{"spare": False, "slots": 2, **settings})  # type: ignore[arg-type]  # names
    async with HttpClient() as client, Residency(chosen, prompts=folder) as residency:
        yield Engines(residency, client)


@pytest.fixture
def math() -> LocalModel:
    return resolve(parse("zoo:tiny-math"))


@pytest.fixture
def text() -> LocalModel:
    return resolve(parse("zoo:tiny-text"))


@pytest.fixture
def room(math: LocalModel) -> int:
    """A budget with room for one model."""
    return place(math.info, Wanted(slots=2, budget=1 << 34)).bytes * 5 // 4


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def row(e: Engines) -> RunnerStatus:
    (found,) = e.residency.status()
    return found


def cached(answer: Answer) -> tuple[int, int]:
    assert answer.usage is not None
    return answer.usage.cached_tokens, answer.usage.prompt_tokens


async def test_a_prompt_is_not_computed_again_after_a_swap(
    math: LocalModel, text: LocalModel, room: int, tmp_path: Path
) -> None:
    folder = tmp_path / "prompts"
    async with keeping(folder, memory=room) as e:
        before = await e.answer(math, chat(LONG))
        assert cached(before)[0] < 10
        await e.answer(text, chat(LONG))
        (kept,) = files(folder)
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
        after = await e.answer(math, chat(LONG))
        assert after.text == before.text
        had, asked = cached(after)
        assert asked > 150
        assert had >= asked - 2, "the engine had to compute it again"
        assert (row(e).prompts_saved, row(e).prompts_restored) == (1, 1)
        assert row(e).tokens_restored >= asked
    assert files(folder) == [], "nothing stays when the gateway ends"
    assert os.listdir(folder) == []


async def test_idle_models_keep_their_prompts_too_and_other_prompts_leave_them_alone(
    math: LocalModel, tmp_path: Path
) -> None:
    folder = tmp_path / "prompts"
    async with keeping(folder, keep_alive=0) as e:
        await e.answer(math, chat(LONG))
        await until(lambda: not e.residency.status())
        (first,) = files(folder)
        await e.answer(math, chat("What is 1 + 1?"))
        await until(lambda: not e.residency.status())
        assert first in files(folder)
        assert len(files(folder)) == 1, "the other prompt is too short to be worth a file"
        assert cached(await e.answer(math, chat(LONG)))[0] > 150
        await until(lambda: not e.residency.status())
        assert len(files(folder)) == 1, "the same prompt with its answer takes its place"


async def test_stopping_a_model_forgets_what_it_was_told(math: LocalModel, tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    async with keeping(folder, keep_alive=0) as e:
        await e.answer(math, chat(LONG))
        await until(lambda: not e.residency.status())
        assert files(folder)
        await e.residency.stop("zoo:tiny-math")
        assert not files(folder)
        assert cached(await e.answer(math, chat(LONG)))[0] < 10


@pytest.mark.parametrize("damage", ["cut", "gone"])
async def test_a_damaged_file_is_not_offered_to_the_engine(
    math: LocalModel, tmp_path: Path, damage: str
) -> None:
    """The engine would end its process on the one that is cut short."""
    folder = tmp_path / "prompts"
    async with keeping(folder, keep_alive=0) as e:
        before = await e.answer(math, chat(LONG))
        await until(lambda: not e.residency.status())
        (kept,) = files(folder)
        if damage == "cut":
            os.truncate(kept, kept.stat().st_size // 2)
        else:
            kept.unlink()
        after = await e.answer(math, chat(LONG))
        assert after.text == before.text
        assert cached(after)[0] < 10


async def test_a_runner_that_dies_of_a_file_is_started_again_without_it(
    math: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module.Prompts, "_is_whole", lambda *_: True)
    folder = tmp_path / "prompts"
    async with keeping(folder, keep_alive=0) as e:
        before = await e.answer(math, chat(LONG))
        await until(lambda: not e.residency.status())
        (kept,) = files(folder)
        os.truncate(kept, kept.stat().st_size // 2)
        after = await e.answer(math, chat(LONG))
        assert after.text == before.text
        await until(lambda: not e.residency.status())
        assert files(folder) == [], "a model that did not bear it is not asked again"


async def test_a_restored_prompt_that_is_not_used_is_noticed(
    math: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on architectures whose slots cannot be restored: other tokens than were restored."""
    monkeypatch.setattr(slots_module, "tokens_of", lambda head: (7,) * len(tokens_of(head)))
    folder = tmp_path / "prompts"
    async with keeping(folder, keep_alive=0) as e:
        await e.answer(math, chat(LONG))
        await until(lambda: not e.residency.status())
        assert (await e.answer(math, chat(LONG))).text
        await until(lambda: not e.residency.status())
        assert files(folder) == []


@pytest.mark.parametrize("limit", [0, 1000])
async def test_no_more_is_kept_than_was_asked_for(
    math: LocalModel, tmp_path: Path, limit: int
) -> None:
    folder = tmp_path / "prompts"
    async with keeping(folder, keep_alive=0, saved_prompts=limit) as e:
        await e.answer(math, chat(LONG))
        await until(lambda: not e.residency.status())
        assert files(folder) == []
        assert folder.exists() == bool(limit)


async def test_what_a_killed_gateway_left_is_deleted(math: LocalModel, tmp_path: Path) -> None:
    gone, alive = tmp_path / "999999999-ab", tmp_path / f"{os.getpid()}-ab"
    for folder in (gone, alive):
        folder.mkdir()
        (folder / "x.kv").write_text("x")
    async with keeping(tmp_path) as e:
        await e.residency.load(math)
        assert not gone.exists()
        assert alive.exists()
