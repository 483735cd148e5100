"""The `openai` package's files against a real server: put, list, read, delete, limits, owners."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from llm_runner_router.config import Files as Settings
from llm_runner_router.config import Server
from llm_runner_router.errors import NotFound
from llm_runner_router.policy import files as kept
from llm_runner_router.policy.files import Files
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway


@asynccontextmanager
async def client(folder: Path | None) -> AsyncIterator[tuple[AsyncOpenAI, FakeGateway]]:
    gateway = FakeGateway()
    gateway.files = Files(folder, Settings(max_size=1 << 20, limit=2 << 20, max_count=20))
    try:
        async with (
            serve(gateway, Server(port=0, drain=0)) as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as api,
        ):
            yield api, gateway
    finally:
        await gateway.files.aclose()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("index."))


async def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    content = bytes(range(256)) * 3000  # over one piece of the disk's and of the answer's
    async with client(tmp_path) as (api, _):
        made = await api.files.create(file=("lines of ä.jsonl", content), purpose="batch")
        assert (made.bytes, made.filename, made.purpose) == (768000, "lines of ä.jsonl", "batch")
        assert made.expires_at == made.created_at + 30 * 86_400
        assert await api.files.retrieve(made.id) == made
        assert (await api.files.content(made.id)).read() == content
        assert stat.S_IMODE((tmp_path / made.id).stat().st_mode) == 0o600
        assert (await api.files.delete(made.id)).deleted
        for ask in (api.files.retrieve, api.files.content, api.files.delete):
            with pytest.raises(openai.NotFoundError) as caught:
                await ask(made.id)
            assert caught.value.code == "file_not_found"
    assert left(tmp_path) == []


async def test_files_outlive_the_server(tmp_path: Path) -> None:
    async with client(tmp_path) as (api, _):
        made = await api.files.create(file=("a", b"alpha"), purpose="user_data")
    async with client(tmp_path) as (api, _):
        assert (await api.files.content(made.id)).read() == b"alpha"


async def test_lists_have_pages_purposes_and_an_order(tmp_path: Path) -> None:
    async with client(tmp_path) as (api, _):
        create: Any = api.files.create
        ids = [
            (await create(file=(f"{i}", b"x"), purpose=purpose)).id
            for i, purpose in enumerate(("batch", "user_data", "batch"))
        ]
        assert [f.id async for f in api.files.list(limit=2)] == ids[::-1]
        assert [f.id async for f in api.files.list(order="asc", limit=1)] == ids
        assert [f.id async for f in api.files.list(purpose="batch")] == [ids[2], ids[0]]
        several: Any = ({"limit": 0}, {"limit": 10_001}, {"order": "up"})
        for wrong in several:
            with pytest.raises(openai.BadRequestError):
                await api.files.list(**wrong)
        with pytest.raises(openai.NotFoundError):
            await api.files.list(after="file-none")


async def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    async with client(tmp_path) as (api, _):
        create: Any = api.files.create
        with pytest.raises(openai.BadRequestError, match="purpose"):
            await create(file=("a", b"x"), purpose="fine-tune")
        with pytest.raises(openai.APIStatusError, match=r"files\.max_size") as caught:
            await create(file=("a", b"x" * (1 << 20) + b"x"), purpose="batch")
        assert caught.value.status_code == 413
        with pytest.raises(openai.BadRequestError, match=r"expires_after\.seconds"):
            await create(
                file=("a", b"x"),
                purpose="batch",
                expires_after={"anchor": "created_at", "seconds": 5},
            )
        raw = httpx2.AsyncClient(headers={"authorization": f"Bearer {KEY}"})
        async with raw:
            url = f"{api.base_url}files"
            answer = await raw.post(url, json={"purpose": "batch"})
            assert (answer.status_code, "form-data" in answer.text) == (415, True)
            answer = await raw.post(url, data={"purpose": "batch"}, files={"other": b"x"})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
            twice = [("file", ("a", b"x")), ("file", ("b", b"y"))]
            answer = await raw.post(url, data={"purpose": "batch"}, files=twice)
            assert (answer.status_code, "two files" in answer.text) == (400, True)
    assert left(tmp_path) == []


async def test_a_time_of_its_own(tmp_path: Path) -> None:
    async with client(tmp_path) as (api, _):
        made = await api.files.create(
            file=("a", b"x"),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
    assert made.expires_at == made.created_at + 3600


async def test_the_store_is_bounded(tmp_path: Path) -> None:
    async with client(tmp_path) as (api, _):
        first = await api.files.create(file=("a", b"x" * (1 << 20)), purpose="batch")
        await api.files.create(file=("b", b"x" * (1 << 20)), purpose="batch")
        with pytest.raises(openai.APIStatusError) as caught:
            await api.files.create(file=("c", b"x"), purpose="batch")
        assert (caught.value.status_code, caught.value.code) == (413, "storage_full")
        await api.files.delete(first.id)
        await api.files.create(file=("c", b"x"), purpose="batch")
    assert len(left(tmp_path)) == 2


async def test_no_files_are_kept() -> None:
    async with client(None) as (api, _):
        with pytest.raises(openai.BadRequestError, match=r"files\.enabled"):
            await api.files.create(file=("a", b"x"), purpose="batch")
        with pytest.raises(openai.BadRequestError, match=r"files\.enabled"):
            await api.files.list()


async def test_nobody_finds_what_is_anothers(tmp_path: Path) -> None:
    async with client(tmp_path) as (api, gateway):
        made = await api.files.create(file=("a", b"x"), purpose="batch")
        for ask in (gateway.files.get, gateway.files.open, gateway.files.delete):
            with pytest.raises(NotFound):
                await ask("eve", made.id)
        assert await gateway.files.page("eve") == ([], False)
        assert (await api.files.retrieve(made.id)).id == made.id


async def test_old_files_go_and_so_does_what_a_crash_left(tmp_path: Path) -> None:
    now = 1_000_000.0
    files = Files(tmp_path, Settings(keep=60), lambda: now)

    async def put(name: str) -> str:
        draft = files.draft()
        try:
            await draft.write(b"x")
            return (await files.add("ada", draft, name, "batch")).id
        finally:
            draft.close()

    old = await put("old")
    now += 61
    with pytest.raises(NotFound):
        await files.get("ada", old)
    await files.aclose()
    now = time.time()
    for name, age in (("file-orphan", 1), (".draft-orphan", 1), (".draft-of-another", 0)):
        (tmp_path / name).write_bytes(b"x")
        made = now - age * (kept.ORPHAN_SECONDS + 1)
        os.utime(tmp_path / name, (made, made))
    files = Files(tmp_path, Settings(keep=60), lambda: now)
    new = await put("new")
    await files.aclose()
    assert left(tmp_path) == [".draft-of-another", new], "what is being written stays"
