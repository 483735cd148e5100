"""The verbs against a real server with scripted models, and how runs end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import msgspec
import pytest

from llm_runner_router import __version__
from llm_runner_router.cli.explain import Explained
from llm_runner_router.cli.group import VERBS
from llm_runner_router.cli.ps import HEAD, adapters, converted, row
from llm_runner_router.engine.prepare import Conversion
from llm_runner_router.surfaces.testing import FakeGateway
from llm_runner_router.testing import FakeTarget, deltas_of
from llm_runner_router.types import Decision, Usage

from .conftest import LLMRR, Run, in_a_process, serving

ANSWER = FakeTarget("m", deltas_of("it is 42", usage=Usage(5, 3)), local=True)
CHOSEN = Decision("auto", "m", "best at arithmetic", task="arithmetic")


# ---------------------------------------------------------------- how runs end


def test_the_version(llmrr: Run) -> None:
    assert llmrr("--version").out == f"llmrr {__version__}\n"
    assert llmrr("--port", "1", "--version").out == f"llmrr {__version__}\n"


def test_help_lists_the_verbs_without_importing_them() -> None:
    code = (
        "import sys; from llm_runner_router.cli import main; main(['--help']); print(*sys.modules)"
    )
    done = subprocess.run([LLMRR[0], "-c", code], capture_output=True, text=True, timeout=30)
    assert all(f"  {verb} " in done.stdout for verb in VERBS)
    imported = done.stdout.splitlines()[-1].split()
    for heavy in ("rich", "prompt_toolkit", "yaml", "uvicorn", "pyreqwest", "xllamacpp"):
        assert heavy not in imported, f"`llmrr --help` imports {heavy}"
    assert "llm_runner_router.cli.serve" not in imported


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_the_common_options(verb: str, llmrr: Run) -> None:
    result = llmrr(verb, "--help")
    assert result.code == 0, result.err
    for option in ("--host", "--port", "--config"):
        assert option in result.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["srve"], "error: no verb is called `srve`; did you mean `serve`?"),
        (["ps", "--jsn"], "error: No such option '--jsn'. Did you mean '--json'?"),
        (["ps", "--port", "x"], "error: Invalid value for '--port'"),
        (["stop"], "error: say which model, or `--server`"),
        (["quick"], "error: there is no prompt"),
        (["serve", "--pin", "tiny-mth"], "error: --pin: no model is called `tiny-mth`; did you"),
        (["config", "check", "gone.yaml"], "error: the configuration file `gone.yaml` does not"),
        (["--config", "gone.yaml", "serve"], "error: the configuration file `gone.yaml` does not"),
        (["serve", "--config", "gone.yaml"], "error: the configuration file `gone.yaml` does not"),
    ],
)
def test_wrong_usage_ends_with_2(args: list[str], message: str) -> None:
    result = in_a_process(*args, stdin="")
    assert (result.code, result.out) == (2, ""), result
    first, second = result.err.splitlines()
    assert first.startswith(message)
    assert second.startswith("hint: ")


def test_an_unknown_key_ends_with_2(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("engine:\n  threds: 1\n")
    result = in_a_process("serve", "--config", str(path))
    assert result.code == 2
    assert result.err.splitlines()[0] == (
        f"error: {path}:2: engine.threds: unknown key `threds`; did you mean `threads`?"
    )


def test_an_unreadable_configuration_ends_with_2(tmp_path: Path) -> None:
    result = in_a_process("serve", LLMRR_CONFIG=str(tmp_path))
    assert (result.code, result.err.splitlines()[0]) == (
        2,
        f"error: cannot read `{tmp_path}`: Is a directory",
    )


def test_no_server_ends_with_1(llmrr: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = llmrr("ps", "--port", str(port))
    assert result.code == 1
    assert result.err.splitlines()[0].startswith("error: no server answers at http://127.0.0.1")
    assert "`llmrr serve`" in result.err.splitlines()[1]


def test_a_traceback_only_on_demand(tmp_path: Path) -> None:
    args = ("ps", "--host", "127.0.0.1", "--port", "1")
    assert "Traceback" not in in_a_process(*args).err
    assert "Traceback" in in_a_process(*args, LLMRR_DEBUG="1").err


def test_a_reader_that_leaves_is_no_error() -> None:
    with subprocess.Popen(
        [*LLMRR, "config", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


# ---------------------------------------------------------------- against a server


@pytest.mark.usefixtures("with_key")
def test_quick(llmrr: Run) -> None:
    with serving(FakeGateway({"auto": ANSWER, "m": ANSWER}, decisions=[CHOSEN])):
        result = llmrr("quick", "What", "is", "it?")
        as_json = llmrr("quick", "--json", "-m", "m", "What is it?")
        unknown = llmrr("quick", "-m", "mm", "What is it?")
    assert (result.code, result.out) == (0, "it is 42\n")
    assert result.err.startswith("m · best at arithmetic · ")
    assert ANSWER.requests[-1].messages[0].text == "What is it?"
    told = json.loads(as_json.out)
    assert (told["answer"], told["model"], told["task"]) == ("it is 42", "m", "arithmetic")
    assert (told["prompt_tokens"], told["completion_tokens"]) == (5, 3)
    assert unknown.code == 1
    assert unknown.err == "error: there is no model 'mm'\nhint: did you mean 'm'?\n"


@pytest.mark.usefixtures("with_key")
def test_a_piped_prompt() -> None:
    with serving(FakeGateway({"auto": ANSWER, "m": ANSWER})):
        quick = in_a_process("quick", stdin="What is it?\n")
        run = in_a_process("run", "m", "Say briefly:", stdin="What is it?\n")
    assert quick.out == run.out == "it is 42\n"
    assert ANSWER.requests[-1].messages[0].text == "Say briefly:\n\nWhat is it?"


@pytest.mark.usefixtures("with_key")
def test_run_with_a_prompt(llmrr: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(FakeGateway({"m": ANSWER})):
        result = in_a_process(
            "run", "m", "What is it?", "--system", "Be brief.", "--max-tokens", "9", "--verbose"
        )
    assert (result.code, result.out) == (0, "it is 42\n"), result.err
    request = ANSWER.requests[-1]
    assert [m.role for m in request.messages] == ["system", "user"]
    assert request.sampling.max_tokens == 9
    assert "answer       3 tokens" in result.err


@pytest.mark.usefixtures("with_key")
def test_explain(llmrr: Run) -> None:
    with serving(FakeGateway({"auto": ANSWER})):
        result = llmrr("explain", "What is it?", "--tools")
        as_json = llmrr("explain", "What is it?", "--json")
    assert "because   it was asked 'What is it?'" in result.out
    assert json.loads(as_json.out)["decision"]["chosen"] == "auto"


def test_explain_shows_every_candidate(capsys: pytest.CaptureFixture[str]) -> None:
    from llm_runner_router.cli import explain
    from llm_runner_router.types import Candidate

    candidates = (
        Candidate("a", 0.9, 0.95, 0.0, 0.1, prompt_tokens=1406, cached_tokens=1280),
        Candidate("b", quality=0.5, cost=0.0012, seconds=2, rejected="cannot call tools"),
    )
    decision = Decision("auto", "a", "best", task="math", confidence=0.8, candidates=candidates)
    explain._print(Explained("auto", decision).decision or decision)
    out = capsys.readouterr().out.splitlines()
    assert "task      math (80% sure)" in out
    assert out[-2].split() == ["*", "a", "0.900", "95%", "$0", "0.10", "1,280", "of", "1,406"]
    assert out[-1].split() == ["b", "50%", "$0.0012", "2.00", "cannot", "call", "tools"]


@pytest.mark.usefixtures("with_key")
def test_stop(llmrr: Run) -> None:
    gateway = FakeGateway({"m": ANSWER})
    with serving(gateway):
        result = llmrr("stop", "m")
        both = llmrr("stop", "m", "--server")
    assert (result.code, result.out) == (0, "m is unloaded\n")
    assert gateway.asked == ["stop:m"]
    assert both.code == 2


def test_a_row_of_ps() -> None:
    assert row({"name": "m"})[0] == "m"
    kept = {"tokens_kept": 1280, "prompt_tokens": 4000, "cached_tokens": 3000}
    cells = dict(zip(HEAD, row({"name": "m", **kept}), strict=True))
    assert (cells["KEPT"], cells["HITS"]) == ("1280", "75%")


# ---------------------------------------------------------------- configuration


def test_config_init_check_schema(llmrr: Run, tmp_path: Path) -> None:
    path = tmp_path / "llmrr.yaml"
    assert llmrr("config", "init", str(path)).code == 0
    again = llmrr("config", "init", str(path))
    assert (again.code, again.err.splitlines()[0]) == (2, f"error: `{path}` exists already")
    checked = llmrr("config", "check", str(path))
    assert (checked.code, checked.out.splitlines()[0]) == (0, f"{path}: ok")
    assert "auto" in checked.out
    schema = json.loads(llmrr("config", "schema").out)
    assert schema["$defs"]["Server"]["properties"]["port"]["maximum"] == 65535


def test_config_check_tells_the_trees(llmrr: Run, tmp_path: Path) -> None:
    path = tmp_path / "llmrr.yaml"
    path.write_text(
        "models:\n  tiny: zoo:tiny-chat\n"
        "  smart: {fallback: [tiny, {race: [tiny, zoo:tiny-math]}], aliases: [best]}\n"
        "  split: {weighted: {tiny: 9, smart: 1}, sticky: session}\n"
        "  adapted: {target: zoo:tiny-chat, adapters: {sea: ./sea}}\n"
    )
    result = llmrr("config", "check", "--json", str(path), "--port", "4567")
    serves = json.loads(result.out)["serves"]
    assert serves["smart"] == "fallback[ tiny, race[ tiny, zoo:tiny-math ] ]"
    assert serves["split"] == "weighted by session[ 9× tiny, 1× smart ]"
    assert serves["best"] == "= smart"
    assert serves["adapted+sea"] == "adapted with ./sea"
    assert "127.0.0.1:4567" in llmrr("config", "check", str(path), "--port", "4567").out


def test_config_check_warns_of_missing_keys(llmrr: Run, tmp_path: Path) -> None:
    path = tmp_path / "llmrr.yaml"
    path.write_text(
        "providers: {x: {base_url: 'http://127.0.0.1:1/v1', api_key: '${X_KEY}'}}\n"
        "models: {mini: openai/gpt-4o-mini, here: ollama/a, other: x/b}\n"
    )
    result = llmrr("config", "check", str(path))
    assert result.code == 0
    assert result.err.splitlines() == [
        "warning: providers.x.api_key wants the variable `X_KEY`, which is not set here",
        "warning: `openai/gpt-4o-mini` wants the variable `OPENAI_API_KEY`, which is not set here",
    ]


def test_show_draws_the_routes(llmrr: Run, tmp_path: Path) -> None:
    path = tmp_path / "llmrr.yaml"
    path.write_text(
        "models:\n  tiny: zoo:tiny-chat\n"
        "  smart: {fallback: [tiny, {race: [zoo:tiny-text, zoo:tiny-math]}], aliases: [best]}\n"
        "  split: {weighted: {tiny: 3, smart: 1}, sticky: user}\n"
    )
    shown = json.loads(llmrr("show", "--json", "split", "--config", str(path)).out)
    assert shown["routes"] == [
        "split",
        "  weighted, sticky by user",
        "    tiny  (75%)",
        "      zoo:tiny-chat",
        "    smart  (25%)",
        "      fallback, in order",
        "        tiny",
        "          zoo:tiny-chat",
        "        race, the first to answer",
        "          zoo:tiny-text",
        "          zoo:tiny-math",
    ]
    told = llmrr("show", "best", "--config", str(path))
    assert told.code == 0, told.err
    assert "name         smart" in told.out
    assert "fallback: tiny" in told.out
    tiny = json.loads(llmrr("show", "--json", "tiny", "--config", str(path)).out)
    assert (tiny["card"]["name"], tiny["file"]["format"]) == ("tiny", "gguf")


def test_ls_without_a_server(llmrr: Run, tmp_path: Path) -> None:
    path = tmp_path / "llmrr.yaml"
    path.write_text(
        "zoo: false\nproviders: {x: {base_url: 'http://127.0.0.1:1/v1'}}\n"
        "models: {a: {target: x/b, price: {input: 0.5, output: 1}, scores: {math: 0.9}}}\n"
    )
    result = llmrr("ls", "--config", str(path))
    assert result.code == 0, result.err
    head, first, *_ = result.out.splitlines()
    assert head.split()[:6] == ["MODEL", "KIND", "$/M", "IN", "$/M", "OUT"]
    assert first.split() == ["a", "remote", "0.5", "1", "no", "no", "math", "90%"]


@pytest.mark.usefixtures("with_key")
def test_ls_and_ps_of_a_server(llmrr: Run) -> None:
    with serving(FakeGateway({"m": ANSWER})):
        assert json.loads(llmrr("ls", "--json").out)[0]["name"] == "m"
        assert llmrr("ps").out.splitlines()[1].split() == ["m"]


def test_ps_tells_what_is_converted_and_what_waits() -> None:
    shown = [
        Conversion("a\x1b[1m", "gguf", "runs", 42, 100),
        Conversion("b", "gguf", "runs"),
        Conversion("c", "onnx-genai", "waits", background=True),
    ]
    assert converted([msgspec.to_builtins(one) for one in shown]) == [
        "a[1m becomes gguf, 42 %",
        "b becomes gguf",
        "c waits to become onnx-genai: another conversion runs",
    ]


def test_ps_tells_which_adapters_are_loaded() -> None:
    rows = [{"name": "a", "adapters": ["sea", "la\x1bke"]}, {"name": "b", "adapters": []}, {}]
    assert adapters(rows) == ["adapters of a: sea, lake"]


def test_ctrl_c_ends_with_130() -> None:
    """A run that waits for its prompt is interrupted."""
    with subprocess.Popen(
        [*LLMRR, "quick", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        wait_until_it_reads(process.pid)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"\n")


def wait_until_it_reads(pid: int) -> None:
    """Until the process sleeps in a read of a pipe; elsewhere than on Linux, until it has begun."""
    wchan = Path(f"/proc/{pid}/syscall")
    import time

    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            if wchan.read_text().startswith("0 0x0 "):
                return
        except OSError:
            break
        time.sleep(0.02)
    time.sleep(2)
