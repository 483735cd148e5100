"""What `conftest.py` promises: clean ends, deadlines, no network, a clean environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).with_name("conftest.py")

BAD = """
import asyncio, os, socket
import pytest

kept = []

async def test_leaves_a_task():
    kept.append(asyncio.create_task(asyncio.Event().wait()))

@pytest.mark.timeout(0.1)
async def test_takes_too_long():
    await asyncio.Event().wait()

async def test_connects():
    await asyncio.open_connection("192.0.2.1", 80)

def test_looks_up():
    socket.getaddrinfo("example.com", 80)

def test_connects_without_raising():
    socket.socket().connect_ex(("2001:db8::1", 80))

async def test_fails():
    assert 1 == 2
"""

GOOD = """
import asyncio, os, socket
from pathlib import Path

async def test_ends_what_it_starts(tmp_path):
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    asyncio.create_task(asyncio.sleep(0))  # about to end

async def test_loopback():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    async with server:
        for host in ("127.0.0.1", "localhost"):
            _, writer = await asyncio.open_connection(host, server.sockets[0].getsockname()[1])
            writer.close()
            await writer.wait_closed()

def test_environment():
    assert "OPENAI_API_KEY" not in os.environ
    assert "LLMRR_PORT" not in os.environ
    home = Path(os.environ["LLMRR_HOME"])
    assert home.is_dir() and not list(home.iterdir())
    assert len(str(home)) < 80
    Path("home").write_text(str(home))
"""


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, folder / "conftest.py")
    (folder / "test_it.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    return subprocess.run(
        [
            *command,
            "-W",
            "ignore",
            "-n0",
            "-p",
            "no:timeout",
            "--rootdir",
            str(folder),
            str(folder),
        ],
        cwd=folder,
        env={**os.environ, "OPENAI_API_KEY": "sk-test", "LLMRR_PORT": "1"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_what_must_fail_fails(tmp_path: Path) -> None:
    output = run(tmp_path, BAD).stdout
    assert "6 failed" in output, output
    for words in (
        "the test left tasks running",
        "the test took more than 0.09 s",
        "may only connect to loopback, not to ('192.0.2.1', 80)",
        "may only look up localhost, not 'example.com'",
        "may only connect to loopback, not to ('2001:db8::1', 80)",
        "assert 1 == 2",
    ):
        assert words in output, output


def test_what_may_pass_passes(tmp_path: Path) -> None:
    result = run(tmp_path, GOOD)
    assert "3 passed" in result.stdout, result.stdout + result.stderr
    home = Path((tmp_path / "home").read_text())
    assert not home.exists(), "the data folder of the test was left behind"
