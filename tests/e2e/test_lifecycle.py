"""Starting and stopping for real: exit codes, signals, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil
import pytest

from .served import Served, served, wait_until_gone

pytestmark = [pytest.mark.engine]


def load(server: Served, model: str = "zoo:tiny-math") -> list[psutil.Process]:
    """Load a model; the runner processes."""
    answer = httpx2.post(
        f"{server.url}/llmrr/load",
        headers={"authorization": f"Bearer {server.key}"},
        json={"model": model},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    children = server.children()
    assert children, "a model runs in a process of its own"
    return children


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_server(tmp_path: Path, how: signal.Signals) -> None:
    server = Served(tmp_path / "home")
    children = load(server)
    code = server.stop(how)
    assert code == (-9 if how is signal.SIGKILL else 0), server.log()
    wait_until_gone(children)
    if how is not signal.SIGKILL:
        assert not (tmp_path / "home" / "server.json").exists()
        assert "Traceback" not in server.log()


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with served(home) as first:
        mode = stat.S_IMODE((home / "key").stat().st_mode)
        assert mode == 0o600
        assert first.key not in first.log(), "the greeting says where the key is, not what it is"
    with served(home) as second:
        assert second.key == first.key
    with served(home, LLMRR_API_KEY="llmrr-from-the-environment-123") as third:
        headers = {"authorization": f"Bearer {first.key}"}
        assert httpx2.get(f"{third.url}/v1/models", headers=headers).status_code == 401
        headers = {"authorization": f"Bearer {third.key}"}
        assert httpx2.get(f"{third.url}/v1/models", headers=headers).status_code == 200


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llm_runner_router", *arguments],
        env={**os.environ, "LLMRR_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_taken_port_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(tmp_path, "serve", "--port", str(port))
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_runner_is_replaced(tmp_path: Path) -> None:
    with served(tmp_path / "home") as server:
        load(server)
        headers = {"authorization": f"Bearer {server.key}"}
        row = httpx2.get(f"{server.url}/llmrr/ps", headers=headers).json()[0]
        os.kill(row["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 20
        while True:
            answer = httpx2.post(
                f"{server.url}/v1/chat/completions",
                headers=headers,
                json={
                    "model": "zoo:tiny-math",
                    "messages": [{"role": "user", "content": "7 + 5"}],
                    "temperature": 0,
                },
                timeout=30,
            )
            if answer.status_code == 200:
                break
            assert answer.status_code in (502, 503), answer.text
            assert time.monotonic() < deadline, answer.text
        assert "12" in answer.json()["choices"][0]["message"]["content"]
