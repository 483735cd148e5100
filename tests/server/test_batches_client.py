"""The `openai` package's batches against a real server: answers, errors, ends, restarts, limits."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Batch

from llm_runner_router import config
from llm_runner_router.app import App
from llm_runner_router.config import Batches as Settings
from llm_runner_router.config import Server
from llm_runner_router.errors import NotFound, Overloaded, RateLimited, StreamBroken, Unavailable
from llm_runner_router.home import find
from llm_runner_router.models.locks import FileLock
from llm_runner_router.policy import batches as kept
from llm_runner_router.policy.batches import Batches, Journal
from llm_runner_router.policy.files import Files
from llm_runner_router.server import serve
from llm_runner_router.surfaces.batch_run import BatchRunner, Wish
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeEmbedder, FakeTarget, deltas_of
from llm_runner_router.types import Call, Request, Usage

CHAT = "/v1/chat/completions"
LONGEST = 4000


class Wall:
    """A clock that is set."""

    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Place:
    """A server with one data folder, and a client of it."""

    def __init__(self, folder: Path, script: Any, wall: Wall, settings: Settings) -> None:
        self.folder = folder
        self.target = FakeTarget("m", script)
        self.gateway = FakeGateway({"m": self.target}, {"e": FakeEmbedder("e")})
        self.gateway.files = Files(folder / "files", config.Files(), wall)
        self.runner = self.another(settings, wall)
        self.gateway.batches = self.runner
        self.api: AsyncOpenAI

    def another(self, settings: Settings, wall: Wall) -> BatchRunner:
        store = Batches(self.folder / "batches", FileLock(self.folder / "lock"), wall)
        return BatchRunner(
            self.gateway,
            store,
            settings,
            longest=LONGEST,
            wall=wall,
            rng=random.Random(1),
            pause=0.0,
        )

    async def begin(self, text: str | Sequence[str], endpoint: Any = CHAT, **more: Any) -> Batch:
        content = text if isinstance(text, str) else "\n".join(text) + "\n"
        made = await self.api.files.create(file=("in.jsonl", content.encode()), purpose="batch")
        return await self.api.batches.create(
            input_file_id=made.id, endpoint=endpoint, completion_window="24h", **more
        )

    async def until(self, batch: Batch, true: Callable[[Batch], bool]) -> Batch:
        async with asyncio.timeout(30):
            while not true(batch):
                await asyncio.sleep(0)
                batch = await self.api.batches.retrieve(batch.id)
        return batch

    async def end(self, batch: Batch) -> Batch:
        return await self.until(batch, lambda b: b.status in kept.ENDED)

    async def lines(self, id: str | None) -> dict[str, Any]:
        """What stands in a file, by `custom_id`; each must be there once."""
        if id is None:
            return {}
        text = (await self.api.files.content(id)).read().decode()
        found = [json.loads(line) for line in text.splitlines()]
        assert max(Counter(line["custom_id"] for line in found).values()) == 1
        return {line["custom_id"]: line for line in found}


@asynccontextmanager
async def place(
    folder: Path, script: Any = None, *, wall: Wall | None = None, **settings: Any
) -> AsyncIterator[Place]:
    script = script or deltas_of("Good morning.", usage=Usage(7, 3))
    made = Place(folder, script, wall or Wall(), Settings(**settings))
    try:
        await made.runner.start()
        async with (
            serve(made.gateway, Server(port=0, drain=0)) as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as made.api,
        ):
            yield made
    finally:
        await made.runner.aclose()
        await made.gateway.files.aclose()


def line(id: str, url: str = CHAT, **body: Any) -> str:
    talk = {"model": "m", "messages": [{"role": "user", "content": id}]}
    return json.dumps({"custom_id": id, "method": "POST", "url": url, "body": {**talk, **body}})


def said(request: Request) -> str:
    content = request.messages[-1].content
    assert isinstance(content, str)
    return content


async def test_a_whole_batch(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        begun = await p.begin([line(f"r{i}") for i in range(7)], metadata={"for": "me"})
        assert (begun.status, begun.metadata) == ("validating", {"for": "me"})
        assert begun.expires_at == begun.created_at + 86_400
        done = await p.end(begun)
        assert (done.status, done.error_file_id, done.errors) == ("completed", None, None)
        assert done.completed_at
        assert done.request_counts is not None
        assert done.request_counts.to_dict() == {"total": 7, "completed": 7, "failed": 0}
        found = await p.lines(done.output_file_id)
        assert set(found) == {f"r{i}" for i in range(7)}
        one = found["r3"]
        assert (one["error"], one["response"]["status_code"]) == (None, 200)
        body = one["response"]["body"]
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["message"]["content"] == "Good morning."
        assert body["usage"]["total_tokens"] == 10
        file = await p.api.files.retrieve(done.output_file_id or "")
        assert (file.purpose, file.filename) == ("batch_output", f"{done.id}_output.jsonl")
        assert {call.caller for call in p.target.calls} == {"test"}
        assert all(call.low for call in p.target.calls), "those who wait go first"
        assert p.target.most_running <= 4
        assert not (tmp_path / "batches" / done.id).exists()


@pytest.mark.parametrize(
    ("url", "body", "object"),
    [
        ("/v1/completions", {"prompt": ["a", "b"]}, "text_completion"),
        ("/v1/responses", {"input": "hello"}, "response"),
        ("/v1/embeddings", {"model": "e", "input": ["a", "b"]}, "list"),
    ],
)
async def test_every_endpoint(tmp_path: Path, url: str, body: Any, object: str) -> None:
    asked = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": "m", **body}}
    async with place(tmp_path) as p:
        done = await p.end(await p.begin([json.dumps(asked)], url))
        found = await p.lines(done.output_file_id)
    assert found["a"]["response"]["body"]["object"] == object


async def test_errors_have_lines_of_their_own(tmp_path: Path) -> None:
    def fails(request: Request, call: Call) -> Any:
        if said(request) == "broken":
            raise ValueError("a secret of ours")
        return deltas_of("fine")

    lines = [
        line("good"),
        line("unknown", model="nobody"),
        line("stream", stream=True),
        line("wrong", messages=[]),
        line("broken"),
    ]
    async with place(tmp_path, fails) as p:
        done = await p.end(await p.begin(lines))
        assert done.status == "completed"
        assert done.request_counts is not None
        assert done.request_counts.to_dict() == {"total": 5, "completed": 1, "failed": 4}
        assert set(await p.lines(done.output_file_id)) == {"good"}
        errors = await p.lines(done.error_file_id)
    told = {
        id: (one["response"]["status_code"], one["response"]["body"]["error"]["code"])
        for id, one in errors.items()
    }
    assert told == {
        "unknown": (404, "model_not_found"),
        "stream": (400, None),
        "wrong": (400, "invalid_value"),
        "broken": (500, None),
    }
    assert "secret" not in json.dumps(errors["broken"])


async def test_what_cannot_be_a_batch_is_told_by_line(tmp_path: Path) -> None:
    lines = [
        line("a"),
        "{",
        line("a"),
        "",
        line("b", "/v1/embeddings"),
        json.dumps({"custom_id": "c", "method": "GET", "url": CHAT, "body": {}}),
        json.dumps({"custom_id": "d", "method": "POST", "url": CHAT, "body": 3}),
        line(""),
        line("e", user="x" * LONGEST),
    ]
    async with place(tmp_path) as p:
        failed = await p.end(await p.begin(lines))
        assert failed.status == "failed"
        assert failed.failed_at
        assert failed.errors is not None
        told = [(problem.line, problem.code) for problem in failed.errors.data or ()]
        assert told == [
            (2, "invalid_json_line"),
            (3, "duplicate_custom_id"),
            (5, "mismatched_endpoint"),
            (6, "invalid_request"),
            (7, "invalid_request"),
            (8, "invalid_custom_id"),
            (9, "line_too_long"),
        ]
        assert p.target.opened == 0
        empty = await p.end(await p.begin("\n\n"))
        assert empty.errors is not None
        assert [problem.code for problem in empty.errors.data or ()] == ["empty_file"]


async def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    monkeypatch.setattr(kept, "MAX_PENDING", 1)
    async with place(tmp_path, [gate, *deltas_of("x")], max_lines=2) as p:
        many = await p.end(await p.begin([line(str(i)) for i in range(3)]))
        assert many.errors is not None
        assert [problem.code for problem in many.errors.data or ()] == ["too_many_tasks"]
        running = await p.begin([line("a")])
        with pytest.raises(openai.InternalServerError, match="not done yet"):
            await p.begin([line("b")])
        folders = [path.name for path in (tmp_path / "batches").glob("batch_*")]
        assert folders == [running.id], "what was refused leaves nothing"
        gate.set()
        await p.end(running)
    async with place(tmp_path, enabled=False) as p:
        with pytest.raises(openai.BadRequestError, match=r"batches\.enabled"):
            await p.begin([line("a")])


async def test_wishes_that_are_refused(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        data = await p.api.files.create(file=("a", b"x"), purpose="user_data")
        create: Any = p.api.batches.create
        good = {"input_file_id": data.id, "endpoint": CHAT, "completion_window": "24h"}
        for change, param in (
            ({}, "input_file_id"),
            ({"endpoint": "/v1/images/edits"}, "endpoint"),
            ({"completion_window": "31d"}, "completion_window"),
            ({"completion_window": "soon"}, "completion_window"),
            ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
            (
                {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
                "output_expires_after.seconds",
            ),
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                await create(**{**good, **change})
            assert caught.value.param == param
        with pytest.raises(openai.NotFoundError):
            await create(**{**good, "input_file_id": "file-none"})


async def test_lists_and_owners(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        begun = [await p.end(await p.begin([line("a")])) for _ in range(3)]
        ids = [batch.id for batch in begun]
        assert [b.id async for b in p.api.batches.list(limit=2)] == ids[::-1]
        assert await p.runner.page("eve", None, 20) == ([], False)
        for ask in (p.runner.get, p.runner.cancel):
            with pytest.raises(NotFound):
                await ask("eve", ids[0])
        with pytest.raises(NotFound):
            await p.runner.create("eve", Wish(begun[0].input_file_id, CHAT, "24h", 86_400))
        with pytest.raises(openai.NotFoundError):
            await p.api.batches.retrieve("batch_none")


async def test_cancel_keeps_what_is_done(tmp_path: Path) -> None:
    never = asyncio.Event()

    def some(request: Request, call: Call) -> Any:
        return deltas_of("done") if said(request) < "r3" else [never]

    async with place(tmp_path, some, parallel=1) as p:
        begun = await p.begin([line(f"r{i}") for i in range(6)])
        await p.until(begun, lambda _: p.target.opened == 4)
        cancelled = await p.api.batches.cancel(begun.id)
        assert cancelled.status in ("cancelling", "finalizing", "cancelled")
        done = await p.end(cancelled)
        assert (done.status, done.error_file_id) == ("cancelled", None)
        assert done.cancelling_at
        assert done.cancelled_at
        assert set(await p.lines(done.output_file_id)) == {"r0", "r1", "r2"}
        assert p.target.running == 0
        with pytest.raises(openai.BadRequestError, match="cancelled already"):
            await p.api.batches.cancel(begun.id)


async def test_the_input_may_be_deleted_meanwhile(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with place(tmp_path, lambda *_: [gate, *deltas_of("x")], parallel=1) as p:
        begun = await p.begin([line(f"r{i}") for i in range(3)])
        await p.until(begun, lambda _: p.target.opened == 1)
        await p.api.files.delete(begun.input_file_id)
        gate.set()
        done = await p.end(begun)
        assert len(await p.lines(done.output_file_id)) == 3


async def stopped(folder: Path, wall: Wall, **more: Any) -> Batch:
    """A batch of six whose process ended when two were answered and one had failed."""
    never = asyncio.Event()

    def some(request: Request, call: Call) -> Any:
        return deltas_of("first") if said(request) < "r3" else [never]

    async with place(folder, some, wall=wall, parallel=1) as p:
        lines = [line(f"r{i}", stream=i == 1) for i in range(6)]
        begun = await p.begin(lines, **more)
        await p.until(begun, lambda _: p.target.opened == 3)
    return begun


async def test_the_next_process_goes_on_and_answers_each_once(tmp_path: Path) -> None:
    wall = Wall()
    begun = await stopped(tmp_path, wall)
    journal = tmp_path / "batches" / begun.id / "answers.jsonl"
    whole = journal.read_bytes()
    assert whole.count(b"\n") == 2
    journal.write_bytes(whole + b'{"id": "batch_req_torn", "custom_id": "r3", "resp')
    async with place(tmp_path, deltas_of("second"), wall=wall) as p:
        done = await p.end(await p.api.batches.retrieve(begun.id))
        assert done.status == "completed"
        assert done.request_counts is not None
        assert done.request_counts.to_dict() == {"total": 6, "completed": 5, "failed": 1}
        found = await p.lines(done.output_file_id)
        assert set(await p.lines(done.error_file_id)) == {"r1"}
        assert sorted(said(request) for request in p.target.requests) == ["r3", "r4", "r5"]
    words = {
        id: one["response"]["body"]["choices"][0]["message"]["content"] for id, one in found.items()
    }
    assert words == {"r0": "first", "r2": "first", **dict.fromkeys(("r3", "r4", "r5"), "second")}


async def test_what_is_too_late_expires(tmp_path: Path) -> None:
    wall = Wall()
    begun = await stopped(tmp_path, wall)
    wall.now += 86_400
    async with place(tmp_path, wall=wall) as p:
        done = await p.end(await p.api.batches.retrieve(begun.id))
        assert done.status == "expired"
        assert done.expired_at == int(wall.now)
        assert set(await p.lines(done.output_file_id)) == {"r0", "r2"}
        errors = await p.lines(done.error_file_id)
        assert p.target.opened == 0
    assert set(errors) == {"r1", "r3", "r4", "r5"}
    assert errors["r4"]["response"] is None
    assert errors["r4"]["error"]["code"] == "batch_expired"


async def test_a_crash_while_the_files_are_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = Wall()

    async with place(tmp_path, wall=wall) as p:
        adopt = p.gateway.files.adopt

        async def dies(*args: Any) -> Any:
            await adopt(*args)
            raise OSError("power failure")

        monkeypatch.setattr(p.gateway.files, "adopt", dies)
        begun = await p.begin([line("a")])
        async with asyncio.timeout(30):
            await asyncio.wait([job.task for job in p.runner._jobs.values()])
        rests = await p.api.batches.retrieve(begun.id)
        assert (rests.status, rests.output_file_id) == ("finalizing", None)
        assert len([f async for f in p.api.files.list(purpose="batch_output")]) == 1
    async with place(tmp_path, wall=wall) as p:
        done = await p.end(await p.api.batches.retrieve(begun.id))
        assert done.status == "completed"
        assert set(await p.lines(done.output_file_id)) == {"a"}
        assert len([f async for f in p.api.files.list(purpose="batch_output")]) == 1
        assert p.target.opened == 0


async def test_what_may_help_is_tried_again(tmp_path: Path) -> None:
    tries: Counter[str] = Counter()

    def fails(request: Request, call: Call) -> Any:
        who = said(request)
        tries[who] += 1
        if who == "limited" and tries[who] < 9:
            return [RateLimited("slow down")]
        if who == "busy" and tries[who] < 9:
            return [Overloaded("others first")]
        if who == "unlucky" and tries[who] < 3:
            return [StreamBroken("cut off")]
        return [StreamBroken("cut off")] if who == "lost" else deltas_of("fine")

    async with place(tmp_path, fails, attempts=3) as p:
        done = await p.end(
            await p.begin([line(id) for id in ("limited", "busy", "unlucky", "lost")])
        )
        assert set(await p.lines(done.output_file_id)) == {"limited", "busy", "unlucky"}
        errors = await p.lines(done.error_file_id)
    assert errors["lost"]["response"]["status_code"] == 502
    assert tries == {"limited": 9, "busy": 9, "unlucky": 3, "lost": 3}


async def test_one_process_runs_the_batches_of_a_folder(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        batch = await p.end(await p.begin([line("a")]))
        second = p.another(Settings(), Wall())
        try:
            await second.start()  # says so in the log, and serves the rest
            with pytest.raises(Unavailable, match="another server"):
                await second.create("test", Wish(batch.input_file_id, CHAT, "24h", 86_400))
        finally:
            await second.aclose()


async def test_a_full_disk_fails_the_batch_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Journal.add

    def full(journal: Journal, id: str, line: bytes, *, ok: bool) -> None:
        if journal.completed == 2:
            raise OSError(errno.ENOSPC, "no space left on device")
        add(journal, id, line, ok=ok)

    monkeypatch.setattr(Journal, "add", full)
    async with place(tmp_path, parallel=2) as p:
        done = await p.end(await p.begin([line(f"r{i}") for i in range(5)]))
        assert done.status == "failed"
        assert done.errors is not None
        assert [problem.code for problem in done.errors.data or ()] == ["server_error"]
        assert len(await p.lines(done.output_file_id)) == 2


def test_half_a_line_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.add("a", b'{"custom_id":"a"}', ok=True)
    write = os.write
    calls = []

    def short(handle: int, data: Any) -> int:
        calls.append(handle)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "no space left on device")
        return write(handle, bytes(data)[:5])

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(OSError, match="no space"):
        journal.add("b", b'{"custom_id":"b"}', ok=True)
    monkeypatch.undo()
    journal.add("c", b'{"custom_id":"c"}', ok=True)
    assert journal.answers.read_bytes() == b'{"custom_id":"a"}\n{"custom_id":"c"}\n'
    assert (journal.completed, journal.failed, journal.done) == (2, 0, {"a", "c"})
    journal.close()
    again = Journal(tmp_path)
    assert (again.completed, again.done) == (2, {"a", "c"})
    again.close()


async def test_a_server_goes_on_with_batches_and_a_program_does_not() -> None:
    home = find(os.environ)
    folder = home.batches / "batch_left"
    folder.mkdir(parents=True)
    (folder / "input.jsonl").write_text(line("a", model="nobody"))
    now = int(time.time())
    left = kept.Batch(
        id="batch_left",
        endpoint=CHAT,
        input_file_id="file-gone",
        completion_window="24h",
        created_at=now,
        expires_at=now + 86_400,
    )
    store = Batches(home.batches, FileLock(home.batches / "lock"))
    await store.add(kept.Entry(left, "ada"))
    await store.aclose()
    empty = config.Config(zoo=False, engine=config.Engine(spare=False))
    for local_files, status in ((True, "validating"), (False, "completed")):
        app = App(empty, local_files=local_files)
        await app.start()
        try:
            tasks = [job.task for job in app.batches._jobs.values()]
            if tasks:
                await asyncio.wait(tasks, timeout=30)
            batch = await app.batches.get("ada", "batch_left")
            assert batch.status == status
        finally:
            await app.close()
    assert (batch.request_counts.failed, batch.output_file_id) == (1, None)
