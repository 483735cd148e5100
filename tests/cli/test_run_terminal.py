"""`llmrr run` in a real terminal: typing, Ctrl-C in an answer, history, leaving."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from llm_runner_router.home import find
from llm_runner_router.surfaces.testing import FakeGateway
from llm_runner_router.testing import FakeTarget, Gate, deltas_of
from llm_runner_router.testing.fakes import Step
from llm_runner_router.types import Usage

from .conftest import LLMRR, serving

SECONDS = 30.0
READY = "<ready>"
"""Stands for what the line editor sends when it begins to read: bracketed paste on."""
_ESCAPES = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|[=>()][A-Z0-9]?|\][^\x07]*\x07)")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")


class Terminal:
    """The other end of a program's terminal."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self._seen = b""
        self.process = process

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> str:
        """Read until `text` has appeared since the last time; what has appeared by then."""
        until = time.monotonic() + SECONDS
        while text not in self.plain:
            left = until - time.monotonic()
            assert left > 0, f"waited for {text!r}, saw {self.plain!r}"
            if select.select([self._master], [], [], min(left, 1.0))[0]:
                try:
                    data = os.read(self._master, 65536)
                except OSError:  # the program has ended
                    data = b""
                assert data, f"it ended while {text!r} was awaited; saw {self.plain!r}"
                self._seen += data
                if b"\x1b[6n" in data:  # where is the cursor? a terminal answers that
                    os.write(self._master, b"\x1b[1;1R")
        plain = self.plain
        self._seen = plain[plain.index(text) + len(text) :].encode()
        return plain

    @property
    def plain(self) -> str:
        seen = self._seen.replace(b"\x1b[?2004h", READY.encode())
        return _ESCAPES.sub(b"", seen).decode("utf-8", "replace")

    def ended(self) -> int:
        """The exit code; the rest of the output is read meanwhile, or writing would block."""
        until = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < until, f"it does not end; saw {self.plain!r}"
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    self._seen += os.read(self._master, 65536)
                except OSError:
                    self.process.wait(SECONDS)
        return self.process.returncode


@contextmanager
def terminal(*args: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "50", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [*LLMRR, *args],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=env,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(master)


@pytest.fixture
def answer() -> FakeTarget:
    return FakeTarget("m", deltas_of("it is 42", usage=Usage(5, 3)))


@pytest.mark.usefixtures("with_key")
def test_a_conversation(answer: FakeTarget) -> None:
    with serving(FakeGateway({"m": answer, "n": answer})), terminal("run", "m") as screen:
        screen.wait_for(READY)
        screen.type("What is it?\r")
        screen.wait_for("it is 42")
        screen.wait_for(READY)
        screen.type("/set temperature 0.5\r")
        screen.wait_for("temperature: 0.5")
        screen.wait_for(READY)
        screen.type("/hepl\r")
        screen.wait_for("did you mean `/help`?")
        screen.wait_for(READY)
        screen.type('"""Several\r')
        screen.wait_for(READY)
        screen.type('lines"""\r')
        screen.wait_for("it is 42")
        screen.wait_for(READY)
        screen.type("up\x1b\rdown\r")  # Alt-Enter
        screen.wait_for("it is 42")
        screen.wait_for(READY)
        screen.type("/model nix\r")
        screen.wait_for(READY)
        screen.type("Are you there?\r")
        screen.wait_for("error: there is no model 'nix'")
        screen.wait_for(READY)
        screen.type("/bye\r")
        assert screen.ended() == 0
    asked = [request.messages[-1].text for request in answer.requests]
    assert asked == ["What is it?", "Several\nlines", "up\ndown"]
    assert [m.role for m in answer.requests[1].messages] == ["user", "assistant", "user"]
    assert answer.requests[1].sampling.temperature == 0.5
    history = find(os.environ).history
    assert "What is it?" in history.read_text("utf-8")
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("with_key")
def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    gate = Gate()
    first, *rest = deltas_of("it is 42")
    script: list[Step] = [first, gate, *rest]
    slow = FakeTarget("m", script)
    with serving(FakeGateway({"m": slow})), terminal("run", "m") as screen:
        screen.wait_for(READY)
        screen.type("What is it?\r")
        screen.wait_for("\nit ")
        os.killpg(screen.process.pid, signal.SIGINT)
        screen.wait_for("stopped")
        screen.wait_for(READY)
        until = time.monotonic() + SECONDS
        while slow.running and time.monotonic() < until:
            time.sleep(0.01)
        assert slow.running == 0, "the server goes on with an answer that nobody reads"
        screen.type("\x03")  # at the prompt
        screen.wait_for("Ctrl-D or /bye leaves.")
        screen.wait_for(READY)
        screen.type("\x04")
        assert screen.ended() == 0


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_ctrl_c_leaves_a_model_in_this_process_alone() -> None:
    """The signal goes to the whole group of processes, the model's among them."""
    question = "What is 12 + 30?\r"
    with terminal("run", "zoo:tiny-math", "--temperature", "0") as screen:
        screen.wait_for(READY)
        screen.type(question)
        screen.wait_for("42")
        screen.wait_for(READY)
        runners = psutil.Process(screen.process.pid).children(recursive=True)
        assert runners
        os.killpg(screen.process.pid, signal.SIGINT)
        screen.wait_for("Ctrl-D or /bye leaves.")
        screen.wait_for(READY)
        screen.type(question)
        screen.wait_for("42")
        screen.wait_for(READY)
        screen.type("/bye\r")
        assert screen.ended() == 0
        _, alive = psutil.wait_procs(runners, SECONDS)
        assert not alive
