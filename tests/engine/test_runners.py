"""Runner processes through the whole local path: real engine, real weights, real HTTP.

One residency serves the common cases; tests that break something make their own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import struct
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import psutil
import pytest

from llm_runner_router.config import Engine, ModelGroup
from llm_runner_router.deltas import collect
from llm_runner_router.engine import residency as residency_module
from llm_runner_router.engine.devices import Machine
from llm_runner_router.engine.residency import Residency
from llm_runner_router.engine.worker import Report, Worker
from llm_runner_router.errors import (
    DeadlineExceeded,
    LoadFailed,
    Overloaded,
    RunnerCrashed,
    Unavailable,
)
from llm_runner_router.models.info import LocalModel
from llm_runner_router.models.resolve import ZOO, resolve
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.refs import parse
from llm_runner_router.types import Call

from .endless import endless, go_on
from .locally import CALL, Engines, chat, check_memory, engines, until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


@pytest.fixture
def math() -> LocalModel:
    return resolve(parse("zoo:tiny-math"))


@pytest.fixture
def text() -> LocalModel:
    return resolve(parse("zoo:tiny-text"))


async def test_a_model_answers_and_the_status_tells_of_it(math: LocalModel) -> None:
    async with engines() as e:
        answer = await e.answer(math, chat())
        assert answer.text
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        assert answer.origin is not None
        assert (answer.origin.target, answer.origin.local) == ("zoo:tiny-math", True)
        (row,) = e.residency.status()
        assert (row.name, row.purpose, row.state) == ("zoo:tiny-math", "chat", "ready")
        assert row.pid is not None
        assert psutil.pid_exists(row.pid)
        check_memory(row)
        assert row.tokens_per_second is not None
        assert row.tokens_per_second > 0
        assert (row.served, row.queued, row.failures) == (1, 0, 0)
        assert row.expires_in is not None
        assert e.residency.log("zoo:tiny-math"), "the engine's log is kept"
        pid = row.pid
    assert not psutil.pid_exists(pid), "closing ends the process"


async def test_racing_requests_load_once(math: LocalModel) -> None:
    async with engines(max_queue=32) as e:
        answers = await asyncio.gather(*(e.answer(math, chat()) for _ in range(20)))
        assert len({answer.text for answer in answers}) == 1
        (row,) = e.residency.status()
        assert row.served == 20


async def test_a_spare_that_died_fails_nobody(
    math: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loads = Worker.load, []

    async def deadly(worker: Worker, *order: Any) -> Report:
        """The first process dies after it was taken and before it reads its order."""
        loads.append(worker.pid)
        if len(loads) == 1:
            os.kill(worker.pid, signal.SIGKILL)
        return await load(worker, *order)

    monkeypatch.setattr(Worker, "load", deadly)
    async with engines(spare=True, wait_policy="passive") as e:
        await until(lambda: e.residency.spare_pid is not None)
        assert (await e.answer(math, chat())).text
        (row,) = e.residency.status()
        assert (row.from_spare, row.failures) == (False, 0)
    assert len(loads) == 2


async def test_only_whole_answers_count_as_served(math: LocalModel) -> None:
    async with engines() as e:
        await e.residency.load(math)
        async with e.target(math).open(chat(), CALL) as deltas:
            await anext(deltas)
        assert [row.served for row in e.residency.status()] == [0]
        await e.answer(math, chat())
        assert [row.served for row in e.residency.status()] == [1]


async def test_a_look_that_fails_does_not_end_the_looking(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[int] = []

    def review(residency: Residency) -> None:
        looks.append(len(looks))
        if len(looks) < 3:
            raise OSError("no /proc")

    monkeypatch.setattr(residency_module, "SAMPLE", 0.001)
    monkeypatch.setattr(Residency, "_review", review)
    async with engines():
        await until(lambda: len(looks) > 5)
    assert caplog.text.count("cannot see how busy") == 1


async def test_the_spare_is_used_and_replaced(math: LocalModel) -> None:
    async with engines(spare=True, wait_policy="passive") as e:
        await e.residency.load(math)
        (row,) = e.residency.status()
        assert row.from_spare
        await until(lambda: e.residency.spare_pid is not None)
        assert e.residency.spare_pid != row.pid
        spare = e.residency.spare_pid or 0
    assert not psutil.pid_exists(spare)


async def test_the_budget_makes_the_idle_one_go(math: LocalModel, text: LocalModel) -> None:
    async with engines() as e:
        await e.residency.load(math)
        need = e.residency.status()[0].reserved
    async with engines(memory=need + need // 2) as e:
        await e.answer(math, chat())
        first = e.pid(math)
        await e.answer(text, chat())
        assert [row.name for row in e.residency.status()] == ["zoo:tiny-text"]
        assert not psutil.pid_exists(first)
        await e.answer(math, chat())
        assert [row.name for row in e.residency.status()] == ["zoo:tiny-math"]
    async with engines(memory=need // 2, slots=1) as e:
        with pytest.raises(LoadFailed, match="the budget is") as caught:
            await e.answer(math, chat())
        assert "engine.memory" in (caught.value.hint or "")
        assert caught.value.target == "zoo:tiny-math"


async def test_models_of_a_group_exclude_each_other(math: LocalModel, text: LocalModel) -> None:
    async with engines(groups={"one": ModelGroup(("tiny-math", "zoo:tiny-text"))}) as e:
        await e.answer(math, chat())
        await e.answer(text, chat())
        (row,) = e.residency.status()
        assert row.name == "zoo:tiny-text"
        assert "zoo:tiny-math" in row.made_room[0]


async def test_a_full_queue_says_when_to_come_back(math: LocalModel) -> None:
    async with engines(slots=1, max_queue=1) as e, e.residency.lease(math, "chat"):
        waiting = asyncio.create_task(e.answer(math, chat()))
        await until(lambda: any(row.queued for row in e.residency.status()))
        with pytest.raises(Overloaded) as caught:
            await e.answer(math, chat())
        assert caught.value.retry_after is not None
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_waiting_ends_with_the_deadline(math: LocalModel) -> None:
    async with engines(slots=1) as e, e.residency.lease(math, "chat"):
        late = Call(id="late", started=0.0, deadline=asyncio.get_running_loop().time() + 0.05)
        with pytest.raises(DeadlineExceeded):
            await e.answer(math, chat(), late)
        assert not any(row.queued for row in e.residency.status())


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_frees_the_slot(tmp_path: Path, stream: bool) -> None:
    """The next request on the only slot would wait for thousands of tokens otherwise."""
    model = endless(tmp_path, context=16384)
    async with engines(slots=1) as e:
        request = go_on(16000)
        if stream:
            async with e.target(model).open(request, CALL) as deltas:
                await anext(deltas)
        else:
            asking = asyncio.create_task(e.answer(model, request))
            await until(lambda: any(row.active for row in e.residency.status()))
            await asyncio.sleep(0.2)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        async with asyncio.timeout(5):
            answer = await e.answer(model, go_on(2))
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 2


async def test_a_crash_in_a_stream_is_told_and_the_next_request_works(tmp_path: Path) -> None:
    model = endless(tmp_path, context=8192)
    async with engines() as e:
        async with e.target(model).open(go_on(8000), CALL) as deltas:
            await anext(deltas)
            os.kill(e.pid(model), signal.SIGKILL)
            with pytest.raises(RunnerCrashed, match="signal 9") as caught:
                await collect(deltas)
        assert caught.value.target == model.name
        assert caught.value.retryable
        answer = await e.answer(model, go_on(4))
        assert answer.usage is not None
        (row,) = e.residency.status()
        assert row.failures == 1
        assert "signal 9" in row.last_error


async def test_a_crash_before_the_first_delta_is_repeated_unseen(math: LocalModel) -> None:
    async with engines() as e:
        await e.residency.load(math)
        old = e.pid(math)
        os.kill(old, signal.SIGSTOP)  # it takes the connection and never answers
        asking = asyncio.create_task(e.answer(math, chat()))
        await until(lambda: any(row.active for row in e.residency.status()))
        await asyncio.sleep(0.05)
        os.kill(old, signal.SIGKILL)
        assert (await asking).text
        assert e.pid(math) != old


async def test_a_model_that_keeps_crashing_rests(math: LocalModel) -> None:
    async with engines() as e:
        for _ in range(3):
            await e.residency.load(math)
            pid = e.pid(math)
            os.kill(pid, signal.SIGKILL)
            await e.gone(pid)
        with pytest.raises(Unavailable, match="3 times") as caught:
            await e.residency.load(math)
        assert caught.value.retry_after is not None
        (row,) = e.residency.status()
        assert row.state == "parked"


async def test_a_failed_load_carries_the_engines_reason(math: LocalModel, tmp_path: Path) -> None:
    """A sound header that the engine refuses: an architecture nobody knows."""
    content = (ZOO / "tiny-math.gguf").read_bytes()
    old = struct.pack("<Q", 5) + b"llama"
    assert old in content
    path = tmp_path / "odd.gguf"
    path.write_bytes(content.replace(old, struct.pack("<Q", 5) + b"lemma", 1))
    async with engines() as e:
        with pytest.raises(LoadFailed, match="unknown model architecture: 'lemma'") as caught:
            await e.answer(resolve(parse(f"file:{path}")), chat())
        assert caught.value.hint
        assert str(path) in caught.value.message


async def test_a_file_that_vanished_after_it_was_read(math: LocalModel, tmp_path: Path) -> None:
    path = tmp_path / "gone.gguf"
    shutil.copy(math.path, path)
    model = resolve(parse(f"file:{path}"))
    path.unlink()
    async with engines() as e:
        with pytest.raises(LoadFailed, match=r"No such file|failed to open"):
            await e.answer(model, chat())


async def test_stopping_by_name(math: LocalModel) -> None:
    async with engines() as e:
        assert not await e.residency.stop("zoo:tiny-math")
        await e.residency.load(math)
        pid = e.pid(math)
        assert await e.residency.stop("zoo:tiny-math")
        assert not psutil.pid_exists(pid)
        assert e.residency.status() == ()
        await e.answer(math, chat())


async def test_a_pinned_model_says_so(math: LocalModel) -> None:
    async with engines(pin=("zoo:tiny-math",), keep_alive=0.0) as e:
        await e.residency.load(math)
        (row,) = e.residency.status()
        assert row.pinned
        assert row.expires_in is None


async def test_a_changed_load_swaps_the_runner_without_a_failed_request(tmp_path: Path) -> None:
    """Others take the cores for a while: the model moves to a runner with another plan."""
    model = endless(tmp_path, context=8192)
    large = msgspec.structs.replace(model, info=msgspec.structs.replace(model.info, bytes=1 << 26))
    busy, skipped = 0.0, 0.0

    def machine(_: float) -> Machine:
        return Machine(2, 2, None, 1 << 34, 1 << 33, busy)

    async with HttpClient() as client:
        settings = Engine(spare=False)
        residency = Residency(settings, clock=lambda: monotonic() + skipped, machine=machine)
        async with residency:
            e = Engines(residency, client)
            await e.residency.load(large)
            (before,) = e.residency.status()
            assert (before.threads, before.wait_policy) == (2, "spin")
            busy = 2.0
            residency._review()
            assert len(e.residency.status()) == 1, "not at the first look"
            skipped = 10.0
            residency._review()
            answers = 0
            while psutil.pid_exists(before.pid or 0):
                assert (await e.answer(large, go_on(2))).usage
                answers += 1
            assert answers > 0
            await e.gone(before.pid or 0)
            (after,) = e.residency.status()
            assert (after.threads, after.wait_policy) == (1, "passive")
            assert after.failures == 0


@pytest.mark.parametrize("spare", [True, False])
async def test_the_engines_log_is_kept_in_a_file(
    math: LocalModel, tmp_path: Path, spare: bool
) -> None:
    folder = tmp_path / "logs"
    async with Residency(Engine(spare=spare), logs=folder) as residency:
        await residency.load(math)
    assert os.listdir(folder) == ["zoo_tiny-math.chat.log"]
    assert "model loaded" in _read(folder / "zoo_tiny-math.chat.log")


def _read(path: Path) -> str:
    return path.read_text()


async def test_closing_while_loading_and_answering_leaves_nothing(tmp_path: Path) -> None:
    model, other = endless(tmp_path, context=8192), resolve(parse("zoo:tiny-text"))
    children = psutil.Process().children
    before = {child.pid for child in children(recursive=True)}
    async with engines() as e:
        async with e.target(model).open(go_on(8000), CALL) as deltas:
            await anext(deltas)
            loading = asyncio.create_task(e.residency.load(other))
            await until(lambda: len(e.residency.status()) == 2)
            await e.residency.close()
        await asyncio.gather(loading, return_exceptions=True)
        with pytest.raises(Unavailable):
            await e.residency.load(other)
    left = [c for c in children(recursive=True) if c.pid not in before and c.is_running()]
    assert not left, left


def test_no_orphan_when_the_parent_is_killed() -> None:
    """kill -9 of the parent: the loaded runner and the spare go by themselves."""
    with psutil.Popen(
        [sys.executable, "-m", "tests.engine.parent"], stdout=-1, cwd=Path(__file__).parents[2]
    ) as parent:
        assert parent.stdout is not None
        line = parent.stdout.readline()
        pids = [int(word) for word in line.split()]
        assert len(pids) == 2, line
        processes = [psutil.Process(pid) for pid in pids]
        parent.kill()
        parent.wait()
        _, alive = psutil.wait_procs(processes, timeout=10)
        for process in alive:
            process.kill()
        assert not alive, "runners outlived their parent"
