"""Processes of a benchmark: start, speak to, measure, and always stop.

Knows: pipes, `/proc` (with psutil where there is none). Does not know what runs in them.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import msgspec
import psutil

from .load import Load, Result

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 30.0
STOP_SECONDS = 10.0


class BenchError(Exception):
    """A benchmark could not be carried out; the text says why."""


class Child:
    """A child process with pipes; use it as a context manager, it is gone afterwards.

    Raises:
        BenchError: it could not be started.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, name: str = ""
    ) -> None:
        self.name = name or Path(command[0]).name
        self._log: IO[bytes] = tempfile.TemporaryFile()
        whole = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        self.began = time.perf_counter()
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=whole,
                bufsize=0,
            )
        except OSError as exc:
            self._log.close()
            raise BenchError(f"{self.name} does not start: {exc}") from exc
        self._rest = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> float:
        """End it: close its input, SIGTERM, then SIGKILL. Returns the seconds that took."""
        began = time.perf_counter()
        process = self.process
        if process.stdin is not None:
            process.stdin.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._log.close()
        return time.perf_counter() - began

    def write(self, line: bytes) -> None:
        """Send a line to its standard input."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + b"\n")
        except OSError as exc:
            raise BenchError(f"{self.name} is gone: {self.errors()}") from exc

    def read(self, seconds: float) -> bytes:
        """The next line of its standard output.

        Raises:
            BenchError: none came within `seconds`, or it ended.
        """
        assert self.process.stdout is not None
        until = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise BenchError(f"{self.name} said nothing for {seconds:.0f} s: {self.errors()}")
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                raise BenchError(f"{self.name} ended: {self.errors()}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def errors(self) -> str:
        """The end of its standard error."""
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace").strip() or "(nothing on stderr)"


def python(module: str, *args: str) -> list[str]:
    """The command that runs a module of ours."""
    return [sys.executable, "-m", module, *args]


class Loader:
    """The load generator in a process of its own, kept for many loads."""

    def __init__(self) -> None:
        self._child = Child(python("bench.load"), name="load generator")

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()

    def run(self, load: Load) -> Result:
        """Put a load on a server.

        Raises:
            BenchError: the generator failed (failures of the server are in the result).
        """
        self._child.write(msgspec.json.encode(load))
        line = self._child.read(load.timeout + 30)
        return msgspec.json.decode(line, type=Result)


class _Port(msgspec.Struct):
    port: int


def start_upstream() -> tuple[Child, int]:
    """The mock upstream and its port."""
    child = Child(python("bench.upstream"), name="mock upstream")
    try:
        return child, msgspec.json.decode(child.read(START_SECONDS), type=_Port).port
    except BenchError:
        child.stop()
        raise


# ---------------------------------------------------------------- measuring


def cpu_seconds(pid: int) -> float:
    """CPU time that all threads of a process have used, in seconds.

    Linux counts it in nanoseconds per thread (`schedstat`, field 1); elsewhere psutil's user and
    system time, in steps of a clock tick.
    """
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((t / "schedstat").read_text().split()[0]) for t in threads) / 1e9
    except (OSError, IndexError, ValueError):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)


def rss(pid: int) -> int:
    """Bytes resident."""
    return int(psutil.Process(pid).memory_info().rss)


def pss(pid: int) -> int:
    """Bytes resident, shared pages counted by share; resident size where that is not known."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return rss(pid)


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_answer(port: int, request: bytes, seconds: float, child: Child) -> float:
    """Ask until the first line says 200; returns `perf_counter` of that moment.

    Raises:
        BenchError: the child ended, or never answered in time.
    """
    until = time.monotonic() + seconds
    last = "nothing listens"
    while time.monotonic() < until:
        if child.process.poll() is not None:
            raise BenchError(f"{child.name} ended: {child.errors()}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=seconds) as client:
                client.sendall(request)
                head = client.recv(4096)
        except OSError:
            time.sleep(0.002)
            continue
        if head.startswith(b"HTTP/1.1 200"):
            return time.perf_counter()
        last = head[:300].decode(errors="replace")
        time.sleep(0.002)
    raise BenchError(f"{child.name} did not answer in {seconds:.0f} s: {last}; {child.errors()}")
