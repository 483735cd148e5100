"""Every check of the doctor, fit and unfit; each failure tells the next step."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path

import pytest

from llm_runner_router.cli import doctor, doctor_engine
from llm_runner_router.cli.group import Place
from llm_runner_router.config import Config, Server
from llm_runner_router.engine import devices
from llm_runner_router.home import Home
from llm_runner_router.models import resolve
from llm_runner_router.surfaces.testing import FakeGateway

from .conftest import Run, serving

OK = {"python", "platform", "machine", "engine", "threads", "data", "key", "config", "providers"}


def test_here_it_is_fit(llmrr: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    checks = json.loads(llmrr("doctor", "--json", "--port", str(port)).out)
    states = {check["name"]: check["state"] for check in checks}
    # a machine under test may be short of a core; nothing may have failed but what is not here yet
    assert {name for name, state in states.items() if state != "fail"} >= OK, checks
    assert states["server"] == "ok"


def test_one_failure_makes_the_exit_code_1(llmrr: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("modles: {}")
    result = llmrr("doctor", "--config", str(path))
    assert result.code == 1
    line = next(line for line in result.out.splitlines() if line.startswith("FAIL  config"))
    assert "did you mean `models`?" in line


def test_the_zoos_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "ZOO", tmp_path)
    assert doctor.zoo().state == "fail"
    (tmp_path / "a.gguf").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    cards = {"models": [{"name": "a", "file": "a.gguf", "sha256": digest}]}
    (tmp_path / "cards.json").write_text(json.dumps(cards))
    assert doctor.zoo().state == "ok"
    (tmp_path / "a.gguf").write_bytes(b"weightz")
    tampered = doctor.zoo()
    assert (tampered.state, tampered.found) == ("fail", "a.gguf: not the file its card is about")
    assert tampered.hint
    (tmp_path / "a.gguf").unlink()
    assert doctor.zoo().found == "a.gguf: No such file or directory"


def test_the_data_folder(tmp_path: Path) -> None:
    assert "will be made" in doctor.folder(Home(tmp_path / "a" / "b")).found
    home = Home(tmp_path / "c").create()
    assert doctor.folder(home).state == "ok"
    home.path.chmod(0o755)
    assert doctor.folder(home).state == "warning"
    (tmp_path / "file").write_text("")
    blocked = doctor.folder(Home(tmp_path / "file" / "below"))
    assert blocked.state == "fail"
    assert "LLMRR_HOME" in blocked.hint


def test_the_key(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert "makes it" in doctor.key(home, {}).found
    home.key.write_text("llmrr-0123456789")
    home.key.chmod(0o644)
    exposed = doctor.key(home, {})
    assert exposed.state == "fail"
    assert "chmod 600" in exposed.hint
    home.key.chmod(0o600)
    told = doctor.key(home, {})
    assert told.state == "ok"
    assert "0123456789" not in told.found
    assert "LLMRR_API_KEY" in doctor.key(home, {"LLMRR_API_KEY": "llmrr-0123456789"}).found


def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check = doctor.port(Place(), os.environ, Config(server=Server(port=port)))
    assert (check.state, check.found) == ("fail", f"port {port} on 127.0.0.1 is in use")
    assert check.hint


@pytest.mark.usefixtures("with_key")
def test_a_running_server() -> None:
    with serving(FakeGateway({})) as url:
        assert doctor.port(Place(), os.environ, Config()).found == f"runs at {url}"


def test_providers_are_told_by_name_only() -> None:
    check = doctor.providers({"OPENAI_API_KEY": "sk-secret-123", "GROQ_API_KEY": ""})
    assert check.found == "keys set: OPENAI_API_KEY"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.abort()", "it ended with signal 6"),
        ("import not_there_at_all", "No module named 'not_there_at_all'"),
    ],
)
def test_an_engine_that_cannot_be_imported(
    code: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_engine, "CODE", code)
    check = doctor_engine.imported()
    assert check.state == "fail"
    assert reason in check.found
    assert check.hint


def machine(**facts: object) -> devices.Machine:
    given = {"physical": 4, "allowed": 4, "quota": None, "memory": 8 << 30, "available": 4 << 30}
    return devices.Machine(**{**given, **facts})  # type: ignore[arg-type]  # a mapping of mixed types


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (machine(), "ok"),
        (machine(quota=0.5), "warning"),
        (machine(available=1000), "fail"),
    ],
)
def test_the_machine(found: devices.Machine, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_engine, "_look", lambda: found)
    assert doctor_engine.machine().state == state


def test_the_plan_follows_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_runner_router.config import Engine

    monkeypatch.setattr(doctor_engine, "_look", machine)
    told = doctor_engine.threads(Config(engine=Engine(threads=3, wait_policy="short"))).found
    assert told == (
        "tiny models: 3 threads, 3 for prompts, short; "
        "large models: 3 threads, 3 for prompts, short"
    )
