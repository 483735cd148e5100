"""Responses that are kept: whose they are, for how long, and what a conversation is made of."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event

import pytest

from llm_runner_router.errors import NotFound, Overloaded, Unavailable
from llm_runner_router.policy import stored
from llm_runner_router.policy.stored import Responses, Stored


class Wall:
    """A clock that is set."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def kept(
    path: Path | None, *, keep: float = 60.0, limit: int = 1 << 20
) -> AsyncIterator[tuple[Responses, Wall]]:
    wall = Wall()
    responses = Responses(path, keep=keep, limit=limit, wall=wall)
    try:
        yield responses, wall
    finally:
        await responses.aclose()


def one(id: str, previous: str | None = None, size: int = 10) -> Stored:
    return Stored(id, previous, b"b" * size, b"[]")


async def test_what_was_put_is_there_at_once_and_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "responses.sqlite"
    async with kept(path) as (responses, _):
        responses.put("ada", one("r1"))
        assert await responses.get("ada", "r1") == one("r1")
        responses.put("ada", Stored("r1", None, b"newer", b"[1]", running=True))
    async with kept(path) as (responses, _):
        found = await responses.get("ada", "r1")
    assert (found.body, found.input, found.running) == (b"newer", b"[1]", True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_nobody_finds_what_is_anothers(tmp_path: Path) -> None:
    async with kept(tmp_path / "r.sqlite") as (responses, _):
        responses.put("ada", one("r1"))
        responses.put("eve", Stored("r1", None, b"mine now", b"[]"))
        for ask in (responses.get, responses.history, responses.delete):
            with pytest.raises(NotFound):
                await ask("eve", "r1")
        assert (await responses.get("ada", "r1")).body == one("r1").body
        await responses.delete("ada", "r1")
        with pytest.raises(NotFound, match="no response 'r1'"):
            await responses.get("ada", "r1")


async def test_a_conversation_from_its_first_turn_on(tmp_path: Path) -> None:
    async with kept(tmp_path / "r.sqlite") as (responses, _):
        for id, previous in (("r1", None), ("r2", "r1"), ("r3", "r2")):
            responses.put("ada", one(id, previous))
        assert [s.id for s in await responses.history("ada", "r3")] == ["r1", "r2", "r3"]
        await responses.delete("ada", "r1")
        with pytest.raises(NotFound, match="no response 'r1', which 'r3' continues") as caught:
            await responses.history("ada", "r3")
    assert caught.value.code == "previous_response_not_found"


async def test_a_conversation_that_bites_its_tail_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "MAX_TURNS", 20)
    async with kept(tmp_path / "r.sqlite") as (responses, _):
        responses.put("ada", one("r1", "r2"))
        responses.put("ada", one("r2", "r1"))
        with pytest.raises(NotFound, match="more than are read back"):
            await responses.history("ada", "r1")


async def test_time_and_room_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "PRUNE_EVERY", 1)
    async with kept(tmp_path / "r.sqlite", keep=60, limit=2_500) as (responses, wall):
        responses.put("ada", one("old", size=1_000))
        await responses.get("ada", "old")
        wall.now += 61
        with pytest.raises(NotFound):
            await responses.get("ada", "old")
        for i in range(4):
            responses.put("ada", one(f"r{i}", size=1_000))
            await responses.get("ada", f"r{i}")
            wall.now += 1
        for i in (0, 1):
            with pytest.raises(NotFound):
                await responses.get("ada", f"r{i}")
        assert (await responses.get("ada", "r2")).id == "r2"


async def test_nothing_is_kept_where_that_is_off() -> None:
    async with kept(None) as (responses, _):
        responses.put("ada", one("r1"))
        with pytest.raises(NotFound) as caught:
            await responses.get("ada", "r1")
    assert caught.value.hint is not None
    assert "responses.enabled" in caught.value.hint


async def test_the_queue_is_bounded_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "MAX_PENDING", 100)
    async with kept(tmp_path / "r.sqlite") as (responses, _):
        go = Event()
        assert responses._db is not None
        responses._db.submit(lambda _: go.wait())
        responses.put("ada", one("r1", size=500))
        with pytest.raises(Overloaded):
            responses.put("ada", one("r2"))
        go.set()
        assert (await responses.get("ada", "r1")).id == "r1"
        responses.put("ada", one("r2"))
        await responses.get("ada", "r2")
    with pytest.raises(Unavailable):
        await responses.get("ada", "r1")


async def test_a_file_that_is_no_database_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    path.write_bytes(b"no database at all, but long enough to look at" * 30)
    async with kept(path) as (responses, _):
        with pytest.raises(Unavailable, match="does not answer"):
            await responses.get("ada", "r1")
