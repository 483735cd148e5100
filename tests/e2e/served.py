"""A real `llmrr serve` as a child process, for tests that go the whole way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

START_DEADLINE = 60.0


class Served:
    """The running server: its address, its key, its processes."""

    def __init__(self, home: Path, arguments: Sequence[str] = (), **env: str) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self._log = (home / "serve.log").open("wb")
        clean = {k: v for k, v in os.environ.items() if not k.startswith("LLMRR_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llm_runner_router", "serve", "--port", "0", *arguments],
            env={**clean, "LLMRR_HOME": str(home), **env},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._wait()
        self.url = json.loads((home / "server.json").read_text())["url"]
        made = home / "key"
        self.key = env.get("LLMRR_API_KEY") or (made.read_text().strip() if made.exists() else "")
        """Empty: the configuration has one."""

    def _wait(self) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while not (self.home / "server.json").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                raise AssertionError(f"the server did not start:\n{self.log()}")
            time.sleep(0.02)

    def log(self) -> str:
        """What it printed."""
        return (self.home / "serve.log").read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """Its runner processes."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> int:
        """Stop it; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not stop:\n{self.log()}") from None
        finally:
            self._log.close()


@contextmanager
def served(home: Path, arguments: Sequence[str] = (), **env: str) -> Iterator[Served]:
    """A server that is gone afterwards."""
    server = Served(home, arguments, **env)
    try:
        yield server
    finally:
        server.stop()


def wait_until_gone(processes: Sequence[psutil.Process], seconds: float = 10.0) -> None:
    """Wait for processes to end; they are not our children."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive, f"still running: {alive}"
