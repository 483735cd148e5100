"""The command line as a new user has it: real models, no configuration, server and no server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from llm_runner_router.home import find

from .conftest import LLMRR, START_SECONDS, Result, in_a_process

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

MATHS = ("-m", "tiny-math", "--temperature", "0", "What is 12 + 30?")


@contextmanager
def server(*args: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`llmrr serve` on a free port: the process and its greeting up to the last line."""
    with subprocess.Popen(
        [*LLMRR, "serve", "--port", "0", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line or args == ("--quiet",):
                break
        try:
            yield process, "".join(lines)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(START_SECONDS)


def ok(result: Result) -> str:
    assert result.code == 0, result
    return result.out


def test_a_server_and_every_verb() -> None:
    with server() as (process, greeting):
        url = greeting.split()[3]
        assert url.startswith("http://127.0.0.1:")
        assert str(find(os.environ).key) in greeting
        assert "zoo:tiny-math" in greeting

        assert ok(in_a_process("quick", "What is 12 + 30?")).strip()
        quick = in_a_process("quick", *MATHS)
        assert "42" in ok(quick)
        assert "zoo:" in quick.err
        assert "tok/s" in quick.err
        assert quick.err.rstrip().endswith("$0")

        runners = json.loads(ok(in_a_process("ps", "--json")))
        maths = next(runner for runner in runners if runner["name"] == "zoo:tiny-math")
        pid = maths["pid"]
        assert psutil.pid_exists(pid)
        head, *lines = ok(in_a_process("ps")).splitlines()
        assert head.split()[:5] == ["MODEL", "STATE", "ENGINE", "PID", "THREADS"]
        assert any(str(pid) in line for line in lines)

        listed = ok(in_a_process("ls"))
        for name in ("auto", "zoo:tiny-math", "zoo:tiny-chat"):
            assert name in listed
        assert "context" in ok(in_a_process("show", "tiny-math"))
        explained = json.loads(ok(in_a_process("explain", "--json", "What is 12 + 30?")))
        assert explained["decision"]["chosen"] in json.dumps(explained["decision"]["candidates"])
        assert "chosen" in ok(in_a_process("explain", "What is 12 + 30?"))

        assert "unloaded" in ok(in_a_process("stop", "tiny-math"))
        left = json.loads(ok(in_a_process("ps", "--json")))
        assert "zoo:tiny-math" not in [runner["name"] for runner in left]
        assert not psutil.pid_exists(pid)

        assert "has ended" in ok(in_a_process("stop", "--server"))
        assert process.wait(START_SECONDS) == 0
    assert not find(os.environ).server.exists(), "the state file stays behind"


def test_without_a_server() -> None:
    assert ok(in_a_process("quick", "What is 12 + 30?")).strip()
    told = json.loads(ok(in_a_process("quick", "--json", *MATHS)))
    assert "42" in told["answer"]
    assert told["model"] == "zoo:tiny-math"
    assert told["cost"] == 0
    assert "42" in ok(in_a_process("run", *MATHS[1:]))
    assert "zoo:tiny-math" in ok(in_a_process("ls"))
    assert "chosen" in ok(in_a_process("explain", "What is 12 + 30?"))
    shown = json.loads(ok(in_a_process("show", "--json", "zoo:tiny-math")))
    assert shown["file"]["format"] == "gguf"
    unknown = in_a_process("show", "tiny-mth")
    assert (unknown.code, unknown.out) == (1, "")
    assert "tiny-math" in unknown.err
    me = psutil.Process()
    assert not [c for c in me.children(recursive=True) if "llm_runner_router" in str(c.cmdline())]


def test_a_taken_port_ends_with_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = in_a_process("serve", "--port", str(port))
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"error: port {port} on 127.0.0.1 is in use\n"
        f"hint: `llmrr serve --port {port + 1}`, or stop what listens there\n"
    )


def test_a_missing_secret_ends_with_2(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("providers: {x: {base_url: 'http://127.0.0.1:1/v1', api_key: '${NOT_SET}'}}")
    result = in_a_process("serve", "--config", str(path))
    assert result.code == 2
    assert "providers.x.api_key wants the variable `NOT_SET`" in result.err


def test_pinned_models_are_loaded_at_the_start() -> None:
    with server("--pin", "tiny-math"):
        runners = json.loads(ok(in_a_process("ps", "--json")))
        assert [runner["name"] for runner in runners] == ["zoo:tiny-math"]
        assert "pinned" in ok(in_a_process("ps"))


def test_ctrl_c_ends_the_server_and_its_runners() -> None:
    with server("--quiet") as (process, url):
        assert url.startswith("http://")
        ok(in_a_process("quick", "-m", "tiny-math", "What is 1 + 1?"))
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGINT)
        assert process.wait(START_SECONDS) in (0, 130)
        _, alive = psutil.wait_procs(children, START_SECONDS)
        assert not alive
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
