"""Runner processes that misbehave, seen by the parent's side alone."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llm_runner_router.engine.worker import Worker
from llm_runner_router.errors import LoadFailed

pytestmark = [pytest.mark.engine, pytest.mark.timeout(60)]

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 30.0


@asynccontextmanager
async def lingering() -> AsyncIterator[Worker]:
    paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", str(ROOT / "src"))))
    environ = {**os.environ, "PYTHONPATH": paths}
    worker = await Worker.start("passive", "tests.engine.lingering", environ=environ)
    try:
        yield worker
    finally:
        await worker.stop()


@pytest.mark.parametrize("killed", [False, True])
async def test_temporary_files_go_with_the_process(killed: bool) -> None:
    async with lingering() as worker:
        report = await worker.load({"way": "litter", "scratch": True}, SECONDS)
        folder = Path(report.address)
        assert len(os.listdir(folder)) == 1
        assert folder != Path(tempfile.gettempdir())
        if killed:
            worker.kill()
    assert folder.name not in os.listdir(folder.parent)


async def test_a_death_is_seen_though_another_process_keeps_the_log_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    holder = os.open(tmp_path / "fifo", os.O_RDWR)
    try:
        async with lingering() as worker:
            await worker.load({"way": "orphan", "fifo": str(tmp_path / "fifo")}, SECONDS)
            async with asyncio.timeout(SECONDS):
                await worker.exited()
            assert worker.ending() == "signal 9"
    finally:
        os.close(holder)  # ends the process that was left


async def test_reports_without_end_end_the_process() -> None:
    async with lingering() as worker:
        with pytest.raises(LoadFailed, match="signal 9"):
            # Nobody reads the queue while the log is written, so it fills.
            await worker.load({"way": "flood"}, SECONDS)
